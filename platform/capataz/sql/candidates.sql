-- candidates: the first waiting tasks of each of these lanes, and of those outside of lanes, as many as may
-- be released; and of each priority the oldest, which is the first in the index, if it has waited too long since
-- its time had come.
WITH stream AS (
    SELECT * FROM unnest(%(lanes)s::text[], %(rooms)s::int[], %(weights)s::text[]) AS given (lane, room, weight)
), candidate AS (
    SELECT stream.lane, first.*, false AS aged
      FROM stream
     CROSS JOIN LATERAL (
           SELECT task.id, task.type, task.priority, task.created_at,
                  left(task.payload #>> string_to_array(stream.weight, '.'), 20) AS weight
             FROM capataz_task AS task
            WHERE task.queue = %(queue)s AND task.state = 'queued' AND task.released_at IS NULL
              AND task.lane = stream.lane
            ORDER BY task.priority DESC, task.created_at, task.id
            LIMIT stream.room
           ) AS first
     UNION ALL
    SELECT stream.lane, eldest.id, eldest.type, eldest.priority, eldest.created_at, eldest.weight, true
      FROM stream
     CROSS JOIN generate_series(0, 10) AS step (priority)
     CROSS JOIN LATERAL (
           SELECT task.id, task.type, task.priority, task.created_at, task.run_at,
                  left(task.payload #>> string_to_array(stream.weight, '.'), 20) AS weight
             FROM capataz_task AS task
            WHERE task.queue = %(queue)s AND task.state = 'queued' AND task.released_at IS NULL
              AND task.lane = stream.lane AND task.priority = step.priority
            ORDER BY task.created_at, task.id
            LIMIT 1
           ) AS eldest
     WHERE %(look_for_aged)s
       AND coalesce(eldest.run_at, eldest.created_at) <= now() - make_interval(secs => %(aged)s)
     UNION ALL
    SELECT NULL, plain.*, NULL, false
      FROM (
        SELECT task.id, task.type, task.priority, task.created_at
          FROM capataz_task AS task
         WHERE task.queue = %(queue)s AND task.state = 'queued' AND task.released_at IS NULL
           AND task.lane IS NULL AND task.type = ANY(%(types)s)
         ORDER BY task.priority DESC, task.created_at, task.id
         LIMIT %(most)s
      ) AS plain
     UNION ALL
    SELECT NULL, eldest.id, eldest.type, eldest.priority, eldest.created_at, NULL, true
      FROM generate_series(0, 10) AS step (priority)
     CROSS JOIN LATERAL (
           SELECT task.id, task.type, task.priority, task.created_at, task.run_at
             FROM capataz_task AS task
            WHERE task.queue = %(queue)s AND task.state = 'queued' AND task.released_at IS NULL
              AND task.lane IS NULL AND task.type = ANY(%(types)s) AND task.priority = step.priority
            ORDER BY task.created_at, task.id
            LIMIT %(share)s
           ) AS eldest
     WHERE %(look_for_aged)s
       AND coalesce(eldest.run_at, eldest.created_at) <= now() - make_interval(secs => %(aged)s)
)
SELECT id, type, lane, priority, created_at, weight, aged FROM candidate;
