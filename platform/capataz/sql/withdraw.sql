-- withdraw: released tasks of queues that are paused, or of types that no live worker knows, wait again.
UPDATE capataz_task AS task
   SET released_at = NULL, verify_at = NULL, publishes = 0
  FROM (
    SELECT id
      FROM capataz_task
     WHERE worker_id IS NULL
       AND released_at IS NOT NULL
       AND NOT (queue = ANY(%(queues)s) AND type = ANY(%(types)s))
     LIMIT %(most)s
       FOR UPDATE SKIP LOCKED
  ) AS stranded
 WHERE task.id = stranded.id;
