-- declare_queues: the queues that handlers name exist, each with its row.
INSERT INTO capataz_queue (name, pause_reason)
SELECT name, '' FROM unnest(%(names)s::text[]) AS named (name) ORDER BY name
    ON CONFLICT (name) DO NOTHING;
