-- beat: a worker's sign of life. No row comes back if it has been given up for dead meanwhile.
UPDATE capataz_worker
   SET heartbeat_at = now(),
       state = %(state)s,
       processes = %(processes)s,
       max_concurrency = %(max_concurrency)s,
       queues = %(queues)s,
       claimed = %(claimed)s,
       running = %(running)s,
       cpu_percent = %(cpu_percent)s,
       ram_mb = %(ram_mb)s,
       loop_lag = %(loop_lag)s,
       phase = %(phase)s,
       timings = %(timings)s::jsonb,
       backends = %(backends)s::jsonb
 WHERE id = %(worker)s
   AND state IN ('running', 'draining')
RETURNING id;
