-- withdraw_type: the released tasks of one type that nobody has claimed wait again.
UPDATE capataz_task AS task
   SET released_at = NULL, verify_at = NULL, publishes = 0
  FROM (
    SELECT id
      FROM capataz_task
     WHERE worker_id IS NULL
       AND released_at IS NOT NULL
       AND type = %(type)s
       FOR UPDATE SKIP LOCKED
  ) AS unclaimed
 WHERE task.id = unclaimed.id;
