-- own_retention: ended tasks with a retention of their own that are past it: the oldest first, so many at most.
-- A task goes when its age is over, or when enough newer ones of its type and outcome are there. The place of
-- each among them is that in the index, which holds no other tasks. What a workflow still needs
-- stays, and so does what holds a unique key for a time.
SELECT id, state, finished_at
  FROM (
    SELECT id, state, finished_at, workflow_id, unique_until, keep -> state AS rule,
           row_number() OVER (PARTITION BY type, state ORDER BY finished_at DESC) AS place
      FROM capataz_task
     WHERE keep IS NOT NULL
       AND finished_at IS NOT NULL
  ) AS ended
 WHERE (finished_at <= now() - make_interval(secs => (rule ->> 'age')::float8)
        OR place > (rule ->> 'count')::bigint)
   AND (unique_until IS NULL OR unique_until <= now())
   AND (workflow_id IS NULL OR NOT (
       EXISTS (
           SELECT FROM capataz_workflow AS workflow
            WHERE workflow.id = ended.workflow_id AND workflow.finished_at IS NULL
       )
       OR EXISTS (
           SELECT FROM capataz_dependency AS dependency
             JOIN capataz_task AS child ON child.id = dependency.child_id AND child.state <> 'succeeded'
            WHERE dependency.parent_id = ended.id
       )
   ))
 ORDER BY finished_at
 LIMIT %(most)s;
