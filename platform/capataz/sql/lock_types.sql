-- lock_types: the types from which this transaction alone may release until it ends. A type may be spread
-- over several queues, and its limits are those of all its tasks. In one order, and nobody waits.
SELECT type
  FROM unnest(%(types)s::text[]) AS given (type)
 WHERE pg_try_advisory_xact_lock(%(lock)s, hashtext(type));
