-- mend_blocked: tasks that are blocked although all their parents have ended, or one on which they insist has
-- not succeeded: they are settled again.
UPDATE capataz_task AS task
   SET settled_at = 'epoch'
 WHERE task.id IN (
    SELECT child.id
      FROM capataz_task AS child
     WHERE child.workflow_id IS NOT NULL
       AND child.state = 'blocked'
       AND child.settled_at IS NULL
       AND (NOT EXISTS (SELECT FROM capataz_dependency WHERE child_id = child.id AND outcome IS NULL)
            OR EXISTS (
                SELECT FROM capataz_dependency
                 WHERE child_id = child.id
                   AND on_failure = 'cancel' AND outcome IS NOT NULL AND outcome <> 'succeeded'
            ))
       FOR UPDATE SKIP LOCKED
   )
RETURNING task.id;
