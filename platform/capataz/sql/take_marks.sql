-- take_marks: what was noted about these circuits, oldest first, and noted no more. The caller has their rows.
WITH taken AS (
    DELETE FROM capataz_circuitmark
     WHERE circuit = ANY(%(circuits)s)
    RETURNING id, circuit, failed, started_at, at
)
SELECT * FROM taken ORDER BY id;
