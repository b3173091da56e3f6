-- mark_schedules: the due times of these schedules up to the mark are ours to submit for. Whoever has seen
-- another mark than the one that stands is too late, and what another beat settles just now is skipped.
WITH given AS (
    SELECT *
      FROM unnest(%(ids)s::bigint[], %(seen)s::timestamptz[], %(marks)s::timestamptz[])
           AS given (id, seen, mark)
), free AS (
    SELECT schedule.periodic_task_id AS id, given.mark
      FROM given
      JOIN capataz_schedule AS schedule
        ON schedule.periodic_task_id = given.id AND schedule.last_due = given.seen
     ORDER BY schedule.periodic_task_id
       FOR UPDATE OF schedule SKIP LOCKED
)
UPDATE capataz_schedule AS schedule
   SET last_due = free.mark
  FROM free
 WHERE schedule.periodic_task_id = free.id
RETURNING schedule.periodic_task_id;
