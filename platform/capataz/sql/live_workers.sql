-- live_workers: who can take tasks, of which queues and types, and how long tasks took them lately.
SELECT queues, types, max_concurrency, timings
  FROM capataz_worker
 WHERE state = 'running';
