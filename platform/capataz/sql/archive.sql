-- archive: the oldest tasks of one outcome that are past its time, each as one JSON object with its attempts and
-- events. Locks nothing and waits for nobody; whoever deletes them afterwards looks whether they are still the same.
SELECT task.id,
       task.finished_at,
       (to_jsonb(task) || jsonb_build_object('attempts', attempt.list, 'events', event.list))::text
  FROM (SELECT *
          FROM capataz_task AS kept
         WHERE state = %(state)s
           AND finished_at < now() - %(age)s
           AND finished_at >= %(since)s
           AND keep -> state -> 'age' IS NULL
           AND (workflow_id IS NULL OR NOT (
               EXISTS (
                   SELECT FROM capataz_workflow AS workflow
                    WHERE workflow.id = kept.workflow_id AND workflow.finished_at IS NULL
               )
               OR EXISTS (
                   SELECT FROM capataz_dependency AS dependency
                     JOIN capataz_task AS child ON child.id = dependency.child_id AND child.state <> 'succeeded'
                    WHERE dependency.parent_id = kept.id
               )
           ))
         ORDER BY finished_at
         LIMIT %(most)s) AS task
 CROSS JOIN LATERAL (SELECT coalesce(jsonb_agg(to_jsonb(one) ORDER BY one.id), '[]') AS list
                       FROM capataz_attempt AS one
                      WHERE one.task_id = task.id) AS attempt
 CROSS JOIN LATERAL (SELECT coalesce(jsonb_agg(to_jsonb(one) ORDER BY one.id), '[]') AS list
                       FROM capataz_event AS one
                      WHERE one.task_id = task.id) AS event
