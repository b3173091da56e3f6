-- next_due: seconds until the next task's time comes; NULL when nothing is scheduled.
SELECT extract(epoch FROM min(run_at) - now())::float8
  FROM capataz_task
 WHERE state IN ('scheduled', 'retrying');
