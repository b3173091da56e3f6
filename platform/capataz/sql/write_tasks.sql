-- write_tasks: every task in one of these states, oldest id first, each as one JSON object with its attempts as its
-- history, and if it is part of a workflow with that and with what it waits for.
SELECT (to_jsonb(task) || jsonb_build_object('history', attempt.list) || coalesce(member.of, '{}'))::text
  FROM capataz_task AS task
 CROSS JOIN LATERAL (SELECT coalesce(jsonb_agg(to_jsonb(one) ORDER BY one.id), '[]') AS list
                       FROM capataz_attempt AS one
                      WHERE one.task_id = task.id) AS attempt
  LEFT JOIN LATERAL (SELECT jsonb_build_object('workflow', to_jsonb(workflow), 'waits_for', parents.list) AS of
                       FROM capataz_workflow AS workflow
                      CROSS JOIN (SELECT coalesce(jsonb_agg(to_jsonb(one) ORDER BY one.id), '[]') AS list
                                    FROM capataz_dependency AS one
                                   WHERE one.child_id = task.id) AS parents
                      WHERE workflow.id = task.workflow_id) AS member ON true
 WHERE task.state = ANY(%(states)s)
 ORDER BY task.id;
