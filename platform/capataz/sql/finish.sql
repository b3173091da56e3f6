-- finish: end these runs, each in the state that its outcome leads to. Whoever no longer has the run is
-- refused: its row does not come back. Nor does a row that somebody has locked: it is tried again, so that
-- this statement never waits and cannot be part of a deadlock. A task whose cancellation was asked for
-- does not come back to life.
-- The attempt, and the event of whatever is not a plain success, are written by the same statement.
-- Times are the database's: the worker says how many seconds ago something was.
WITH outcome AS (
    SELECT *
      FROM unnest(
          %(ids)s::uuid[], %(runs)s::bigint[], %(states)s::text[], %(outcomes)s::text[],
          %(results)s::text[], %(errors)s::text[], %(tracebacks)s::text[],
          %(started_ago)s::float8[], %(ended_ago)s::float8[], %(delays)s::float8[], %(counted)s::bool[]
      ) AS given (
          id, run, state, outcome, result, error, traceback, started_ago, ended_ago, delay, counted
      )
), held AS (
    SELECT task.id, task.worker_id,
           CASE WHEN task.cancel_requested_at IS NOT NULL AND outcome.state <> 'succeeded'
                THEN 'cancelled' ELSE outcome.state END AS state
      FROM outcome
      JOIN capataz_task AS task ON task.id = outcome.id AND task.run = outcome.run
       FOR UPDATE OF task SKIP LOCKED
), moved AS (
    UPDATE capataz_task AS task
       SET state = held.state,
           result = outcome.result::jsonb,
           error = CASE WHEN outcome.outcome = 'given_back' THEN task.error ELSE outcome.error END,
           attempts = task.attempts + (outcome.outcome IN ('succeeded', 'failed'))::int,
           losses = task.losses + (outcome.outcome = 'lost' AND outcome.started_ago IS NOT NULL)::int,
           given_back = task.given_back + outcome.counted::int,
           started_at = CASE WHEN outcome.started_ago IS NULL THEN task.started_at
                             ELSE now() - make_interval(secs => outcome.started_ago) END,
           finished_at = CASE WHEN held.state IN ('succeeded', 'dead', 'cancelled')
                              THEN now() - make_interval(secs => outcome.ended_ago) END,
           run_at = CASE WHEN held.state = 'retrying'
                         THEN now() + make_interval(secs => outcome.delay) END,
           run = NULL,
           worker_id = NULL,
           released_at = NULL,
           verify_at = NULL,
           publishes = 0
      FROM held
      JOIN outcome ON outcome.id = held.id
     WHERE task.id = held.id
    RETURNING task.id, task.type, task.key, task.attempts, task.max_attempts, held.worker_id, held.state,
              task.finished_at IS NOT NULL AS is_final
), attempt AS (
    INSERT INTO capataz_attempt (
        task_id, run, worker_id, outcome, started_at, finished_at, error, traceback
    )
    SELECT moved.id, outcome.run, moved.worker_id, outcome.outcome,
           now() - make_interval(secs => outcome.started_ago),
           now() - make_interval(secs => outcome.ended_ago),
           outcome.error, outcome.traceback
      FROM moved
      JOIN outcome ON outcome.id = moved.id
     WHERE outcome.started_ago IS NOT NULL
), event AS (
    INSERT INTO capataz_event (at, kind, task_id, worker_id, subject, detail)
    SELECT now(),
           'task.' || CASE WHEN moved.state = 'queued' THEN outcome.outcome ELSE moved.state END,
           moved.id, moved.worker_id, coalesce(moved.key, moved.id::text),
           jsonb_build_object('type', moved.type, 'attempts', moved.attempts,
                              'maxAttempts', moved.max_attempts, 'error', left(outcome.error, 500))
      FROM moved
      JOIN outcome ON outcome.id = moved.id
     WHERE moved.state <> 'succeeded'
       AND (outcome.started_ago IS NOT NULL OR moved.state <> 'queued' OR outcome.counted)
)
SELECT moved.id, moved.worker_id, moved.is_final FROM moved;
