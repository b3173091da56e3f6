-- allow: spend of a rate, if enough of it is unused; if not, the answer is in how many seconds there will be,
-- by what could be seen when the statement began. A second caller waits for the first one's transaction, and judges by what that has left.
WITH spent AS (
    INSERT INTO capataz_rate AS rate (name, key, unused_at)
    VALUES (%(name)s, %(key)s, statement_timestamp() + make_interval(secs => %(seconds)s))
        ON CONFLICT (name, key) DO UPDATE
       SET unused_at = greatest(rate.unused_at, statement_timestamp()) + make_interval(secs => %(seconds)s)
     WHERE rate.unused_at + make_interval(secs => %(seconds)s - %(most)s) <= statement_timestamp()
    RETURNING unused_at
)
SELECT true, 0::float8 FROM spent
 UNION ALL
SELECT false, extract(epoch FROM unused_at - statement_timestamp())::float8 + %(seconds)s - %(most)s
  FROM capataz_rate
 WHERE name = %(name)s AND key = %(key)s AND NOT EXISTS (SELECT FROM spent);
