"""Circuits, and what was noted of attempts for them. Nothing that exists is locked."""

import django.contrib.postgres.fields
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [("capataz", "0009_unique_keys")]

    operations = [
        migrations.CreateModel(
            name='Circuit',
            fields=[
                ('name', models.CharField(max_length=255, primary_key=True, serialize=False)),
                ('state', models.CharField(choices=[('CLOSED', 'Closed'), ('OPEN', 'Open'), ('HALF_OPEN', 'Half open')], db_default='CLOSED', max_length=16)),
                ('forced', models.BooleanField(db_default=False, help_text='Set by an operator, until it is reset.')),
                ('failures', models.IntegerField(db_default=0, help_text='Failures in a row.')),
                ('successes', models.IntegerField(db_default=0, help_text='Successes since it was half open.')),
                ('openings', models.IntegerField(db_default=0, help_text='Times it has opened since it was closed.')),
                ('leases', django.contrib.postgres.fields.ArrayField(base_field=models.DateTimeField(), db_default=[], help_text='Until when a probe of each call may last.', size=None)),
                ('changed_at', models.DateTimeField(blank=True, null=True)),
                ('retry_at', models.DateTimeField(blank=True, help_text='When probes are let through.', null=True)),
                ('last_failure_at', models.DateTimeField(blank=True, null=True)),
            ],
            options={
                'ordering': ['name'],
            },
        ),
        migrations.CreateModel(
            name='CircuitMark',
            fields=[
                ('id', models.BigAutoField(primary_key=True, serialize=False)),
                ('circuit', models.CharField(db_index=True, max_length=255)),
                ('failed', models.BooleanField()),
                ('started_at', models.DateTimeField()),
                ('at', models.DateTimeField()),
            ],
            options={
                'ordering': ['id'],
            },
        ),
    ]
