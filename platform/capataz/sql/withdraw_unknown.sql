-- withdraw_unknown: a message was taken out of Redis by a worker that does not know its type. Its tasks wait
-- again and are released anew, for others; what a forged message names is left alone if this worker knows its
-- type. What somebody has locked is being claimed or ended.
UPDATE capataz_task AS task
   SET released_at = NULL, verify_at = NULL, publishes = 0
  FROM (
    SELECT id
      FROM capataz_task
     WHERE id = ANY(%(ids)s::uuid[])
       AND worker_id IS NULL
       AND released_at IS NOT NULL
       AND NOT type = ANY(%(known)s)
       FOR UPDATE SKIP LOCKED
  ) AS unknown
 WHERE task.id = unknown.id;
