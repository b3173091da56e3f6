-- terminate_backends: end the sessions that a dead worker has left, so that none of them holds a lock. A
-- pid alone could be somebody else's by now; the start of the session tells.
SELECT pg_terminate_backend(activity.pid)
  FROM pg_stat_activity AS activity
  JOIN jsonb_array_elements(%(backends)s::jsonb) AS recorded ON
       activity.pid = (recorded ->> 0)::int AND activity.backend_start = (recorded ->> 1)::timestamptz;
