-- read_tasks: add these tasks as write_tasks gave them, with their attempts, unless their id is taken. Whoever
-- held one does not here: it waits again. Attempts get new ids, in their order.
WITH given AS (
    SELECT value FROM jsonb_array_elements(%(tasks)s::jsonb)
), free AS (
    SELECT CASE WHEN value ->> 'state' IN ('claimed', 'running')
                THEN value || '{{"state": "queued"}}' ELSE value END
           || '{{"run": null, "worker_id": null, "released_at": null, "verify_at": null, "publishes": 0}}' AS value
      FROM given
), added AS (
    INSERT INTO capataz_task ({task})
    SELECT {task}
      FROM jsonb_populate_recordset(NULL::capataz_task, (SELECT coalesce(jsonb_agg(value), '[]') FROM free))
        ON CONFLICT DO NOTHING
    RETURNING id
), history AS (
    INSERT INTO capataz_attempt ({attempt})
    OVERRIDING USER VALUE
    SELECT {attempt}
      FROM given
     CROSS JOIN LATERAL jsonb_populate_recordset(NULL::capataz_attempt, given.value -> 'history')
     WHERE task_id IN (SELECT id FROM added)
     ORDER BY id
)
SELECT count(*) FROM added;
