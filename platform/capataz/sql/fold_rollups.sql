-- fold_rollups: short roll-ups that are old enough become longer ones. What somebody else folds at this
-- moment is skipped, and added to the same longer one by both.
WITH old AS (
    DELETE FROM capataz_rollup
     WHERE id IN (
           SELECT id
             FROM capataz_rollup
            WHERE seconds = %(short)s
              AND at < now() - make_interval(secs => %(age)s)
            LIMIT %(most)s
              FOR UPDATE SKIP LOCKED
           )
    RETURNING *
)
INSERT INTO capataz_rollup AS kept (
    at, seconds, queue, type, succeeded, failed, lost, given_back, cancelled, dead,
    run_seconds, wait_seconds, run_times, wait_times
)
SELECT date_bin(make_interval(secs => %(long)s), at, 'epoch'), %(long)s, queue, type,
       sum(succeeded), sum(failed), sum(lost), sum(given_back), sum(cancelled), sum(dead),
       sum(run_seconds), sum(wait_seconds), capataz_sum(run_times), capataz_sum(wait_times)
  FROM old
 GROUP BY 1, queue, type
 ORDER BY 1, queue, type
    ON CONFLICT (at, seconds, queue, type) WHERE seconds > 0
    DO UPDATE SET
       succeeded = kept.succeeded + excluded.succeeded,
       failed = kept.failed + excluded.failed,
       lost = kept.lost + excluded.lost,
       given_back = kept.given_back + excluded.given_back,
       cancelled = kept.cancelled + excluded.cancelled,
       dead = kept.dead + excluded.dead,
       run_seconds = kept.run_seconds + excluded.run_seconds,
       wait_seconds = kept.wait_seconds + excluded.wait_seconds,
       run_times = capataz_add(kept.run_times, excluded.run_times),
       wait_times = capataz_add(kept.wait_times, excluded.wait_times);
