"""What is kept of other services."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="ExternalSource",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("name", models.CharField(max_length=160, unique=True)),
                (
                    "run",
                    models.BigIntegerField(
                        default=0, help_text="The number of the last look. It fences those before it."
                    ),
                ),
                ("cursor", models.CharField(max_length=40)),
                (
                    "etag",
                    models.TextField(
                        default="", help_text="What the answer for this cursor was marked with."
                    ),
                ),
                ("walk_top", models.CharField(default="", max_length=40)),
                ("walk_bottom", models.CharField(default="", max_length=40)),
                (
                    "not_before",
                    models.DateTimeField(
                        help_text="The service asked to be left alone until then.", null=True
                    ),
                ),
                ("looked_at", models.DateTimeField(null=True)),
                (
                    "error",
                    models.TextField(default="", help_text="Why the last look failed; empty if it did not."),
                ),
            ],
            options={
                "ordering": ["name"],
            },
        ),
        migrations.CreateModel(
            name="ExternalItem",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "external_id",
                    models.CharField(
                        help_text="Its number or time, unique within its source.", max_length=40
                    ),
                ),
                ("changed_at", models.DateTimeField()),
                ("document", models.JSONField(help_text="What the service says of it.")),
                (
                    "source",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="items",
                        to="tasks.externalsource",
                    ),
                ),
            ],
            options={
                "ordering": ["-changed_at", "-id"],
                "indexes": [models.Index(fields=["changed_at"], name="external_item_changed")],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("source", "external_id"), name="one_row_per_external_item"
                    )
                ],
            },
        ),
    ]
