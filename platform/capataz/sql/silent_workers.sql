-- silent_workers: every worker that should be alive, its latest heartbeat, and whether its lock is free.
-- The lock of this look is given back when the statement's transaction ends.
SELECT id, name, heartbeat_at, backends, pg_try_advisory_xact_lock(%(lock)s, id::int) AS lock_is_free
  FROM capataz_worker
 WHERE state IN ('running', 'draining');
