-- lock_queue: the right to release from this queue, until the transaction ends; no row, or false, if somebody
-- else has it, or the queue is paused or being paused. A pause waits for a release that is under way, and
-- takes back what that has released.
SELECT pg_try_advisory_xact_lock(%(lock)s, hashtext(%(queue)s))
  FROM capataz_queue
 WHERE name = %(queue)s
   AND paused_at IS NULL
   FOR SHARE SKIP LOCKED;
