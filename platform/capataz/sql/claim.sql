-- claim: give one worker the right to run these tasks. An id that does not come back has nothing to
-- run: the task was taken, cancelled, finished, held back or is past its deadline, and the message was a
-- duplicate or came too late. A claim whose answer was lost may be sent again: it finds its own run.
-- A worker that has been given up for dead is granted nothing. What somebody else has locked is skipped,
-- so that this statement never waits. No condition names the state: PostgreSQL would prefer a partial
-- index to the primary key; released and without a run is queued, by the table's constraints.
WITH announced AS (
    SELECT * FROM unnest(%(ids)s::uuid[], %(runs)s::bigint[]) AS given (id, run)
), grantable AS (
    SELECT task.id, announced.run
      FROM announced
      JOIN capataz_task AS task ON task.id = announced.id
     WHERE ((task.released_at IS NOT NULL AND task.run IS NULL) OR task.run = announced.run)
       AND (task.expires_at IS NULL OR task.expires_at > now() OR task.run = announced.run)
       AND EXISTS (
           SELECT FROM capataz_worker AS worker WHERE worker.id = %(worker)s AND worker.state = 'running'
       )
       FOR UPDATE OF task SKIP LOCKED
)
UPDATE capataz_task AS task
   SET state = CASE WHEN task.state = 'running' THEN 'running' ELSE 'claimed' END,
       run = grantable.run,
       worker_id = %(worker)s
  FROM grantable
 WHERE task.id = grantable.id
RETURNING task.id, task.run, task.type, task.payload::text, task.attempts, task.max_attempts,
          task.losses, task.worker_losses, task.soft_time_limit, task.time_limit, task.snoozes, task.backoff,
          task.workflow_id IS NOT NULL;
