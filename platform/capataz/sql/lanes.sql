-- lanes: the lanes of a queue in which tasks wait, after the given one. Each is found by one look into the
-- index, however many tasks wait in it.
WITH RECURSIVE lane AS (
    (SELECT task.lane AS name
       FROM capataz_task AS task
      WHERE task.queue = %(queue)s AND task.state = 'queued' AND task.released_at IS NULL
        AND task.lane > %(after)s
      ORDER BY task.lane, task.priority DESC, task.created_at, task.id
      LIMIT 1)
     UNION ALL
    SELECT next.lane
      FROM lane
     CROSS JOIN LATERAL (
           SELECT task.lane
             FROM capataz_task AS task
            WHERE task.queue = %(queue)s AND task.state = 'queued' AND task.released_at IS NULL
              AND task.lane > lane.name
            ORDER BY task.lane, task.priority DESC, task.created_at, task.id
            LIMIT 1
           ) AS next
)
SELECT name FROM lane LIMIT %(most)s;
