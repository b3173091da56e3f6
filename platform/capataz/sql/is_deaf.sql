-- is_deaf: whether tasks that this worker could run have been released for so long, and nobody has claimed
-- them, that an idle worker must have heard of them.
SELECT EXISTS (
    SELECT
      FROM capataz_worker AS worker
      JOIN capataz_task AS task
        ON task.queue = ANY(worker.queues) AND task.type = ANY(worker.types)
     WHERE worker.id = %(worker)s
       AND task.worker_id IS NULL
       AND task.released_at <= now() - make_interval(secs => %(seconds)s)
);
