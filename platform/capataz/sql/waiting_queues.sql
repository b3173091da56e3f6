-- waiting_queues: the queues that are not paused and hold tasks to release.
SELECT queue.name
  FROM capataz_queue AS queue
 WHERE queue.paused_at IS NULL
   AND EXISTS (
       SELECT FROM capataz_task AS task
        WHERE task.state = 'queued' AND task.released_at IS NULL AND task.queue = queue.name
       );
