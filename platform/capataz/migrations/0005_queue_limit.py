"""A queue may have a limit, and what its counting and pruning look up by has an index.

Building the indexes reads the whole table and holds up whoever writes to it meanwhile.
"""

import django.core.validators
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("capataz", "0004_orphaned")]

    operations = [
        migrations.AddField(
            model_name="queue",
            name="waiting_limit",
            field=models.PositiveIntegerField(
                blank=True,
                help_text="So many tasks may wait; more are refused. Empty: no limit.",
                null=True,
                validators=[
                    django.core.validators.MinValueValidator(1),
                    django.core.validators.MaxValueValidator(1000000),
                ],
            ),
        ),
        migrations.AddIndex(
            model_name="task",
            index=models.Index(
                models.F("queue"),
                condition=models.Q(("state__in", ["scheduled", "retrying"])),
                name="capataz_task_later",
            ),
        ),
        migrations.AddIndex(
            model_name="task",
            index=models.Index(
                models.F("state"),
                models.F("finished_at"),
                condition=models.Q(("finished_at__isnull", False)),
                name="capataz_task_ended",
            ),
        ),
    ]
