-- still_held: of runs that a finish did not end, those that are still held: somebody had the row locked
-- at that moment. The outcome of all others is refused for good.
SELECT task.id
  FROM unnest(%(ids)s::uuid[], %(runs)s::bigint[]) AS unfinished (id, run)
  JOIN capataz_task AS task ON task.id = unfinished.id AND task.run = unfinished.run;
