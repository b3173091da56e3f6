-- spend_rates: each of these rates is unused again so many seconds from now. The caller holds the locks of
-- their types and has read how far they were spent.
INSERT INTO capataz_rate AS rate (name, key, unused_at)
SELECT name, key, now() + make_interval(secs => seconds)
  FROM unnest(%(names)s::text[], %(keys)s::text[], %(seconds)s::float8[]) AS given (name, key, seconds)
    ON CONFLICT (name, key) DO UPDATE SET unused_at = excluded.unused_at;
