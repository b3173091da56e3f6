"""Plain Celery under the supervisor that Capataz uses: PostgreSQL, Redis, and workers that are restarted.

``python -m ops.chaos.peer_platform HOME WORKERS CONCURRENCY``; runs until a signal ends it.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from capataz import home
from capataz.home import REPOSITORY
from capataz.services.child import ProcessSpec
from capataz.services.embedded import choose_servers, make_home
from capataz.services.lock import HomeLock
from capataz.services.output import Output
from capataz.services.supervisor import Stopped, Supervisor

SERVERS_WITHIN = 120  # seconds


def main(place: Path, workers: int, concurrency: str) -> None:
    """Bring it up, say so in run.json, and keep it up."""
    make_home(place)
    run: home.Run | None = None

    def refresh(processes: list[home.Process]) -> None:
        if run is not None:
            home.announce(replace(run, processes=processes), place)

    with HomeLock(place):
        output = Output(place / "logs")
        try:
            with Supervisor(output, refresh) as supervisor:
                servers = choose_servers(place, None, None)
                for server in servers.own():
                    supervisor.start(server.spec())
                for server in servers.own():
                    supervisor.wait_until(server.answers, SERVERS_WITHIN)
                environment = {
                    **os.environ,
                    "DATABASE_URL": servers.database_url,
                    "REDIS_URL": servers.redis_url,
                    "CAPATAZ_HOME": str(place),
                    "DJANGO_SETTINGS_MODULE": "ops.bench.peer_settings",
                    "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "platform"), str(REPOSITORY)]),
                }
                migrate = [sys.executable, "-P", "-m", "django", "migrate", "--verbosity=0"]
                supervisor.run_to_its_end(ProcessSpec("migrate", migrate, env=environment, cwd=REPOSITORY))
                for number in range(1, workers + 1):
                    argv = [
                        sys.executable, "-P", "-m", "celery", "-A", "ops.chaos.peer", "worker",
                        "-n", f"worker-{number}@%h", f"--autoscale={concurrency}", "-O", "fair",
                        "--without-gossip", "--without-mingle", "-l", "WARNING",
                    ]  # fmt: skip
                    spec = ProcessSpec(f"worker-{number}", argv, env=environment, cwd=REPOSITORY)
                    supervisor.start(spec)
                run = home.Run(
                    pid=os.getpid(),
                    started=home.start_time(os.getpid()) or 0,
                    web="",
                    database_url=servers.database_url,
                    redis_url=servers.redis_url,
                )
                refresh(supervisor.processes())
                supervisor.run()
        except Stopped:
            pass
        finally:
            home.withdraw(place)
            output.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
