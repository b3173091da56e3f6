-- held_rows: what the table says that this worker holds, and which of it somebody wants cancelled.
SELECT task.id, task.run, task.cancel_requested_at IS NOT NULL
  FROM capataz_task AS task
 WHERE task.worker_id = %(worker)s
   AND task.released_at IS NOT NULL;
