-- release_due: tasks whose time has come wait for a worker like all others. Rows that somebody has
-- locked are left for the next look.
UPDATE capataz_task AS task
   SET state = 'queued'
  FROM (
    SELECT id
      FROM capataz_task
     WHERE state IN ('scheduled', 'retrying')
       AND run_at <= now()
     ORDER BY run_at
     LIMIT %(most)s
       FOR UPDATE SKIP LOCKED
  ) AS due
 WHERE task.id = due.id;
