-- rotation_window: the last of the next tasks by id, and how many these are. Whatever a window holds, it is
-- read by the primary key and no longer than it takes to read so many rows. PostgreSQL has no max of ids.
SELECT (array_agg(id ORDER BY id DESC))[1], count(*)
  FROM (SELECT id FROM capataz_task WHERE id > %(after)s ORDER BY id LIMIT %(most)s) AS next;
