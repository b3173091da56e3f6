-- worth_vacuuming: our tables with many dead rows, the worst first, as the statistics collector counts them.
SELECT relname
  FROM pg_stat_user_tables
 WHERE schemaname = current_schema
   AND n_dead_tup >= %(dead_rows)s
   AND n_dead_tup >= n_live_tup * %(dead_share)s::float
 ORDER BY n_dead_tup DESC
