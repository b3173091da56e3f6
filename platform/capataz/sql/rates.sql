-- rates: for how many seconds each of these rates is spent in advance; no row for one that is unused.
SELECT rate.name, rate.key, extract(epoch FROM rate.unused_at - now())::float8
  FROM unnest(%(names)s::text[], %(keys)s::text[]) AS given (name, key)
  JOIN capataz_rate AS rate ON rate.name = given.name AND rate.key = given.key;
