-- mend_dependencies: of unfinished children, those that say something else than their parents' rows, although
-- these are settled: their parents are settled again.
UPDATE capataz_task AS parent
   SET settled_at = 'epoch'
 WHERE parent.id IN (
    SELECT locked.id
      FROM capataz_dependency AS dependency
      JOIN capataz_task AS child ON child.id = dependency.child_id AND child.state = 'blocked'
      JOIN capataz_task AS locked ON locked.id = dependency.parent_id
     WHERE dependency.outcome IS DISTINCT FROM CASE WHEN locked.finished_at IS NOT NULL THEN locked.state END
       AND locked.finished_at IS NOT DISTINCT FROM locked.settled_at
       FOR UPDATE OF locked SKIP LOCKED
   )
RETURNING parent.id;
