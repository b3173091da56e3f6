-- meet_schedules: schedules that no beat has seen before, or whose rule is another now (off and on again
-- included), begin at the given time: nothing that was due before that is made up.
INSERT INTO capataz_schedule AS schedule (periodic_task_id, rule, last_due)
SELECT given.id, given.rule, given.since
  FROM unnest(%(ids)s::bigint[], %(rules)s::text[], %(since)s::timestamptz[]) AS given (id, rule, since)
  JOIN django_celery_beat_periodictask AS periodic ON periodic.id = given.id
 ORDER BY given.id
    ON CONFLICT (periodic_task_id) DO UPDATE
   SET rule = excluded.rule, last_due = excluded.last_due
 WHERE schedule.rule <> excluded.rule OR schedule.last_due IS NULL;
