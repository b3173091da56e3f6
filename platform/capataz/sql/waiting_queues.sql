-- waiting_queues: the queues that are not paused and hold tasks to release. The first task of each is looked
-- up: of an EXISTS, PostgreSQL makes a join that reads all that wait.
SELECT queue.name
  FROM capataz_queue AS queue
 CROSS JOIN LATERAL (
       SELECT
         FROM capataz_task AS task
        WHERE task.queue = queue.name AND task.state = 'queued' AND task.released_at IS NULL
        ORDER BY task.priority DESC, task.created_at, task.id
        LIMIT 1
       ) AS first
 WHERE queue.paused_at IS NULL;
