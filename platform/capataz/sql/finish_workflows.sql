-- finish_workflows: these workflows are finished exactly when they are closed and all their tasks have ended and
-- are counted. What is to follow on that, and has not been called yet, comes back with its kind.
WITH judged AS (
    UPDATE capataz_workflow AS workflow
       SET finished_at = CASE WHEN judgement.finished THEN coalesce(workflow.finished_at, now()) END
      FROM (
        SELECT each.id,
               each.closed_at IS NOT NULL
               AND each.succeeded + each.dead + each.cancelled + each.expired >= each.total
               AND NOT EXISTS (
                   SELECT FROM capataz_task AS task
                    WHERE task.workflow_id = each.id
                      AND task.workflow_id IS NOT NULL
                      AND task.finished_at IS DISTINCT FROM task.settled_at
               ) AS finished
          FROM capataz_workflow AS each
         WHERE each.id = ANY(%(ids)s::uuid[])
      ) AS judgement
     WHERE workflow.id = judgement.id
    RETURNING workflow.*
)
SELECT judged.id, due.kind, (judged.callbacks -> due.kind)::text
  FROM judged
 CROSS JOIN LATERAL (
       VALUES ('failure', judged.dead > 0),
              ('complete', judged.finished_at IS NOT NULL),
              ('success', judged.finished_at IS NOT NULL AND judged.succeeded = judged.total)
       ) AS due (kind, now)
 WHERE due.now
   AND judged.callbacks ? due.kind
   AND NOT due.kind = ANY(judged.called);
