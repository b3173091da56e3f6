-- in_use: the slots that are taken, from the release of a task to the end of its run: how many by each type
-- and lane, and how many of them nobody has claimed yet. Counted, so nothing can drift; the caller holds the
-- locks of these types, so nobody adds to them. A task that was released before its type was limited, or
-- by another key, has no lane of today's, so its payload is read.
SELECT out.type, out.lane, count(*), count(*) FILTER (WHERE out.worker_id IS NULL)
  FROM (
    SELECT task.type, task.worker_id,
           CASE WHEN starts_with(task.lane, task.type || '|' || limited.path || '|') THEN task.lane
                ELSE capataz_lane(task.type, task.payload, limited.path) END AS lane
      FROM capataz_task AS task
      JOIN unnest(%(types)s::text[], %(paths)s::text[]) AS limited (type, path)
        ON limited.type = task.type
     WHERE task.released_at IS NOT NULL
  ) AS out
 GROUP BY out.type, out.lane;
