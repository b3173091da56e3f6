-- is_deaf: whether tasks that this worker could run have been released for so long, and nobody has claimed
-- them, that an idle worker must have heard of them.
SELECT EXISTS (
    SELECT
      FROM capataz_task
     WHERE worker_id IS NULL
       AND released_at <= now() - make_interval(secs => %(seconds)s)
       AND queue = ANY(%(queues)s)
       AND type = ANY(%(types)s)
);
