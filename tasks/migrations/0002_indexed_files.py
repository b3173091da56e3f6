"""The front matter index."""


import django.contrib.postgres.fields
import django.contrib.postgres.indexes
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('tasks', '0001_initial'),
    ]

    operations = [
        migrations.CreateModel(
            name='IndexedFile',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('root', models.CharField(help_text='The root under which it lies, such as data.', max_length=20)),
                ('path', models.CharField(help_text='As clients know it: /data/notes/a.md.', max_length=1024, unique=True)),
                ('digest', models.CharField(help_text='SHA-256 of its contents.', max_length=64)),
                ('size', models.BigIntegerField(help_text='Bytes.')),
                ('modified', models.DateTimeField()),
                ('stamp', models.CharField(help_text='Of the kernel; empty if it was too young to tell a later change by it.', max_length=120)),
                ('title', models.CharField(max_length=500)),
                ('date', models.DateField(null=True)),
                ('tags', django.contrib.postgres.fields.ArrayField(base_field=models.CharField(max_length=200), size=None)),
                ('front_matter', models.JSONField()),
                ('indexed_at', models.DateTimeField(auto_now=True)),
            ],
            options={
                'ordering': ['path'],
                'indexes': [django.contrib.postgres.indexes.GinIndex(fields=['tags'], name='indexed_file_tags')],
            },
        ),
    ]
