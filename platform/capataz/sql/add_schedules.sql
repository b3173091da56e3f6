-- add_schedules: every periodic task has a schedule of ours beside it, also one that was made without our admin.
INSERT INTO capataz_schedule (periodic_task_id)
SELECT periodic.id
  FROM django_celery_beat_periodictask AS periodic
 WHERE NOT EXISTS (SELECT FROM capataz_schedule AS schedule WHERE schedule.periodic_task_id = periodic.id)
 ORDER BY periodic.id
    ON CONFLICT DO NOTHING;
