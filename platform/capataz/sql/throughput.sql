-- throughput: how the attempts of the last minute ended and how long they ran. Reads at most the newest
-- attempts, so that the price does not grow with the day.
SELECT count(*) FILTER (WHERE outcome = 'succeeded'),
       count(*) FILTER (WHERE outcome = 'failed'),
       count(*) FILTER (WHERE outcome = 'lost'),
       extract(epoch FROM avg(finished_at - started_at) FILTER (WHERE outcome = 'succeeded'))::float8
  FROM (
    SELECT outcome, started_at, finished_at
      FROM capataz_attempt
     ORDER BY id DESC
     LIMIT %(most)s
  ) AS newest
 WHERE finished_at > now() - interval '1 minute';
