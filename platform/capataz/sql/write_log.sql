-- write_log: what handlers have said. A run that has ended meanwhile has said it all the same.
INSERT INTO capataz_logline (at, task_id, run, level, logger, message)
SELECT statement_timestamp() - make_interval(secs => said.ago), said.id, said.run, said.level, said.logger, said.message
  FROM unnest(
      %(ids)s::uuid[], %(runs)s::bigint[], %(agos)s::float8[], %(levels)s::smallint[],
      %(loggers)s::text[], %(messages)s::text[]
  ) WITH ORDINALITY AS said (id, run, ago, level, logger, message, place)
 ORDER BY said.place;
