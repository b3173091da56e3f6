-- release: the next waiting tasks of one queue, by priority and then by age (not by id, which a client may
-- have chosen), may be claimed from now on: as many as fill the room that is left, where a task takes its
-- share of a bundle of its type. Only types that a live worker knows, and nothing limits. The caller holds the queue's
-- advisory lock; rows that are locked (being cancelled, say) are skipped.
WITH candidate AS (
    SELECT id, type, priority, created_at
      FROM capataz_task
     WHERE state = 'queued'
       AND released_at IS NULL
       AND lane IS NULL
       AND queue = %(queue)s
       AND type = ANY(%(types)s)
     ORDER BY priority DESC, created_at, id
     LIMIT %(most)s
), filling AS (
    SELECT candidate.id,
           sum(bundle.share) OVER (ORDER BY candidate.priority DESC, candidate.created_at, candidate.id) - bundle.share AS filled
      FROM candidate
      JOIN unnest(%(types)s::text[], %(shares)s::float8[]) AS bundle (type, share)
        ON bundle.type = candidate.type
), next AS (
    SELECT task.id
      FROM filling
      JOIN capataz_task AS task ON task.id = filling.id
     WHERE filling.filled < %(room)s
       AND task.released_at IS NULL
       AND task.state = 'queued'
       FOR UPDATE OF task SKIP LOCKED
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
