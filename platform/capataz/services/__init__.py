"""The servers and processes of the one-command start.

``embedded`` starts a PostgreSQL and a Redis of our own, for tests and benchmarks; ``startup`` brings up the
whole platform, for ``manage.py up``. Linux only: what we start dies with us by a promise of its kernel.
"""
