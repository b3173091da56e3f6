-- count_ended: add to the counts of these workflows. Their rows are locked by the caller's transaction already.
UPDATE capataz_workflow AS workflow
   SET total = workflow.total + change.added,
       succeeded = workflow.succeeded + change.succeeded,
       dead = workflow.dead + change.dead,
       cancelled = workflow.cancelled + change.cancelled,
       expired = workflow.expired + change.expired
  FROM unnest(
           %(ids)s::uuid[], %(added)s::int[], %(succeeded)s::int[], %(dead)s::int[], %(cancelled)s::int[],
           %(expired)s::int[]
       ) AS change (id, added, succeeded, dead, cancelled, expired)
 WHERE workflow.id = change.id;
