-- waiting_queues: the queues that are not paused and hold tasks to release, and whether some of these wait
-- outside of lanes, and some in lanes. The first task of each kind is looked up: of an EXISTS, PostgreSQL
-- makes a join that reads all that wait.
SELECT queue.name, plain.waits IS NOT NULL, laned.waits IS NOT NULL
  FROM capataz_queue AS queue
  LEFT JOIN LATERAL (
       SELECT true AS waits
         FROM capataz_task AS task
        WHERE task.queue = queue.name AND task.state = 'queued' AND task.released_at IS NULL
          AND task.lane IS NULL
        ORDER BY task.priority DESC, task.created_at, task.id
        LIMIT 1
       ) AS plain ON true
  LEFT JOIN LATERAL (
       SELECT true AS waits
         FROM capataz_task AS task
        WHERE task.queue = queue.name AND task.state = 'queued' AND task.released_at IS NULL
          AND task.lane IS NOT NULL
        ORDER BY task.lane, task.priority DESC, task.created_at, task.id
        LIMIT 1
       ) AS laned ON true
 WHERE queue.paused_at IS NULL
   AND (plain.waits OR laned.waits);
