-- release_chosen: these tasks may be claimed from now on, if they still wait; what the caller has chosen by
-- their limits. It holds the locks of the queue and of their types. Rows that are locked are skipped.
WITH next AS (
    SELECT task.id
      FROM capataz_task AS task
     WHERE task.id = ANY(%(ids)s::uuid[])
       AND task.queue = %(queue)s
       AND task.released_at IS NULL
       AND task.state = 'queued'
       FOR UPDATE SKIP LOCKED
)
UPDATE capataz_task AS task
   SET released_at = now(),
       verify_at = now() + make_interval(secs => %(verify)s),
       publishes = 1
  FROM next
 WHERE task.id = next.id
RETURNING task.id, task.type, task.queue, task.priority,
          task.attempts + task.losses + task.worker_losses + task.orphaned + task.given_back > 0,
          octet_length(task.payload::text);
