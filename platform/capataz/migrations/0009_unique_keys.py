"""Tasks may be unique: who holds a key is one partial unique index, which no other task enters.

Building it reads the whole table and holds up whoever writes to it meanwhile.
"""

from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [("capataz", "0008_retries_and_retention")]

    operations = [
        migrations.AddField(
            model_name='task',
            name='unique_changes',
            field=models.IntegerField(blank=True, help_text='Later submissions that were merged into it.', null=True),
        ),
        migrations.AddField(
            model_name='task',
            name='unique_key',
            field=models.CharField(blank=True, editable=False, max_length=32, null=True),
        ),
        migrations.AddField(
            model_name='task',
            name='unique_scope',
            field=models.CharField(blank=True, help_text='The states in which it holds its unique key.', max_length=16, null=True),
        ),
        migrations.AddField(
            model_name='task',
            name='unique_until',
            field=models.DateTimeField(blank=True, help_text='When it holds its unique key no longer.', null=True),
        ),
        migrations.AddConstraint(
            model_name='task',
            constraint=models.UniqueConstraint(models.F('unique_key'), condition=models.Q(('unique_key__isnull', False), models.Q(('finished_at__isnull', True), ('unique_scope__in', ['always', 'trailing']), models.Q(('state', 'dead'), ('unique_scope', 'until_success')), _connector='OR')), name='capataz_task_unique'),
        ),
    ]
