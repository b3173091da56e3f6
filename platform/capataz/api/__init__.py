"""The REST API: a door. It translates requests into verbs, and what they return or raise into answers."""
