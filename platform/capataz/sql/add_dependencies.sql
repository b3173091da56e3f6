-- add_dependencies: what these tasks wait for.
INSERT INTO capataz_dependency (parent_id, child_id, name, position, feeds, on_failure)
SELECT *
  FROM unnest(
      %(parent)s::uuid[], %(child)s::uuid[], %(name)s::text[], %(position)s::int[], %(feeds)s::text[],
      %(on_failure)s::text[]
  )
    ON CONFLICT DO NOTHING;
