-- withdraw_queues_of: a worker that ended, or lost its connection, may have taken messages out of Redis and
-- claimed nothing yet. Every unclaimed task of its queues waits again and is released anew; messages that
-- still exist do no harm.
UPDATE capataz_task AS task
   SET released_at = NULL, verify_at = NULL, publishes = 0
  FROM (
    SELECT id
      FROM capataz_task
     WHERE worker_id IS NULL
       AND released_at IS NOT NULL
       AND queue = ANY(SELECT unnest(queues) FROM capataz_worker WHERE id = %(worker)s)
       FOR UPDATE SKIP LOCKED
  ) AS unclaimed
 WHERE task.id = unclaimed.id;
