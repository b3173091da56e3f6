-- own_retention: ended tasks with a retention of their own that are past it: the oldest first, so many at most.
-- A task goes when its age is over, or when enough newer ones of its type and outcome are there. The place of
-- each among them is that in the index, which holds no other tasks.
SELECT id, state, finished_at
  FROM (
    SELECT id, state, finished_at, keep -> state AS rule,
           row_number() OVER (PARTITION BY type, state ORDER BY finished_at DESC) AS place
      FROM capataz_task
     WHERE keep IS NOT NULL
       AND finished_at IS NOT NULL
  ) AS ended
 WHERE finished_at <= now() - make_interval(secs => (rule ->> 'age')::float8)
    OR place > (rule ->> 'count')::bigint
 ORDER BY finished_at
 LIMIT %(most)s;
