-- mark_running: show that these runs have started, and when. Only a run that is still granted, and only
-- rows that nobody has locked: those are shown a moment later.
UPDATE capataz_task AS task
   SET state = 'running',
       started_at = now() - make_interval(secs => started.ago)
  FROM unnest(%(ids)s::uuid[], %(runs)s::bigint[], %(ago)s::float8[]) AS started (id, run, ago)
 WHERE task.id IN (
       SELECT free.id
         FROM capataz_task AS free
         JOIN unnest(%(ids)s::uuid[], %(runs)s::bigint[]) AS wanted (id, run)
           ON free.id = wanted.id AND free.run = wanted.run
          FOR UPDATE OF free SKIP LOCKED
       )
   AND task.id = started.id
RETURNING task.run;
