-- read_schedules: what each schedule says, as a fingerprint of all but what a fire itself writes, and how far
-- it is settled. A beat builds anew only those that say something else than before.
SELECT periodic.id,
       md5(concat(
           to_jsonb(periodic) - '{last_run_at,total_run_count,date_changed}'::text[],
           to_jsonb(schedule) - '{last_due,rule}'::text[],
           to_jsonb(crontab), to_jsonb(every), to_jsonb(clocked)
       )),
       schedule.last_due
  FROM django_celery_beat_periodictask AS periodic
  LEFT JOIN capataz_schedule AS schedule ON schedule.periodic_task_id = periodic.id
  LEFT JOIN django_celery_beat_crontabschedule AS crontab ON crontab.id = periodic.crontab_id
  LEFT JOIN django_celery_beat_intervalschedule AS every ON every.id = periodic.interval_id
  LEFT JOIN django_celery_beat_clockedschedule AS clocked ON clocked.id = periodic.clocked_id;
