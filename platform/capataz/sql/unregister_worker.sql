-- unregister_worker: a worker that stops says so, and the event tells it.
WITH worker AS (
    UPDATE capataz_worker
       SET state = 'stopped', stopped_at = now(), processes = 0, claimed = 0, running = 0
     WHERE id = %(worker)s
       AND state IN ('running', 'draining')
    RETURNING id, name
)
INSERT INTO capataz_event (at, kind, worker_id, subject, detail)
SELECT now(), 'worker.stopped', id, name, '{}' FROM worker;
