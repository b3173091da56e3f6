-- mend_counts: of unfinished workflows, the counts that are not those of their settled tasks. None of these has
-- been pruned.
UPDATE capataz_workflow AS workflow
   SET total = true_one.total, succeeded = true_one.succeeded, dead = true_one.dead,
       cancelled = true_one.cancelled, expired = true_one.expired
  FROM (
    SELECT locked.id, count.*
      FROM (SELECT id FROM capataz_workflow WHERE finished_at IS NULL FOR UPDATE SKIP LOCKED) AS locked
     CROSS JOIN LATERAL (
           SELECT count(*) FILTER (WHERE task.settled_as IS DISTINCT FROM 'new')::int AS total,
                  count(*) FILTER (WHERE task.settled_as = 'succeeded')::int AS succeeded,
                  count(*) FILTER (WHERE task.settled_as = 'dead')::int AS dead,
                  count(*) FILTER (WHERE task.settled_as = 'cancelled')::int AS cancelled,
                  count(*) FILTER (WHERE task.settled_as = 'expired')::int AS expired
             FROM capataz_task AS task
            WHERE task.workflow_id = locked.id AND task.workflow_id IS NOT NULL
           ) AS count
  ) AS true_one
 WHERE workflow.id = true_one.id
   AND (workflow.total, workflow.succeeded, workflow.dead, workflow.cancelled, workflow.expired)
       IS DISTINCT FROM
       (true_one.total, true_one.succeeded, true_one.dead, true_one.cancelled, true_one.expired)
RETURNING workflow.id;
