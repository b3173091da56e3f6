-- settle_ended: tasks of workflows of which something is not known to their workflow yet: that they have
-- ended, or that they have been retried since, or that they are new. What is not equal here is work to be done,
-- whoever moved the task, and in whatever way. Rows that somebody has locked are left for the next turn, and so
-- are all those of a workflow that is locked. The caller holds the one lock under which this is done.
WITH moved AS (
    SELECT task.id, task.settled_as
      FROM capataz_task AS task
      JOIN capataz_workflow AS workflow ON workflow.id = task.workflow_id
     WHERE task.workflow_id IS NOT NULL
       AND task.finished_at IS DISTINCT FROM task.settled_at
     LIMIT %(most)s
       FOR UPDATE SKIP LOCKED
)
UPDATE capataz_task AS task
   SET settled_at = task.finished_at,
       settled_as = CASE WHEN task.finished_at IS NULL THEN 'open' ELSE task.state END
  FROM moved
 WHERE task.id = moved.id
RETURNING task.id, task.workflow_id, moved.settled_as, task.settled_as, task.state = 'blocked';
