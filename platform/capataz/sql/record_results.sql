-- record_results: tell django-celery-results how these tasks have ended, in the columns that its own backend
-- writes for plain tasks. Runs after the statement that ended them, in the same transaction, while their rows
-- are still locked: nobody else can be recording the same task, so that no two transactions ever wait for each
-- other at the unique index. What has not ended is left out.
-- No arguments: the payload stays in capataz_task.
INSERT INTO django_celery_results_taskresult (
    task_id, task_name, periodic_task_name, task_args, task_kwargs, status, worker, content_type,
    content_encoding, result, date_created, date_started, date_done, traceback, meta
)
SELECT task.id::text, task.type, periodic.name, NULL, NULL,
       CASE task.state WHEN 'succeeded' THEN 'SUCCESS' WHEN 'dead' THEN 'FAILURE' ELSE 'REVOKED' END,
       left(worker.name, 100), 'application/json', 'utf-8',
       CASE task.state
           WHEN 'succeeded' THEN coalesce(task.result::text, 'null')
           WHEN 'dead' THEN json_build_object(
               'exc_type', 'TaskFailed', 'exc_module', 'capataz.worker.results',
               'exc_message', json_build_array(task.error))::text
           ELSE json_build_object(
               'exc_type', 'TaskRevokedError', 'exc_module', 'celery.exceptions',
               'exc_message', json_build_array(coalesce(task.error, task.state)))::text
       END,
       task.created_at, task.started_at, task.finished_at,
       CASE WHEN task.state = 'dead' THEN ended.traceback END, '{"children": []}'
  FROM unnest(%(ids)s::uuid[], %(workers)s::bigint[], %(tracebacks)s::text[])
       AS ended (id, worker_id, traceback)
  JOIN capataz_task AS task ON task.id = ended.id
  LEFT JOIN capataz_worker AS worker ON worker.id = ended.worker_id
  LEFT JOIN django_celery_beat_periodictask AS periodic ON periodic.id = task.schedule_id
 WHERE task.finished_at IS NOT NULL
    ON CONFLICT (task_id) DO UPDATE
   SET task_name = excluded.task_name, status = excluded.status, worker = excluded.worker,
       content_type = excluded.content_type, content_encoding = excluded.content_encoding,
       result = excluded.result, date_started = excluded.date_started, date_done = excluded.date_done,
       traceback = excluded.traceback, meta = excluded.meta;
