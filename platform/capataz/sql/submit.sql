-- submit: insert tasks in the caller's own transaction. Times are the database's: a delay counts from
-- now(), and what is due already is queued. The order is that of the clients' ids and the unique keys, so
-- that two open transactions that name the same ids wait for each other in one direction only. A row that
-- does not come back has an id or a unique key that is taken.
-- Where a queue has a limit, nothing is inserted before the caller is sure of room: the limits come back.
WITH limited AS (
    SELECT name, waiting_limit
      FROM capataz_queue
     WHERE waiting_limit IS NOT NULL
       AND name = ANY(%(queues)s)
       AND NOT %(sure_of_room)s
), accepted AS (
    INSERT INTO capataz_task (
        id, key, type, queue, priority, state, payload, max_attempts, run_at, expires_at,
        soft_time_limit, time_limit, submitted_by, schedule_id, replay_of, backoff, keep,
        unique_key, unique_scope, unique_until, lane
    )
    SELECT new.id, new.key, new.type, new.queue, new.priority,
           CASE WHEN new.due > now() THEN 'scheduled' ELSE 'queued' END,
           new.payload::jsonb, new.max_attempts,
           CASE WHEN new.due > now() THEN new.due END,
           new.expires_at, new.soft_time_limit, new.time_limit, new.submitted_by, new.schedule_id,
           new.replay_of, new.backoff, new.keep::jsonb, new.unique_key, new.unique_scope,
           greatest(new.due, clock_timestamp()) + make_interval(secs => new.unique_period),
           CASE WHEN new.lane_path IS NOT NULL
                THEN capataz_lane(new.type, new.payload::jsonb, new.lane_path) END
      FROM (
        SELECT *, coalesce(given.run_at, now() + make_interval(secs => given.delay)) AS due
          FROM unnest(
              %(id)s::uuid[], %(key)s::text[], %(type)s::text[], %(queue)s::text[],
              %(priority)s::smallint[], %(payload)s::text[], %(max_attempts)s::smallint[],
              %(run_at)s::timestamptz[], %(delay)s::float8[], %(expires_at)s::timestamptz[],
              %(soft_time_limit)s::float8[], %(time_limit)s::float8[], %(submitted_by)s::text[],
              %(schedule_id)s::bigint[], %(replay_of)s::uuid[], %(backoff)s::text[], %(keep)s::text[],
              %(unique_key)s::text[], %(unique_scope)s::text[], %(unique_period)s::float8[],
              %(lane_path)s::text[]
          ) AS given (
              id, key, type, queue, priority, payload, max_attempts, run_at, delay, expires_at,
              soft_time_limit, time_limit, submitted_by, schedule_id, replay_of, backoff, keep,
              unique_key, unique_scope, unique_period, lane_path
          )
      ) AS new
     WHERE NOT EXISTS (SELECT FROM limited)
     ORDER BY new.key, new.unique_key, new.id
        ON CONFLICT DO NOTHING
    RETURNING id
)
SELECT id, NULL AS queue, NULL AS waiting_limit FROM accepted
 UNION ALL
SELECT NULL, name, waiting_limit FROM limited;
