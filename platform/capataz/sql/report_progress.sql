-- report_progress: the latest word of these runs. Only a run that is still granted may say something;
-- a locked row is skipped, its next report will tell more.
UPDATE capataz_task AS task
   SET progress = said.percent,
       progress_message = said.message
  FROM unnest(%(ids)s::uuid[], %(runs)s::bigint[], %(percents)s::smallint[], %(messages)s::text[])
       AS said (id, run, percent, message)
 WHERE task.id IN (
       SELECT free.id
         FROM capataz_task AS free
         JOIN unnest(%(ids)s::uuid[], %(runs)s::bigint[]) AS wanted (id, run)
           ON free.id = wanted.id AND free.run = wanted.run
          FOR UPDATE OF free SKIP LOCKED
       )
   AND task.id = said.id;
