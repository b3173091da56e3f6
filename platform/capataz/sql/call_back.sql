-- call_back: submit what follows on a workflow, and remember that it was called, in one statement. Its id was
-- chosen when the workflow was submitted: there is never a second one.
WITH due AS (
    SELECT * FROM unnest(%(ids)s::uuid[], %(kinds)s::text[], %(tasks)s::text[]) AS given (id, kind, task)
), called AS (
    UPDATE capataz_workflow AS workflow
       SET called = workflow.called || kinds.all
      FROM (SELECT id, array_agg(kind)::varchar[] AS all FROM due GROUP BY id) AS kinds
     WHERE workflow.id = kinds.id
)
INSERT INTO capataz_task (
    id, type, queue, priority, state, payload, max_attempts, run_at, soft_time_limit, time_limit, submitted_by,
    backoff, keep, lane
)
SELECT task.id, task.type, task.queue, task.priority,
       CASE WHEN task.delay > 0 THEN 'scheduled' ELSE 'queued' END,
       task.payload::jsonb, task.max_attempts,
       CASE WHEN task.delay > 0 THEN now() + make_interval(secs => task.delay) END,
       task.soft_time_limit, task.time_limit, task.submitted_by, task.backoff, task.keep::jsonb,
       capataz_lane(task.type, task.payload::jsonb, task.lane_path)
  FROM due
 CROSS JOIN LATERAL jsonb_to_record(due.task::jsonb) AS task (
       id uuid, type text, queue text, priority smallint, payload text, max_attempts smallint, delay float8,
       soft_time_limit float8, time_limit float8, submitted_by text, backoff text, keep text, lane_path text
       )
    ON CONFLICT DO NOTHING;
