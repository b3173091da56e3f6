-- aged_queues: the queues in which a task has waited too long behind others of a higher priority. The oldest
-- of a priority is its first in the index. It has waited since its time had come.
SELECT DISTINCT queue.name
  FROM capataz_queue AS queue
 CROSS JOIN LATERAL (
       SELECT task.priority
         FROM capataz_task AS task
        WHERE task.queue = queue.name AND task.state = 'queued' AND task.released_at IS NULL
          AND task.lane IS NULL
        ORDER BY task.priority DESC, task.created_at, task.id
        LIMIT 1
       ) AS first
 CROSS JOIN generate_series(0, 9) AS step (priority)
 CROSS JOIN LATERAL (
       SELECT coalesce(task.run_at, task.created_at) AS due_at
         FROM capataz_task AS task
        WHERE task.queue = queue.name AND task.state = 'queued' AND task.released_at IS NULL
          AND task.lane IS NULL AND task.priority = step.priority
        ORDER BY task.created_at, task.id
        LIMIT 1
       ) AS eldest
 WHERE queue.paused_at IS NULL
   AND step.priority < first.priority
   AND eldest.due_at <= now() - make_interval(secs => %(aged)s);
