-- join_workflow: make tasks that were submitted in this transaction parts of a workflow; those that have to wait
-- for others wait blocked. New to a workflow that exists already, they are counted by the next settling.
UPDATE capataz_task AS task
   SET workflow_id = %(workflow)s,
       node = member.node,
       state = CASE WHEN member.blocked THEN 'blocked' ELSE task.state END,
       settled_at = CASE WHEN %(added)s THEN 'epoch'::timestamptz END,
       settled_as = CASE WHEN %(added)s THEN 'new' END
  FROM unnest(%(ids)s::uuid[], %(nodes)s::text[], %(blocked)s::bool[]) AS member (id, node, blocked)
 WHERE task.id = member.id
   AND task.workflow_id IS NULL
   AND task.state IN ('queued', 'scheduled')
   AND task.released_at IS NULL
RETURNING task.id;
