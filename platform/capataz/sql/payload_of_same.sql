-- payload_of_same: the task of this type that has a submission's id, or its client's id, with its payload.
SELECT id, payload::text
  FROM capataz_task
 WHERE type = %(type)s
   AND ((%(key)s::text IS NULL AND id = %(id)s) OR key = %(key)s);
