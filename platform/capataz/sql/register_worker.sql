-- register_worker: a new incarnation of a worker, with a new identity, and the event that tells of it.
WITH worker AS (
    INSERT INTO capataz_worker (
        name, host, pid, state, queues, types, max_concurrency, processes, backends, claimed, running,
        cpu_percent, ram_mb, loop_lag, phase, timings
    )
    VALUES (
        %(name)s, %(host)s, %(pid)s, 'running', %(queues)s, %(types)s, %(max_concurrency)s, 0,
        %(backends)s::jsonb, 0, 0, 0, 0, 0, 'connecting', '{}'
    )
    RETURNING id, name
), event AS (
    INSERT INTO capataz_event (at, kind, worker_id, subject, detail)
    SELECT now(), 'worker.started', id, name, '{}' FROM worker
)
SELECT id FROM worker;
