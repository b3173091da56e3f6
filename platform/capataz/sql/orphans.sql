-- orphans: workers that are not alive and still hold tasks.
SELECT DISTINCT task.worker_id
  FROM capataz_task AS task
 WHERE task.released_at IS NOT NULL
   AND task.worker_id IS NOT NULL
   AND NOT EXISTS (
       SELECT FROM capataz_worker AS worker
        WHERE worker.id = task.worker_id AND worker.state IN ('running', 'draining')
       );
