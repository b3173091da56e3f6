-- same_tasks: of these submissions, counted from 1, those whose id a task of the same type and payload has,
-- with that task. Payloads are compared as PostgreSQL keeps them: Python reads 1e300 back as an integer,
-- which is another number.
SELECT given.place, task.id
  FROM unnest(%(id)s::uuid[], %(key)s::text[], %(type)s::text[], %(payload)s::text[])
       WITH ORDINALITY AS given (id, key, type, payload, place)
  JOIN LATERAL (
      SELECT own.id, own.type, own.payload
        FROM capataz_task AS own
       WHERE own.id = given.id
         AND given.key IS NULL
       UNION ALL
      SELECT keyed.id, keyed.type, keyed.payload
        FROM capataz_task AS keyed
       WHERE keyed.key = given.key
  ) AS task ON task.type = given.type AND task.payload = given.payload::jsonb;
