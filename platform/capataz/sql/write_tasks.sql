-- write_tasks: every task in one of these states, oldest id first, each as one JSON object with its attempts as its history.
SELECT (to_jsonb(task) || jsonb_build_object('history', attempt.list))::text
  FROM capataz_task AS task
 CROSS JOIN LATERAL (SELECT coalesce(jsonb_agg(to_jsonb(one) ORDER BY one.id), '[]') AS list
                       FROM capataz_attempt AS one
                      WHERE one.task_id = task.id) AS attempt
 WHERE task.state = ANY(%(states)s)
 ORDER BY task.id;
