-- read_tasks: add these tasks as write_tasks gave them, with their attempts and workflows, unless their id is taken.
-- Whoever held one does not here: it waits again. One whose unique key another task holds here is added without it.
-- Attempts get new ids, in their order.
WITH given AS (
    SELECT value FROM jsonb_array_elements(%(tasks)s::jsonb)
), free AS (
    SELECT CASE WHEN value ->> 'state' IN ('claimed', 'running')
                THEN value || '{{"state": "queued"}}' ELSE value END
           || CASE WHEN EXISTS (
                       SELECT FROM capataz_task AS holder
                        WHERE holder.unique_key = value ->> 'unique_key'
                          AND (holder.finished_at IS NULL
                               OR holder.unique_scope IN ('always', 'trailing')
                               OR (holder.state = 'dead' AND holder.unique_scope = 'until_success'))
                   )
                   THEN '{{"unique_key": null}}'::jsonb ELSE '{{}}' END
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
), flow AS (
    INSERT INTO capataz_workflow ({workflow})
    SELECT DISTINCT ON (id) {workflow}
      FROM given
     CROSS JOIN LATERAL jsonb_populate_record(NULL::capataz_workflow, given.value -> 'workflow')
     WHERE (given.value ->> 'id')::uuid IN (SELECT id FROM added)
       AND id IS NOT NULL
        ON CONFLICT DO NOTHING
), waiting AS (
    INSERT INTO capataz_dependency ({dependency})
    OVERRIDING USER VALUE
    SELECT {dependency}
      FROM given
     CROSS JOIN LATERAL jsonb_populate_recordset(NULL::capataz_dependency, given.value -> 'waits_for')
     WHERE child_id IN (SELECT id FROM added)
     ORDER BY id
        ON CONFLICT DO NOTHING
)
SELECT count(*) FROM added;
