-- settle_dependencies: what has become of the parents, as their rows say now, in the dependencies on these tasks
-- and those of these blocked ones. Nobody else writes these rows.
UPDATE capataz_dependency AS dependency
   SET outcome = CASE WHEN parent.finished_at IS NOT NULL THEN parent.state END
  FROM (
    SELECT id FROM capataz_dependency WHERE parent_id = ANY(%(ended)s::uuid[])
     UNION
    SELECT id FROM capataz_dependency WHERE child_id = ANY(%(blocked)s::uuid[])
  ) AS touched, capataz_task AS parent
 WHERE dependency.id = touched.id
   AND parent.id = dependency.parent_id
RETURNING dependency.child_id;
