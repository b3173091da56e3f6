"""The verbs: what happens to a task, one stage per file."""
