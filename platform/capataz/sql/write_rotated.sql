-- write_rotated: the same values under another key, unless somebody has changed the row since it was read.
UPDATE capataz_task
   SET payload = %(new_payload)s::jsonb,
       result = %(new_result)s::jsonb
 WHERE id = %(id)s
   AND payload = %(payload)s::jsonb
   AND result IS NOT DISTINCT FROM %(result)s::jsonb;
