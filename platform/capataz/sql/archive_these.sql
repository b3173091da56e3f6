-- archive_these: these tasks, if they have ended, each as one JSON object with its attempts and events, as in
-- archive.
SELECT task.id,
       task.finished_at,
       (to_jsonb(task) || jsonb_build_object('attempts', attempt.list, 'events', event.list))::text
  FROM (SELECT *
          FROM capataz_task
         WHERE id = ANY(%(ids)s)
           AND finished_at IS NOT NULL
         ORDER BY finished_at) AS task
 CROSS JOIN LATERAL (SELECT coalesce(jsonb_agg(to_jsonb(one) ORDER BY one.id), '[]') AS list
                       FROM capataz_attempt AS one
                      WHERE one.task_id = task.id) AS attempt
 CROSS JOIN LATERAL (SELECT coalesce(jsonb_agg(to_jsonb(one) ORDER BY one.id), '[]') AS list
                       FROM capataz_event AS one
                      WHERE one.task_id = task.id) AS event
