-- release: the next waiting tasks of one queue, by priority and then by age, may be claimed from now on.
-- Only types that a live worker knows. The caller holds the queue's advisory lock; rows that are locked
-- (being cancelled, say) are skipped.
UPDATE capataz_task AS task
   SET released_at = now(),
       verify_at = now() + make_interval(secs => %(verify)s),
       publishes = 1
  FROM (
    SELECT id
      FROM capataz_task
     WHERE state = 'queued'
       AND released_at IS NULL
       AND queue = %(queue)s
       AND type = ANY(%(types)s)
     ORDER BY priority DESC, id
     LIMIT %(most)s
       FOR UPDATE SKIP LOCKED
  ) AS next
 WHERE task.id = next.id
RETURNING task.id, task.type, task.queue, task.priority,
          task.attempts + task.losses + task.worker_losses + task.given_back > 0,
          octet_length(task.payload::text);
