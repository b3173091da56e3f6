-- verify: released tasks that nobody has claimed for a while. Their messages may be lost, so they are
-- returned to be published again, each time after a longer wait, and as the most urgent if they are old. A queue whose lists in Redis are not
-- empty gets more patience: its workers are busy, most likely. With "all", every released task is due:
-- Redis has forgotten everything.
UPDATE capataz_task AS task
   SET publishes = least(task.publishes + 1, 100),
       verify_at = now() + make_interval(secs => least(%(longest)s, %(first)s * 2 ^ least(task.publishes, 16)))
  FROM (
    SELECT id
      FROM capataz_task
     WHERE worker_id IS NULL
       AND released_at IS NOT NULL
       AND queue = ANY(%(queues)s)
       AND type = ANY(%(types)s)
       AND (%(all)s OR (
               verify_at <= now()
               AND (queue = ANY(%(empty)s)
                    OR released_at <= now() - make_interval(secs => %(patience)s * publishes))
           ))
     LIMIT %(most)s
       FOR UPDATE SKIP LOCKED
  ) AS unclaimed
 WHERE task.id = unclaimed.id
RETURNING task.id, task.type, task.queue,
          CASE WHEN task.created_at <= now() - make_interval(secs => %(aged)s) THEN 10 ELSE task.priority END,
          true, octet_length(task.payload::text);
