-- cancel_workflow: cancel what waits of a workflow, and ask for what is held to be stopped. Rows that somebody has
-- locked are waited for, in the order of their ids: it is a person who asks, and nothing of the engine waits.
WITH unfinished AS (
    SELECT id, run
      FROM capataz_task
     WHERE workflow_id = %(workflow)s
       AND finished_at IS NULL
     ORDER BY id
       FOR UPDATE
), moved AS (
    UPDATE capataz_task AS task
       SET state = CASE WHEN unfinished.run IS NULL THEN 'cancelled' ELSE task.state END,
           finished_at = CASE WHEN unfinished.run IS NULL THEN now() END,
           cancel_requested_at = CASE WHEN unfinished.run IS NOT NULL
                                      THEN coalesce(task.cancel_requested_at, now()) END,
           released_at = CASE WHEN unfinished.run IS NOT NULL THEN task.released_at END,
           run_at = CASE WHEN unfinished.run IS NOT NULL THEN task.run_at END,
           verify_at = NULL,
           publishes = 0
      FROM unfinished
     WHERE task.id = unfinished.id
    RETURNING task.id, task.key, task.type, task.state
), event AS (
    INSERT INTO capataz_event (at, kind, task_id, subject, detail)
    SELECT now(), CASE state WHEN 'cancelled' THEN 'task.cancelled' ELSE 'task.cancelRequested' END,
           id, coalesce(key, id::text),
           jsonb_build_object('type', type, 'because', %(because)s::text, 'by', %(by)s::text)
      FROM moved
)
SELECT id, state FROM moved;
