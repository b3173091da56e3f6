-- note_pruned: keep what somebody who asks for these tasks by their clients' ids has to be told.
INSERT INTO capataz_pruned (key, task_id, type, state, finished_at)
SELECT key, id, type, state, finished_at
  FROM capataz_task
 WHERE id = ANY(%(ids)s)
   AND key IS NOT NULL
 ORDER BY key
    ON CONFLICT (key) DO UPDATE
   SET task_id = excluded.task_id, type = excluded.type, state = excluded.state,
       finished_at = excluded.finished_at, pruned_at = now();
