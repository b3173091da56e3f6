-- mark_schedules: the due times of these schedules up to the mark are ours to submit for. Whoever has seen
-- another mark than the one that stands is too late; what another beat settles just now, or somebody is
-- changing, is skipped, and so is what was switched off meanwhile.
-- Beside it goes what django-celery-beat's own admin shows. One that fires once and is switched on again is a
-- new schedule: then its rule is another one.
WITH given AS (
    SELECT *
      FROM unnest(%(ids)s::bigint[], %(seen)s::timestamptz[], %(marks)s::timestamptz[], %(runs)s::boolean[])
           AS given (id, seen, mark, runs)
), free AS (
    SELECT schedule.periodic_task_id AS id, given.mark, given.runs, periodic.one_off
      FROM given
      JOIN capataz_schedule AS schedule
        ON schedule.periodic_task_id = given.id AND schedule.last_due = given.seen
      JOIN django_celery_beat_periodictask AS periodic ON periodic.id = given.id AND periodic.enabled
     ORDER BY schedule.periodic_task_id
       FOR NO KEY UPDATE OF schedule, periodic SKIP LOCKED
), counted AS (
    UPDATE django_celery_beat_periodictask AS periodic
       SET last_run_at = now(),
           total_run_count = total_run_count + 1,
           enabled = NOT periodic.one_off
      FROM free
     WHERE periodic.id = free.id AND free.runs
)
UPDATE capataz_schedule AS schedule
   SET last_due = free.mark,
       rule = CASE WHEN free.one_off AND free.runs THEN '' ELSE schedule.rule END
  FROM free
 WHERE schedule.periodic_task_id = free.id
RETURNING schedule.periodic_task_id;
