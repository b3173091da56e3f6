-- out: how many tasks of each type a queue has released that no worker has claimed yet.
SELECT type, count(*)
  FROM capataz_task
 WHERE worker_id IS NULL
   AND released_at IS NOT NULL
   AND queue = %(queue)s
 GROUP BY type;
