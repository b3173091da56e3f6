"""What Capataz adds to the schedules of django-celery-beat, in place of the marks by name."""

import django.core.validators
import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("capataz", "0002_rollups"),
        ("django_celery_beat", "0019_alter_periodictasks_options"),
    ]

    operations = [
        migrations.CreateModel(
            name="Schedule",
            fields=[
                (
                    "periodic_task",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        related_name="capataz",
                        serialize=False,
                        to="django_celery_beat.periodictask",
                    ),
                ),
                (
                    "missed",
                    models.CharField(
                        choices=[
                            ("skip", "Leave them out"),
                            ("once", "Run once for all of them"),
                            ("all", "Run for each, up to the limit"),
                        ],
                        db_default="once",
                        default="once",
                        help_text="What to do about due times at which no beat ran.",
                        max_length=8,
                        verbose_name="after a downtime",
                    ),
                ),
                (
                    "missed_limit",
                    models.PositiveSmallIntegerField(
                        db_default=100,
                        default=100,
                        help_text="Of missed due times, at most the latest so many are run for.",
                        validators=[
                            django.core.validators.MinValueValidator(1),
                            django.core.validators.MaxValueValidator(1000),
                        ],
                    ),
                ),
                (
                    "overlap",
                    models.CharField(
                        choices=[
                            ("allow", "Submit another one"),
                            ("skip", "Leave it out"),
                            ("queue", "Submit one that waits, and no more"),
                        ],
                        db_default="allow",
                        default="allow",
                        help_text="What to do when the task of an earlier due time has not ended yet.",
                        max_length=8,
                    ),
                ),
                (
                    "last_due",
                    models.DateTimeField(
                        editable=False, help_text="The last due time that is settled.", null=True
                    ),
                ),
                (
                    "rule",
                    models.TextField(
                        db_default="", default="", editable=False, help_text="The rule that the mark belongs to."
                    ),
                ),
            ],
        ),
        migrations.DeleteModel(name="ScheduleMark"),
        migrations.AddField(
            model_name="task",
            name="schedule_id",
            field=models.BigIntegerField(blank=True, null=True),
        ),
        migrations.AddIndex(
            model_name="task",
            index=models.Index(
                models.F("schedule_id"),
                condition=models.Q(("finished_at__isnull", True), ("schedule_id__isnull", False)),
                name="capataz_task_of_schedule",
            ),
        ),
    ]
