-- change_lanes: tasks in these lanes, whose types have another key by now, move to their lanes of today.
WITH met AS (
    SELECT task.id, stale.path
      FROM unnest(%(lanes)s::text[], %(paths)s::text[]) AS stale (lane, path)
     CROSS JOIN LATERAL (
           SELECT inner_task.id
             FROM capataz_task AS inner_task
            WHERE inner_task.queue = %(queue)s AND inner_task.state = 'queued'
              AND inner_task.released_at IS NULL AND inner_task.lane = stale.lane
            ORDER BY inner_task.priority DESC, inner_task.created_at, inner_task.id
            LIMIT %(most)s
           ) AS task
), moving AS (
    SELECT task.id, met.path
      FROM met
      JOIN capataz_task AS task ON task.id = met.id
     WHERE task.state = 'queued' AND task.released_at IS NULL
       FOR UPDATE OF task SKIP LOCKED
)
UPDATE capataz_task AS task
   SET lane = capataz_lane(task.type, task.payload, moving.path)
  FROM moving
 WHERE task.id = moving.id;
