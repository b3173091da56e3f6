-- recover: take the tasks of a dead worker back. One that ran has lost a worker. One that had not been shown
-- as running waits again unspent, but is counted as orphaned: a task that kills its worker in its first
-- milliseconds is never shown. After the first death of either kind it waits again at once, then for 2, 4,
-- 8 ... seconds, and at the limit it is quarantined. Rows that somebody has locked are taken at the next
-- look, so that this statement never waits.
WITH held AS (
    SELECT id, run, worker_id, state, started_at, worker_losses, orphaned, cancel_requested_at,
           coalesce(run_at, created_at) AS due_at
      FROM capataz_task
     WHERE worker_id = %(worker)s
       AND released_at IS NOT NULL
       FOR UPDATE SKIP LOCKED
), fate AS (
    SELECT id, run, worker_id, started_at, due_at, state = 'running' AS ran,
           worker_losses + orphaned + 1 AS deaths,
           CASE WHEN cancel_requested_at IS NOT NULL THEN 'cancelled'
                WHEN worker_losses + orphaned + 1 >= %(limit)s THEN 'dead'
                WHEN worker_losses + orphaned >= 1 THEN 'retrying'
                ELSE 'queued' END AS state
      FROM held
), moved AS (
    UPDATE capataz_task AS task
       SET state = fate.state,
           worker_losses = task.worker_losses + fate.ran::int,
           orphaned = task.orphaned + (NOT fate.ran)::int,
           run_at = CASE fate.state
                         WHEN 'retrying'
                         THEN now() + make_interval(secs => least(%(cap)s, %(base)s * 2 ^ (fate.deaths - 2)))
                         WHEN 'queued' THEN now() END,
           finished_at = CASE WHEN fate.state IN ('dead', 'cancelled') THEN now() END,
           error = CASE WHEN fate.state = 'dead'
                        THEN format('quarantined after %%s deaths of its worker', fate.deaths)
                        WHEN fate.ran THEN 'its worker died' ELSE task.error END,
           cause = CASE WHEN fate.state = 'dead' THEN 'its worker died' END,
           run = NULL, worker_id = NULL, released_at = NULL, verify_at = NULL, publishes = 0
      FROM fate
     WHERE task.id = fate.id
    RETURNING task.id, task.key, task.type, task.queue, task.state, task.error
), attempt AS (
    INSERT INTO capataz_attempt (task_id, run, worker_id, outcome, started_at, finished_at, error)
    SELECT id, run, worker_id, 'lost', started_at, now(), 'its worker died' FROM fate WHERE ran
), rollup AS (
    INSERT INTO capataz_rollup (
        at, seconds, queue, type, lost, dead, run_seconds, wait_seconds, run_times, wait_times
    )
    SELECT now(), 0, queue, type, count(*), count(*) FILTER (WHERE state = 'dead'),
           sum(ran), sum(waited), capataz_histogram(array_agg(ran)), capataz_histogram(array_agg(waited))
      FROM (
        SELECT moved.queue, moved.type, moved.state,
               extract(epoch FROM now() - fate.started_at)::float8 AS ran,
               greatest(extract(epoch FROM fate.started_at - fate.due_at), 0)::float8 AS waited
          FROM moved
          JOIN fate ON fate.id = moved.id
         WHERE fate.ran
      ) AS lost
     GROUP BY queue, type
), event AS (
    INSERT INTO capataz_event (at, kind, task_id, worker_id, subject, detail)
    SELECT now(), CASE WHEN moved.state IN ('dead', 'cancelled') THEN 'task.' || moved.state ELSE 'task.lost' END,
           moved.id, fate.worker_id, coalesce(moved.key, moved.id::text),
           jsonb_build_object('type', moved.type, 'error', moved.error)
      FROM moved
      JOIN fate ON fate.id = moved.id
     WHERE fate.ran OR moved.state IN ('dead', 'cancelled')
)
SELECT id, state FROM moved;
