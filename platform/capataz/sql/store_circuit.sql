-- store_circuit: write where a circuit stands now, and the event of a change of its state. The caller has
-- locked the row; "was" holds even so whoever would write over somebody else's change.
WITH stored AS (
    UPDATE capataz_circuit
       SET state = %(state)s, forced = %(forced)s, failures = %(failures)s, successes = %(successes)s,
           openings = %(openings)s, leases = %(leases)s::timestamptz[], changed_at = %(changed_at)s,
           retry_at = %(retry_at)s, last_failure_at = %(last_failure_at)s
     WHERE name = %(name)s
       AND state = %(was)s
    RETURNING name
)
INSERT INTO capataz_event (at, kind, subject, detail)
SELECT now(), %(event)s::text, name, %(detail)s::jsonb FROM stored WHERE %(event)s::text IS NOT NULL;
