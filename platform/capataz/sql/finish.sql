-- finish: end these runs, each in the state that its outcome leads to. Whoever no longer has the run is
-- refused: its row does not come back. Nor does a row that somebody has locked: it is tried again, so that
-- this statement never waits and cannot be part of a deadlock. A task whose cancellation was asked for
-- does not come back to life.
-- The attempt, the roll-up, and the event of whatever is not a plain success, are written by the same
-- statement.
-- Times are the database's: the worker says how many seconds ago something was.
-- A run ends once, even if it is given twice; and where two runs of one task are given, because a worker has
-- lost it and got it again, each outcome is only that of its own run.
WITH outcome AS (
    SELECT DISTINCT ON (id, run) *
      FROM unnest(
          %(ids)s::uuid[], %(runs)s::bigint[], %(states)s::text[], %(outcomes)s::text[],
          %(results)s::text[], %(errors)s::text[], %(tracebacks)s::text[],
          %(started_ago)s::float8[], %(ended_ago)s::float8[], %(delays)s::float8[], %(counted)s::bool[],
          %(causes)s::text[]
      ) AS given (
          id, run, state, outcome, result, error, traceback, started_ago, ended_ago, delay, counted, cause
      )
), held AS (
    SELECT task.id, task.run, task.worker_id, coalesce(task.run_at, task.created_at) AS due_at,
           CASE WHEN task.cancel_requested_at IS NOT NULL AND outcome.state <> 'succeeded'
                THEN 'cancelled' ELSE outcome.state END AS state
      FROM outcome
      JOIN capataz_task AS task ON task.id = outcome.id AND task.run = outcome.run
       FOR UPDATE OF task SKIP LOCKED
), moved AS (
    UPDATE capataz_task AS task
       SET state = held.state,
           result = outcome.result::jsonb,
           error = CASE WHEN outcome.outcome IN ('given_back', 'snoozed') THEN task.error ELSE outcome.error END,
           cause = CASE WHEN held.state = 'dead' THEN outcome.cause END,
           attempts = task.attempts + (outcome.outcome IN ('succeeded', 'failed'))::int,
           losses = task.losses + (outcome.outcome = 'lost' AND outcome.started_ago IS NOT NULL)::int,
           given_back = task.given_back + outcome.counted::int,
           snoozes = task.snoozes + (outcome.outcome = 'snoozed')::int,
           started_at = CASE WHEN outcome.started_ago IS NULL THEN task.started_at
                             ELSE now() - make_interval(secs => outcome.started_ago) END,
           finished_at = CASE WHEN held.state IN ('succeeded', 'dead', 'cancelled')
                              THEN now() - make_interval(secs => outcome.ended_ago) END,
           run_at = CASE held.state
                         WHEN 'retrying' THEN now() + make_interval(secs => outcome.delay)
                         WHEN 'scheduled' THEN now() + make_interval(secs => outcome.delay)
                         WHEN 'queued' THEN now() END,
           run = NULL,
           worker_id = NULL,
           released_at = NULL,
           verify_at = NULL,
           publishes = 0
      FROM held
      JOIN outcome ON outcome.id = held.id AND outcome.run = held.run
     WHERE task.id = held.id
    RETURNING task.id, task.type, task.queue, task.key, task.attempts, task.max_attempts, task.given_back,
              task.started_at, task.finished_at IS NOT NULL AS is_final,
              held.run, held.worker_id, held.state, held.due_at
), attempt AS (
    INSERT INTO capataz_attempt (
        task_id, run, worker_id, outcome, started_at, finished_at, error, traceback
    )
    SELECT moved.id, outcome.run, moved.worker_id, outcome.outcome,
           now() - make_interval(secs => outcome.started_ago),
           now() - make_interval(secs => outcome.ended_ago),
           outcome.error, outcome.traceback
      FROM moved
      JOIN outcome ON outcome.id = moved.id AND outcome.run = moved.run
     WHERE outcome.started_ago IS NOT NULL
), rollup AS (
    INSERT INTO capataz_rollup (
        at, seconds, queue, type, succeeded, failed, lost, given_back, cancelled, dead,
        run_seconds, wait_seconds, run_times, wait_times
    )
    SELECT now(), 0, queue, type,
           count(*) FILTER (WHERE outcome = 'succeeded'), count(*) FILTER (WHERE outcome = 'failed'),
           count(*) FILTER (WHERE outcome = 'lost'), count(*) FILTER (WHERE outcome = 'given_back'),
           count(*) FILTER (WHERE outcome = 'cancelled'), count(*) FILTER (WHERE state = 'dead'),
           sum(ran), sum(waited), capataz_histogram(array_agg(ran)), capataz_histogram(array_agg(waited))
      FROM (
        SELECT moved.queue, moved.type, moved.state, outcome.outcome,
               greatest(outcome.started_ago - outcome.ended_ago, 0) AS ran,
               greatest(extract(epoch FROM moved.started_at - moved.due_at), 0)::float8 AS waited
          FROM moved
          JOIN outcome ON outcome.id = moved.id AND outcome.run = moved.run
         WHERE outcome.started_ago IS NOT NULL
           AND outcome.outcome <> 'snoozed'  -- not an attempt, but a look whether it is time
      ) AS ended
     GROUP BY queue, type
), event AS (
    INSERT INTO capataz_event (at, kind, task_id, worker_id, subject, detail)
    SELECT now(),
           'task.' || CASE WHEN outcome.counted AND moved.given_back >= %(alert)s THEN 'givenBackOften'
                           WHEN outcome.outcome = 'given_back' AND moved.state = 'queued' THEN 'givenBack'
                           WHEN moved.state = 'queued' THEN outcome.outcome
                           WHEN moved.state = 'scheduled' THEN 'snoozed'
                           ELSE moved.state END,
           moved.id, moved.worker_id, coalesce(moved.key, moved.id::text),
           jsonb_build_object('type', moved.type, 'attempts', moved.attempts,
                              'maxAttempts', moved.max_attempts, 'givenBack', moved.given_back,
                              'error', left(outcome.error, 500))
      FROM moved
      JOIN outcome ON outcome.id = moved.id AND outcome.run = moved.run
     WHERE moved.state <> 'succeeded'
       AND (outcome.started_ago IS NOT NULL OR moved.state <> 'queued' OR outcome.counted)
)
SELECT moved.id, moved.run, moved.worker_id, moved.is_final FROM moved;
