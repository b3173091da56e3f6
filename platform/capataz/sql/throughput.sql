-- throughput: what the attempts of the last minute came to, over all queues and types.
SELECT coalesce(sum(succeeded), 0), coalesce(sum(failed), 0), coalesce(sum(lost), 0),
       coalesce(sum(run_seconds), 0), capataz_sum(run_times), capataz_sum(wait_times)
  FROM capataz_rollup
 WHERE seconds <= 10
   AND at > now() - interval '1 minute';
