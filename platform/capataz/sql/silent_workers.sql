-- silent_workers: every worker that should be alive, its latest heartbeat, and whether its session is gone:
-- its lock is free. One without a session of its own, behind a pooler, holds no lock, and a free one says
-- nothing. The lock of this look is given back when the statement's transaction ends.
SELECT id, name, heartbeat_at, backends,
       backends <> '[]' AND pg_try_advisory_xact_lock(%(lock)s, id::int) AS session_is_gone
  FROM capataz_worker
 WHERE state IN ('running', 'draining');
