-- park: of the first waiting tasks of a queue, those that may not be released without a further look move to
-- the lanes of their types: they were submitted before there was a limit, or no live worker knows them.
-- So they are met once, and nobody waits behind them.
WITH met AS (
    SELECT task.id, task.type
      FROM capataz_task AS task
     WHERE task.queue = %(queue)s AND task.state = 'queued' AND task.released_at IS NULL
       AND task.lane IS NULL
     ORDER BY task.priority DESC, task.created_at, task.id
     LIMIT %(most)s
), parked AS (
    SELECT task.id, coalesce(limited.path, '') AS path
      FROM met
      LEFT JOIN unnest(%(types)s::text[], %(paths)s::text[]) AS limited (type, path)
        ON limited.type = met.type
      JOIN capataz_task AS task ON task.id = met.id
     WHERE NOT met.type = ANY(%(free)s)
       AND task.state = 'queued' AND task.released_at IS NULL AND task.lane IS NULL
       FOR UPDATE OF task SKIP LOCKED
)
UPDATE capataz_task AS task
   SET lane = capataz_lane(task.type, task.payload, parked.path)
  FROM parked
 WHERE task.id = parked.id;
