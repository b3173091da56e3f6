-- room: how many tasks wait in a queue, counted no further than its limit, and how many of these submissions
-- are not known yet. Each kind of waiting has an index of its own, of which no more than that is read.
-- The caller holds the queue's lock: nobody else adds to what waits, except tasks that come back, which
-- were accepted before.
SELECT (
           SELECT count(*)
             FROM (
               (SELECT
                  FROM capataz_task
                 WHERE queue = %(queue)s AND state = 'queued' AND released_at IS NULL AND lane IS NULL
                 ORDER BY priority DESC, created_at, id
                 LIMIT %(limit)s)
                UNION ALL
               (SELECT
                  FROM capataz_task
                 WHERE queue = %(queue)s AND state = 'queued' AND released_at IS NULL AND lane IS NOT NULL
                 ORDER BY lane, priority DESC, created_at, id
                 LIMIT %(limit)s)
                UNION ALL
               SELECT
                 FROM capataz_task
                WHERE queue = %(queue)s AND worker_id IS NULL AND released_at IS NOT NULL
                UNION ALL
               SELECT
                 FROM capataz_task
                WHERE queue = %(queue)s AND state IN ('scheduled', 'retrying')
                LIMIT %(limit)s
             ) AS waiting
       ),
       (
           SELECT count(DISTINCT coalesce(given.key, given.id::text))
             FROM unnest(%(id)s::uuid[], %(key)s::text[]) AS given (id, key)
            WHERE NOT EXISTS (SELECT FROM capataz_task AS same WHERE same.id = given.id)
              AND NOT EXISTS (SELECT FROM capataz_task AS same WHERE same.key = given.key)
       );
