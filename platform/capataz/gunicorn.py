"""How Gunicorn serves the web process, wherever it is started: ``gunicorn -c python:capataz.gunicorn``."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "capataz.settings")

from django.conf import settings

bind = f"127.0.0.1:{settings.PORT}"
worker_class = "gthread"
workers = 2
# Each live stream of the dashboard holds a thread for as long as the page is open.
threads = 32
# Seconds that open requests, among them live streams, may go on while the web process stops.
graceful_timeout = 4
# Seconds that an idle connection is kept: longer than clients and proxies keep theirs, or they would send a
# request into one that is just being closed.
keepalive = 75
# Else it opens a control socket under $HOME, which may be empty, read-only or shared.
control_socket_disable = True
loglevel = "warning"
