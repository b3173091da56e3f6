"""Roll-ups, and how PostgreSQL counts times into their histograms."""

import django.contrib.postgres.fields
from django.db import migrations, models

FUNCTIONS = """
CREATE FUNCTION capataz_bounds() RETURNS float8[] LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT array_agg(0.001 * 2 ^ (step / 2.0::float8) ORDER BY step) FROM generate_series(0, 46) AS step
$$;

CREATE FUNCTION capataz_histogram(times float8[]) RETURNS int[] LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT array_agg(coalesce(found.times, 0) ORDER BY bucket)
      FROM generate_series(0, 47) AS bucket
      LEFT JOIN (
          SELECT width_bucket(seconds, capataz_bounds()) AS bucket, count(*)::int AS times
            FROM unnest(times) AS given (seconds)
           WHERE seconds IS NOT NULL
           GROUP BY 1
      ) AS found USING (bucket)
$$;

CREATE FUNCTION capataz_add(one int[], other int[]) RETURNS int[] LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT array_agg(a + b ORDER BY bucket) FROM unnest(one, other) WITH ORDINALITY AS pair (a, b, bucket)
$$;

CREATE AGGREGATE capataz_sum(int[]) (
    SFUNC = capataz_add, STYPE = int[], COMBINEFUNC = capataz_add, PARALLEL = SAFE,
    INITCOND = '{0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0}'
);
"""
DROP_FUNCTIONS = """
DROP AGGREGATE capataz_sum(int[]);
DROP FUNCTION capataz_add(int[], int[]);
DROP FUNCTION capataz_histogram(float8[]);
DROP FUNCTION capataz_bounds();
"""

# Most rows live for twenty seconds.
STORAGE = """
ALTER TABLE capataz_rollup SET (
    autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0
);
"""


class Migration(migrations.Migration):
    dependencies = [("capataz", "0001_initial")]

    operations = [
        migrations.CreateModel(
            name="Rollup",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("at", models.DateTimeField()),
                ("seconds", models.IntegerField()),
                ("queue", models.CharField(max_length=64)),
                ("type", models.CharField(max_length=64)),
                ("succeeded", models.IntegerField(db_default=0)),
                ("failed", models.IntegerField(db_default=0)),
                ("lost", models.IntegerField(db_default=0)),
                ("given_back", models.IntegerField(db_default=0)),
                ("cancelled", models.IntegerField(db_default=0)),
                ("dead", models.IntegerField(db_default=0, help_text="Tasks that became dead letters.")),
                ("run_seconds", models.FloatField(help_text="The sum of the run times.")),
                ("wait_seconds", models.FloatField(help_text="The sum of the waits.")),
                (
                    "run_times",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.IntegerField(), help_text="The histogram of the run times.", size=None
                    ),
                ),
                (
                    "wait_times",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.IntegerField(), help_text="The histogram of the waits.", size=None
                    ),
                ),
            ],
            options={
                "ordering": ["-at"],
                "indexes": [models.Index(models.F("seconds"), models.F("at"), name="capataz_rollup_span")],
                "constraints": [
                    models.UniqueConstraint(
                        models.F("at"),
                        models.F("seconds"),
                        models.F("queue"),
                        models.F("type"),
                        condition=models.Q(("seconds__gt", 0)),
                        name="one_per_stretch",
                    )
                ],
            },
        ),
        migrations.RunSQL(FUNCTIONS, reverse_sql=DROP_FUNCTIONS),
        migrations.RunSQL(STORAGE, reverse_sql=migrations.RunSQL.noop),
    ]
