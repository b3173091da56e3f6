-- tell_state: what a running durable task says of itself, where Celery's own backend would write it. The
-- record of its end replaces it. Nobody who has been given up for dead says anything: the task has to be held.
INSERT INTO django_celery_results_taskresult (
    task_id, task_name, status, content_type, content_encoding, result, date_created, date_started, date_done, meta
)
SELECT task.id::text, task.type, %(state)s, 'application/json', 'utf-8', %(result)s,
       task.created_at, task.started_at, clock_timestamp(), '{"children": []}'
  FROM capataz_task AS task
 WHERE task.id = %(id)s
   AND task.state IN ('claimed', 'running')
    ON CONFLICT (task_id) DO UPDATE
   SET status = excluded.status, result = excluded.result, date_done = excluded.date_done,
       content_type = excluded.content_type, content_encoding = excluded.content_encoding, traceback = NULL;
