-- still_grantable: of tasks that a claim did not get, those that somebody had locked at that moment and
-- that may be asked for again. All others have nothing to run.
SELECT task.id
  FROM unnest(%(ids)s::uuid[]) AS refused (id)
  JOIN capataz_task AS task ON task.id = refused.id
 WHERE task.released_at IS NOT NULL
   AND task.run IS NULL
   AND (task.expires_at IS NULL OR task.expires_at > now());
