-- settle_children: move these tasks as their parents' ends want it. One that waits is cancelled as soon as a
-- parent on which it insists has not succeeded, and queued when no parent is left. One that was cancelled for
-- a parent, and for nothing else, waits again when that parent has been retried; without the unique key that it
-- held, which another task may hold by now. Rows that somebody has locked do not come back: the caller sees to
-- it that they are looked at again.
WITH child AS (
    SELECT id, state, finished_at
      FROM capataz_task
     WHERE id = ANY(%(children)s::uuid[])
       AND state IN ('blocked', 'cancelled')
       FOR UPDATE SKIP LOCKED
), verdict AS (
    SELECT child.id,
           CASE WHEN child.state = 'blocked' AND failed.yes THEN 'cancelled'
                WHEN child.state = 'blocked' AND NOT EXISTS (
                    SELECT FROM capataz_dependency WHERE child_id = child.id AND outcome IS NULL
                ) THEN 'queued'
                WHEN child.state = 'cancelled' AND NOT failed.yes AND EXISTS (
                    SELECT FROM capataz_dependency
                     WHERE child_id = child.id AND cancelled_at = child.finished_at
                ) THEN 'blocked' END AS state
      FROM child
     CROSS JOIN LATERAL (
           SELECT EXISTS (
               SELECT FROM capataz_dependency
                WHERE child_id = child.id
                  AND on_failure = 'cancel' AND outcome IS NOT NULL AND outcome <> 'succeeded'
           ) AS yes
           ) AS failed
), moved AS (
    UPDATE capataz_task AS task
       SET state = CASE WHEN verdict.state = 'queued' AND task.run_at > now() THEN 'scheduled'
                        ELSE verdict.state END,
           run_at = CASE WHEN verdict.state <> 'queued' OR task.run_at > now() THEN task.run_at
                         ELSE now() END,
           finished_at = CASE WHEN verdict.state = 'cancelled' THEN now() END,
           unique_key = CASE WHEN verdict.state <> 'blocked' THEN task.unique_key END,
           error = CASE WHEN verdict.state = 'cancelled' THEN 'a task that it waits for has not succeeded' END,
           cancel_requested_at = NULL
      FROM verdict
     WHERE task.id = verdict.id
       AND verdict.state IS NOT NULL
    RETURNING task.id, task.key, task.type, task.state
), because AS (
    UPDATE capataz_dependency AS dependency
       SET cancelled_at = now()
      FROM moved
     WHERE moved.state = 'cancelled'
       AND dependency.child_id = moved.id
       AND dependency.on_failure = 'cancel' AND dependency.outcome IS NOT NULL AND dependency.outcome <> 'succeeded'
), event AS (
    INSERT INTO capataz_event (at, kind, task_id, subject, detail)
    SELECT now(), CASE state WHEN 'cancelled' THEN 'task.cancelled' ELSE 'task.blocked' END,
           id, coalesce(key, id::text), jsonb_build_object('type', type, 'because', 'of its parents')
      FROM moved
     WHERE state IN ('cancelled', 'blocked')
)
SELECT child.id, moved.state
  FROM child
  LEFT JOIN moved ON moved.id = child.id;
