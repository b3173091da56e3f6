-- recover: take the tasks of a dead worker back. One that had not started waits again, unspent. One that
-- ran has lost a worker: the first time it waits again at once, then for 2, 4, 8 ... seconds, and at the
-- limit it is quarantined. Rows that somebody has locked are taken at the next look, so that this
-- statement never waits.
WITH held AS (
    SELECT id, run, worker_id, state, started_at, worker_losses, cancel_requested_at
      FROM capataz_task
     WHERE worker_id = %(worker)s
       AND released_at IS NOT NULL
       FOR UPDATE SKIP LOCKED
), fate AS (
    SELECT id, run, worker_id, started_at, state = 'running' AS ran,
           worker_losses + (state = 'running')::int AS worker_losses,
           CASE WHEN cancel_requested_at IS NOT NULL THEN 'cancelled'
                WHEN state = 'running' AND worker_losses + 1 >= %(limit)s THEN 'dead'
                WHEN state = 'running' AND worker_losses >= 1 THEN 'retrying'
                ELSE 'queued' END AS state
      FROM held
), moved AS (
    UPDATE capataz_task AS task
       SET state = fate.state,
           worker_losses = fate.worker_losses,
           run_at = CASE WHEN fate.state = 'retrying'
                         THEN now() + make_interval(secs => least(%(cap)s, %(base)s * 2 ^ (fate.worker_losses - 2))) END,
           finished_at = CASE WHEN fate.state IN ('dead', 'cancelled') THEN now() END,
           error = CASE WHEN fate.state = 'dead'
                        THEN format('quarantined after %%s deaths of its worker', fate.worker_losses)
                        WHEN fate.ran THEN 'its worker died' ELSE task.error END,
           run = NULL, worker_id = NULL, released_at = NULL, verify_at = NULL, publishes = 0
      FROM fate
     WHERE task.id = fate.id
    RETURNING task.id, task.key, task.type, task.state, task.error
), attempt AS (
    INSERT INTO capataz_attempt (task_id, run, worker_id, outcome, started_at, finished_at, error)
    SELECT id, run, worker_id, 'lost', started_at, now(), 'its worker died' FROM fate WHERE ran
), event AS (
    INSERT INTO capataz_event (at, kind, task_id, worker_id, subject, detail)
    SELECT now(), CASE WHEN moved.state IN ('dead', 'cancelled') THEN 'task.' || moved.state ELSE 'task.lost' END,
           moved.id, fate.worker_id, coalesce(moved.key, moved.id::text),
           jsonb_build_object('type', moved.type, 'error', moved.error)
      FROM moved
      JOIN fate ON fate.id = moved.id
     WHERE fate.ran OR moved.state = 'cancelled'
)
SELECT id, state FROM moved;
