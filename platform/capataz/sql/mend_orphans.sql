-- mend_orphans: dependencies on tasks that are no more. To their children they have not succeeded.
UPDATE capataz_dependency AS dependency
   SET outcome = 'gone'
 WHERE dependency.outcome IS NULL
   AND NOT EXISTS (SELECT FROM capataz_task AS parent WHERE parent.id = dependency.parent_id)
RETURNING dependency.id;
