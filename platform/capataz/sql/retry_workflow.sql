-- retry_workflow: queue again what of a workflow has ended without success, except what was cancelled for a parent:
-- that comes back with it. What has parents that are not done waits for them.
WITH ended AS (
    SELECT id
      FROM capataz_task AS task
     WHERE workflow_id = %(workflow)s
       AND finished_at IS NOT NULL
       AND state IN ('dead', 'cancelled', 'expired')
       AND NOT EXISTS (
           SELECT FROM capataz_dependency
            WHERE child_id = task.id AND cancelled_at = task.finished_at
       )
     ORDER BY id
       FOR UPDATE
), moved AS (
    UPDATE capataz_task AS task
       SET state = CASE WHEN EXISTS (
                            SELECT FROM capataz_dependency
                             WHERE child_id = task.id AND coalesce(outcome, 'none') <> 'succeeded'
                        ) THEN 'blocked' ELSE 'queued' END,
           attempts = 0, losses = 0, worker_losses = 0, orphaned = 0, given_back = 0,
           run_at = now(), finished_at = NULL, expires_at = NULL, cancel_requested_at = NULL,
           snoozes = 0, error = NULL, cause = NULL, progress = NULL, progress_message = NULL,
           unique_key = CASE WHEN task.unique_until <= now() THEN NULL ELSE task.unique_key END,
           settled_at = 'epoch'
      FROM ended
     WHERE task.id = ended.id
    RETURNING task.id, task.key, task.type
), event AS (
    INSERT INTO capataz_event (at, kind, task_id, subject, detail)
    SELECT now(), 'task.retried', id, coalesce(key, id::text), jsonb_build_object('type', type) FROM moved
)
SELECT id FROM moved;
