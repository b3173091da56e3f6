"""Types may be limited: their tasks wait in lanes, and operators may override what handlers declare.

Building the indexes reads the whole table and holds up whoever writes to it meanwhile.
"""

import django.db.models.functions.datetime
from django.db import migrations, models

# The lane of a task: its type, where the key lies in its payload, and the key. Whatever has none shares a lane.
LANE = """
CREATE FUNCTION capataz_lane(type text, payload jsonb, path text) RETURNS text AS $$
    SELECT type || '|' || path || '|'
           || CASE WHEN length(own.key) > 128 THEN left(own.key, 96) || md5(own.key) ELSE own.key END
      FROM (
        SELECT CASE WHEN path = '' THEN ''
                    ELSE coalesce(payload #>> string_to_array(path, '.'), '') END AS key
      ) AS own
$$ LANGUAGE sql IMMUTABLE PARALLEL SAFE;
"""


class Migration(migrations.Migration):
    dependencies = [("capataz", "0010_circuits")]

    operations = [
        migrations.RunSQL(LANE, "DROP FUNCTION capataz_lane(text, jsonb, text)"),
        migrations.CreateModel(
            name="Rate",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "name", "key", blank=True, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("name", models.CharField(max_length=200)),
                ("key", models.TextField()),
                ("unused_at", models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name="TypePolicy",
            fields=[
                (
                    "name",
                    models.CharField(
                        max_length=64, primary_key=True, serialize=False, verbose_name="type"
                    ),
                ),
                (
                    "override",
                    models.JSONField(
                        default=dict,
                        help_text="Parts in place of those declared, such as"
                        ' {"limits": [{"concurrency": 5}]}; [] lifts all limits.',
                    ),
                ),
                (
                    "changed_at",
                    models.DateTimeField(
                        db_default=django.db.models.functions.datetime.Now(), editable=False
                    ),
                ),
            ],
            options={"ordering": ["name"], "verbose_name_plural": "type policies"},
        ),
        migrations.AddField(
            model_name="task",
            name="lane",
            field=models.TextField(
                blank=True,
                db_collation="C",
                editable=False,
                help_text="Where it waits if its type is limited: with all of its type, or of its key.",
                null=True,
            ),
        ),
        migrations.RemoveIndex(model_name="task", name="capataz_task_waiting"),
        migrations.AddIndex(
            model_name="task",
            index=models.Index(
                models.F("queue"),
                models.OrderBy(models.F("priority"), descending=True),
                models.F("created_at"),
                models.F("id"),
                condition=models.Q(
                    ("lane__isnull", True), ("released_at__isnull", True), ("state", "queued")
                ),
                name="capataz_task_waiting",
            ),
        ),
        migrations.AddIndex(
            model_name="task",
            index=models.Index(
                models.F("queue"),
                models.F("lane"),
                models.OrderBy(models.F("priority"), descending=True),
                models.F("created_at"),
                models.F("id"),
                condition=models.Q(
                    ("lane__isnull", False), ("released_at__isnull", True), ("state", "queued")
                ),
                name="capataz_task_lanes",
            ),
        ),
    ]
