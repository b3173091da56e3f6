-- mark_circuits: how attempts of types with a circuit have ended. Rows are added and nobody's are changed, so
-- that workers that finish at the same time do not wait for each other; the dispatcher takes them.
INSERT INTO capataz_circuitmark (circuit, failed, started_at, at)
SELECT circuit, failed, now() - make_interval(secs => started_ago), now()
  FROM unnest(%(circuits)s::text[], %(failed)s::bool[], %(started_ago)s::float8[])
    AS given (circuit, failed, started_ago);
