-- settle_again: look once more at those of these tasks that are, or are parents of, tasks that somebody had
-- locked. A time that no task ever ended at marks them.
WITH busy AS (
    SELECT id
      FROM capataz_task
     WHERE id = ANY(%(missed)s::uuid[])
       AND state IN ('blocked', 'cancelled')
)
UPDATE capataz_task AS task
   SET settled_at = 'epoch'
 WHERE task.id = ANY(%(ended)s::uuid[])
   AND (task.id IN (SELECT id FROM busy) OR EXISTS (
       SELECT FROM capataz_dependency AS dependency
         JOIN busy ON busy.id = dependency.child_id
        WHERE dependency.parent_id = task.id
   ));
