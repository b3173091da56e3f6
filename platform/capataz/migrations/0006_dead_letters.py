"""Dead letters are grouped by what they died of, and a task knows which one it does again."""

from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [("capataz", "0005_queue_limit")]

    operations = [
        migrations.AddField(
            model_name='task',
            name='cause',
            field=models.CharField(blank=True, help_text='What dead letters are grouped by.', max_length=160, null=True),
        ),
        migrations.AddField(
            model_name='task',
            name='replay_of',
            field=models.UUIDField(blank=True, help_text='The task that it does again.', null=True),
        ),
        migrations.AddIndex(
            model_name='task',
            index=models.Index(models.F('type'), models.F('cause'), models.F('finished_at'), condition=models.Q(('state', 'dead')), name='capataz_task_cause'),
        ),
    ]
