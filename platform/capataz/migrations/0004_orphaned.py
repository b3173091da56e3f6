"""Deaths of workers that held a task without having shown it as running are counted."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("capataz", "0003_schedules")]

    operations = [
        migrations.AddField(
            model_name="task",
            name="orphaned",
            field=models.SmallIntegerField(
                db_default=0, help_text="Workers that died holding it before it was shown as running."
            ),
        ),
    ]
