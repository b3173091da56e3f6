-- withdraw_aged: tasks that have been released and have grown too old unclaimed, behind others of a higher
-- priority in Redis, wait again: they are released anew as aged ones, and announced as the most urgent.
UPDATE capataz_task AS task
   SET released_at = NULL, verify_at = NULL, publishes = 0
  FROM (
    SELECT id
      FROM capataz_task
     WHERE worker_id IS NULL
       AND released_at IS NOT NULL
       AND priority < 9
       AND coalesce(run_at, created_at) + make_interval(secs => %(aged)s) BETWEEN released_at AND now()
     LIMIT %(most)s
       FOR UPDATE SKIP LOCKED
  ) AS aged
 WHERE task.id = aged.id;
