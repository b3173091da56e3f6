-- bury_worker: a worker is given up for dead, with an event, unless it has beaten since it was looked at or
-- has stopped. Nothing is granted to it from here on. Returns a row if it was buried.
WITH worker AS (
    UPDATE capataz_worker
       SET state = 'lost', stopped_at = now(), processes = 0, claimed = 0, running = 0
     WHERE id = %(worker)s
       AND state IN ('running', 'draining')
       AND heartbeat_at = %(heartbeat)s
    RETURNING id, name
)
INSERT INTO capataz_event (at, kind, worker_id, subject, detail)
SELECT now(), 'worker.lost', id, name, jsonb_build_object('because', %(because)s::text) FROM worker
RETURNING worker_id;
