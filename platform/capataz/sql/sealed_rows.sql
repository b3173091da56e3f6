-- sealed_rows: the tasks of a window that hold an encrypted value.
SELECT id, payload::text, result::text
  FROM capataz_task
 WHERE id > %(after)s
   AND id <= %(last)s
   AND (payload::text LIKE %(name)s OR result::text LIKE %(name)s)
 ORDER BY id;
