-- meet_unique: submissions whose unique keys are held meet the tasks that hold them. A key whose time is over,
-- or whose task has gone too far for the submission's mode, is freed; the task keeps on without it. Else the
-- task that waits takes the latest of what was submitted, or stays as it is. A submission that finds nobody
-- any more does not come back: it is inserted again. So is one whose verdict is "free", or "follow": then no
-- sooner than the period of the task before is over.
-- Only what is to be changed is locked, in the order of the keys. The condition is that of the unique index.
WITH given AS (
    SELECT *
      FROM unnest(
          %(place)s::int[], %(unique_key)s::text[], %(mode)s::text[], %(payload)s::text[],
          %(priority)s::smallint[], %(run_at)s::timestamptz[], %(delay)s::float8[], %(max_wait)s::float8[],
          %(factor)s::float8[], %(after)s::int[], %(longest)s::float8[]
      ) AS given (
          place, unique_key, mode, payload, priority, run_at, delay, max_wait, factor, after, longest
      )
), latest AS (
    SELECT DISTINCT ON (unique_key) *, count(*) OVER (PARTITION BY unique_key) AS changes
      FROM given
     ORDER BY unique_key, place DESC
), seen AS (
    SELECT task.id, task.unique_key,
           latest.mode NOT IN ('return', 'reject')
           OR coalesce(task.unique_until <= clock_timestamp(), false)
           OR (task.unique_scope = 'waiting' AND task.state IN ('claimed', 'running')) AS to_be_locked
      FROM latest
      JOIN capataz_task AS task ON task.unique_key = latest.unique_key
     WHERE task.finished_at IS NULL
        OR task.unique_scope IN ('always', 'trailing')
        OR (task.state = 'dead' AND task.unique_scope = 'until_success')
), held AS (
    SELECT task.id, task.unique_key, task.unique_scope, task.unique_until, task.unique_changes, task.state,
           task.run_at, task.released_at, task.created_at
      FROM seen
      JOIN capataz_task AS task ON task.id = seen.id
     WHERE seen.to_be_locked
       AND task.unique_key = seen.unique_key
       AND (task.finished_at IS NULL
            OR task.unique_scope IN ('always', 'trailing')
            OR (task.state = 'dead' AND task.unique_scope = 'until_success'))
     ORDER BY task.unique_key
       FOR UPDATE OF task
), verdict AS (
    SELECT held.*, latest.mode, latest.payload, latest.priority,
           CASE
               WHEN held.unique_until <= clock.now THEN 'free'
               WHEN latest.mode = 'trailing' AND held.unique_until IS NOT NULL
                    AND NOT (held.unique_scope = 'trailing' AND rests.rests) THEN 'follow'
               WHEN latest.mode IN ('debounce', 'trailing') AND NOT rests.rests THEN 'free'
               WHEN latest.mode = 'replace'
                    AND (held.state NOT IN ('scheduled', 'blocked', 'queued', 'retrying')
                         OR held.released_at IS NOT NULL) THEN 'free'
               WHEN latest.mode IN ('return', 'reject')
                    AND held.unique_scope = 'waiting' AND held.state IN ('claimed', 'running') THEN 'free'
               WHEN latest.mode IN ('return', 'reject') THEN 'keep'
               ELSE 'change'
           END AS verdict,
           CASE
               WHEN latest.mode = 'replace'
               THEN coalesce(latest.run_at, clock.now + make_interval(secs => latest.delay))
               ELSE least(
                   held.created_at + make_interval(secs => latest.max_wait),
                   clock.now + make_interval(secs => least(
                       latest.longest,
                       latest.delay * latest.factor ^ least(greatest(1 + changed.times - latest.after, 0), 60)
                   ))
               )
           END AS due,
           changed.times, clock.now
      FROM held
      JOIN latest ON latest.unique_key = held.unique_key
     CROSS JOIN (SELECT clock_timestamp() AS now OFFSET 0) AS clock
     CROSS JOIN LATERAL (
           -- Due tasks are let go: whoever releases them would skip them for as long as they change.
           SELECT held.state IN ('scheduled', 'retrying') AND held.run_at > clock.now AS rests
     ) AS rests
     CROSS JOIN LATERAL (
           SELECT least(coalesce(held.unique_changes, 0) + latest.changes, 1000000)::int AS times
     ) AS changed
), changed AS (
    UPDATE capataz_task AS task
       SET unique_key = CASE WHEN verdict.verdict = 'change' THEN task.unique_key END,
           unique_changes = verdict.times,
           payload = CASE WHEN verdict.verdict = 'change' THEN verdict.payload::jsonb ELSE task.payload END,
           lane = CASE WHEN verdict.verdict = 'change'
                       THEN capataz_lane(task.type, verdict.payload::jsonb, split_part(task.lane, '|', 2))
                       ELSE task.lane END,
           priority = CASE WHEN verdict.verdict = 'change' AND verdict.mode = 'replace'
                           THEN verdict.priority ELSE task.priority END,
           attempts = CASE WHEN verdict.verdict = 'change' AND task.state = 'retrying'
                           THEN 0 ELSE task.attempts END,
           state = CASE WHEN verdict.verdict = 'change' AND verdict.mode = 'replace'
                             AND task.state IN ('scheduled', 'queued')
                        THEN CASE WHEN verdict.due > verdict.now THEN 'scheduled' ELSE 'queued' END
                        ELSE task.state END,
           run_at = CASE WHEN verdict.verdict <> 'change' THEN task.run_at
                         WHEN verdict.mode = 'debounce' AND task.state = 'scheduled' THEN verdict.due
                         WHEN verdict.mode = 'replace' AND task.state IN ('scheduled', 'queued')
                         THEN CASE WHEN verdict.due > verdict.now THEN verdict.due END
                         ELSE task.run_at END
      FROM verdict
     WHERE task.id = verdict.id
       AND verdict.verdict <> 'keep'
    RETURNING task.id
)
SELECT given.place, seen.id, coalesce(verdict.verdict, 'keep'), verdict.unique_until
  FROM given
  JOIN seen ON seen.unique_key = given.unique_key
  LEFT JOIN verdict ON verdict.unique_key = given.unique_key
 WHERE verdict.id IS NOT NULL
    OR NOT seen.to_be_locked;
