-- expire: tasks that nobody has started before their deadline end here, with an event each.
WITH late AS (
    SELECT id
      FROM capataz_task
     WHERE expires_at <= now()
       AND finished_at IS NULL
       AND state IN ('scheduled', 'blocked', 'queued', 'retrying')
     LIMIT %(most)s
       FOR UPDATE SKIP LOCKED
), expired AS (
    UPDATE capataz_task AS task
       SET state = 'expired', finished_at = now(), released_at = NULL, verify_at = NULL, run_at = NULL,
           error = 'not started before its deadline'
      FROM late
     WHERE task.id = late.id
    RETURNING task.id, task.key, task.type
), event AS (
    INSERT INTO capataz_event (at, kind, task_id, subject, detail)
    SELECT now(), 'task.expired', id, coalesce(key, id::text), jsonb_build_object('type', type)
      FROM expired
)
SELECT id FROM expired;
