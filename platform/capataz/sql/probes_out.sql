-- probes_out: the tasks of a type that are in flight and were released since its circuit is half open. What
-- was released before is no probe. They are counted from the tasks' rows: nothing stays counted that died.
SELECT count(*)
  FROM capataz_task
 WHERE released_at IS NOT NULL
   AND type = %(type)s
   AND released_at >= %(since)s;
