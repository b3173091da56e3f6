"""Workflows: tasks that belong together, and what each waits for."""

import capataz.models.task
import django.contrib.postgres.fields
import django.db.models.functions.datetime
from django.db import migrations, models


# What is to be settled: Django has no word for IS DISTINCT FROM in an index.
UNSETTLED = """
CREATE INDEX capataz_task_unsettled ON capataz_task (workflow_id)
 WHERE workflow_id IS NOT NULL AND finished_at IS DISTINCT FROM settled_at;
"""


class Migration(migrations.Migration):

    dependencies = [("capataz", "0011_flow")]

    operations = [
        migrations.CreateModel(
            name='Dependency',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('parent_id', models.UUIDField()),
                ('child_id', models.UUIDField()),
                ('name', models.CharField(help_text="Under which the child finds the parent's result.", max_length=200)),
                ('position', models.IntegerField(default=0)),
                ('feeds', models.CharField(blank=True, choices=[('', 'Nothing: it asks for results by their names'), ('one', 'The result'), ('list', 'The result, as one of a list')], default='', max_length=4)),
                ('on_failure', models.CharField(choices=[('cancel', 'It is cancelled, and comes back if that one is retried'), ('run', 'It runs all the same, and is told'), ('ignore', 'It runs as if it had never waited for that one')], default='cancel', max_length=8)),
                ('outcome', models.CharField(blank=True, help_text='The final state of the parent; empty until then.', max_length=16, null=True)),
                ('cancelled_at', models.DateTimeField(blank=True, help_text='When the child was cancelled for this: its own finished_at.', null=True)),
            ],
        ),
        migrations.CreateModel(
            name='Workflow',
            fields=[
                ('id', models.UUIDField(default=capataz.models.task.new_task_id, editable=False, primary_key=True, serialize=False)),
                ('name', models.CharField(blank=True, default='', max_length=200)),
                ('total', models.IntegerField(db_default=0)),
                ('succeeded', models.IntegerField(db_default=0)),
                ('dead', models.IntegerField(db_default=0)),
                ('cancelled', models.IntegerField(db_default=0)),
                ('expired', models.IntegerField(db_default=0)),
                ('callbacks', models.JSONField(db_default={}, help_text='The tasks that follow, by what they follow on.')),
                ('called', django.contrib.postgres.fields.ArrayField(base_field=models.CharField(max_length=20), db_default=[], size=None)),
                ('submitted_by', models.CharField(blank=True, max_length=100, null=True)),
                ('created_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False)),
                ('closed_at', models.DateTimeField(blank=True, help_text='Nobody adds to it from then on.', null=True)),
                ('cancelled_at', models.DateTimeField(blank=True, null=True)),
                ('finished_at', models.DateTimeField(blank=True, help_text='All its tasks have ended.', null=True)),
            ],
        ),
        migrations.AddField(
            model_name='task',
            name='node',
            field=models.CharField(blank=True, help_text='Its name in its workflow.', max_length=200, null=True),
        ),
        migrations.AddField(
            model_name='task',
            name='settled_as',
            field=models.CharField(blank=True, editable=False, max_length=16, null=True),
        ),
        migrations.AddField(
            model_name='task',
            name='settled_at',
            field=models.DateTimeField(blank=True, editable=False, null=True),
        ),
        migrations.AddField(
            model_name='task',
            name='workflow_id',
            field=models.UUIDField(blank=True, null=True),
        ),
        migrations.AddIndex(
            model_name='task',
            index=models.Index(models.F('workflow_id'), models.F('id'), condition=models.Q(('workflow_id__isnull', False)), name='capataz_task_of_workflow'),
        ),
        migrations.AddIndex(
            model_name='dependency',
            index=models.Index(models.F('parent_id'), name='capataz_dependency_parent'),
        ),
        migrations.AddIndex(
            model_name='dependency',
            index=models.Index(models.F('child_id'), condition=models.Q(('outcome__isnull', True)), name='capataz_dependency_open'),
        ),
        migrations.AddIndex(
            model_name='dependency',
            index=models.Index(models.F('child_id'), condition=models.Q(('on_failure', 'cancel'), ('outcome__isnull', False), models.Q(('outcome', 'succeeded'), _negated=True)), name='capataz_dependency_failed'),
        ),
        migrations.AddConstraint(
            model_name='dependency',
            constraint=models.UniqueConstraint(models.F('child_id'), models.F('parent_id'), name='waits_for_each_parent_once'),
        ),
        migrations.AddConstraint(
            model_name='dependency',
            constraint=models.CheckConstraint(condition=models.Q(('child_id', models.F('parent_id')), _negated=True), name='waits_for_another'),
        ),
        migrations.AddIndex(
            model_name='workflow',
            index=models.Index(models.F('id'), condition=models.Q(('finished_at__isnull', True)), name='capataz_workflow_unfinished'),
        ),
        migrations.RunSQL(UNSETTLED, "DROP INDEX capataz_task_unsettled;"),
    ]
