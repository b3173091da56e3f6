-- forget_rates: a rate that is unused is as one that was never used.
DELETE FROM capataz_rate AS rate
 USING (
    SELECT name, key
      FROM capataz_rate
     WHERE unused_at < now()
     LIMIT %(most)s
       FOR UPDATE SKIP LOCKED
 ) AS unused
 WHERE rate.name = unused.name AND rate.key = unused.key AND rate.unused_at < now();
