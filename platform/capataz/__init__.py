"""Capataz: a task platform on Celery, Redis, PostgreSQL and Django."""

__version__ = "0.1.0"
