-- queue_load: what waits and runs in each queue, and since when the oldest waits. What waits unreleased is
-- counted up to a cap, and its oldest is looked up for each priority, so that both read only the first
-- entries of an index; in lanes, the oldest is the oldest of as many as are counted. What is released is little
-- by nature.
WITH released AS (
    SELECT queue,
           least(count(*) FILTER (WHERE worker_id IS NULL), %(cap)s) AS unclaimed,
           count(*) FILTER (WHERE state = 'claimed') AS claimed,
           count(*) FILTER (WHERE state = 'running') AS running,
           min(created_at) FILTER (WHERE worker_id IS NULL) AS oldest
      FROM capataz_task
     WHERE released_at IS NOT NULL
     GROUP BY queue
)
SELECT queue.name, queue.paused_at, queue.pause_reason, queue.waiting_limit,
       least(%(cap)s, unreleased.count + coalesce(released.unclaimed, 0)),
       later.count,
       coalesce(released.claimed, 0),
       coalesce(released.running, 0),
       extract(epoch FROM now() - least(first.oldest, released.oldest))::float8
  FROM capataz_queue AS queue
  LEFT JOIN released ON released.queue = queue.name
 CROSS JOIN LATERAL (
       SELECT count(*)
         FROM (
           (SELECT
              FROM capataz_task AS task
             WHERE task.queue = queue.name AND task.state = 'queued' AND task.released_at IS NULL
               AND task.lane IS NULL
             ORDER BY task.priority DESC, task.created_at, task.id
             LIMIT %(cap)s)
            UNION ALL
           (SELECT
              FROM capataz_task AS task
             WHERE task.queue = queue.name AND task.state = 'queued' AND task.released_at IS NULL
               AND task.lane IS NOT NULL
             ORDER BY task.lane, task.priority DESC, task.created_at, task.id
             LIMIT %(cap)s)
            LIMIT %(cap)s
         ) AS capped
       ) AS unreleased
 CROSS JOIN LATERAL (
       SELECT count(*)
         FROM (
           SELECT
             FROM capataz_task AS task
            WHERE task.queue = queue.name AND task.state IN ('scheduled', 'retrying')
            LIMIT %(cap)s
         ) AS capped
       ) AS later
 CROSS JOIN LATERAL (
       SELECT min(eldest.created_at) AS oldest
         FROM generate_series(%(lowest)s::int, %(highest)s::int) AS step (priority)
        CROSS JOIN LATERAL (
              (SELECT task.created_at
                 FROM capataz_task AS task
                WHERE task.queue = queue.name AND task.state = 'queued' AND task.released_at IS NULL
                  AND task.lane IS NULL AND task.priority = step.priority
                ORDER BY task.created_at, task.id
                LIMIT 1)
               UNION ALL
              (SELECT min(capped.created_at)
                 FROM (
                   SELECT task.created_at
                     FROM capataz_task AS task
                    WHERE task.queue = queue.name AND task.state = 'queued' AND task.released_at IS NULL
                      AND task.lane IS NOT NULL AND step.priority = %(lowest)s
                    ORDER BY task.lane, task.priority DESC, task.created_at, task.id
                    LIMIT %(cap)s
                 ) AS capped)
              ) AS eldest
       ) AS first
 ORDER BY queue.name;
