"""Bringing the platform up in one command, and keeping it up until a signal ends it."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from capataz import home
from capataz.services.embedded import Servers, choose_servers, make_home
from capataz.services.errors import StartFailed
from capataz.services.keepsakes import Keepsakes, is_free
from capataz.services.lock import HomeLock
from capataz.services.output import Output
from capataz.services.platform_processes import FLOWER_USER, Lineup
from capataz.services.supervisor import KILL_AFTER, Stopped, Supervisor
from capataz.services.waiting import eventually

SERVERS_WITHIN = 120  # seconds; after a crash they repair themselves first
PLATFORM_WITHIN = 120  # seconds, on a slow machine
# A process that has died this often before it was ready once is not going to live.
TOO_MANY_DEATHS = 4
LAST_WORDS = 2.0  # seconds that a worker has after the grace


@dataclass(frozen=True)
class Wish:
    """What to bring up. A URL of None means: a server of our own."""

    home: Path
    database_url: str | None
    redis_url: str | None
    address: str
    port: int
    workers: int
    min_concurrency: int
    max_concurrency: int
    flower: bool
    grace: float  # seconds that workers have for their running tasks when everything stops

    @property
    def kill_after(self) -> float:
        """Seconds from the beginning of a stop to the killing of what is left."""
        return max(KILL_AFTER, self.grace + LAST_WORDS)


# Whether a worker has registered itself for each of these pids, in the database of this URL.
Registered = Callable[[str, set[int]], bool]


def bring_up(wish: Wish, registered: Registered) -> None:
    """Run the platform until SIGINT or SIGTERM; says ``ready <url>`` as soon as it can be used.

    Raises StartFailed, with nothing left running, if it does not come up.
    """
    make_home(wish.home)
    with HomeLock(wish.home):
        _refuse_taken_port(wish)
        output = Output(wish.home / "logs", width=len("dispatcher"))
        try:
            _Startup(wish, output, registered).run()
        finally:
            home.withdraw(wish.home)
            output.close()


def _refuse_taken_port(wish: Wish) -> None:
    # A run.json that is still there was left by a supervisor that was killed: its processes are
    # ending just now.
    patience = wish.kill_after if home.run_file(wish.home).exists() else 0
    if not eventually(lambda: is_free(wish.address, wish.port), patience):
        place = f"{wish.address}:{wish.port}"
        raise StartFailed(f"{place} cannot be used, or is taken. Choose a port with --port, or set PORT.")


class _Startup:
    def __init__(self, wish: Wish, output: Output, registered: Registered) -> None:
        self._wish = wish
        self._output = output
        self._registered = registered
        self._run: home.Run | None = None

    def run(self) -> None:
        with Supervisor(self._output, self._refresh, kill_after=self._wish.kill_after) as supervisor:
            try:
                servers = self._start_servers(supervisor)
                lineup = self._lineup(servers)
                self._prepare_database(supervisor, lineup)
                self._start_platform(supervisor, lineup)
                self._announce(supervisor, lineup)
                supervisor.run()
            except Stopped:
                pass
            finally:
                self._output.say("stopping")
                home.withdraw(self._wish.home)
                self._run = None
        self._output.say("stopped")

    def _start_servers(self, supervisor: Supervisor) -> Servers:
        wish = self._wish
        servers = choose_servers(wish.home, wish.database_url, wish.redis_url)
        for server in servers.own():
            self._output.say(f"starting {server.name}")
            supervisor.start(server.spec())
        for server in servers.own():
            self._wait(supervisor, server.answers, SERVERS_WITHIN, f"{server.name} does not answer")
        return servers

    def _lineup(self, servers: Servers) -> Lineup:
        wish = self._wish
        return Lineup(
            home=wish.home,
            database_url=servers.database_url,
            redis_url=servers.redis_url,
            address=wish.address,
            port=wish.port,
            workers=wish.workers,
            min_concurrency=wish.min_concurrency,
            max_concurrency=wish.max_concurrency,
            flower_port=Keepsakes(wish.home).port("flower-port") if wish.flower else None,
        )

    def _prepare_database(self, supervisor: Supervisor, lineup: Lineup) -> None:
        for name, arguments in (
            ("migrate", ["migrate", "--no-input", "--verbosity=0"]),
            ("setup", ["setup_platform"]),
        ):
            self._output.say(f"running {arguments[0]}")
            if supervisor.run_to_its_end(lineup.manage(name, *arguments)):
                raise StartFailed(f"{arguments[0]} failed; see {self._wish.home / 'logs' / name}.log")

    def _start_platform(self, supervisor: Supervisor, lineup: Lineup) -> None:
        specs = lineup.specs()
        self._output.say(f"starting {', '.join(spec.name for spec in specs)}")
        for spec in specs:
            supervisor.start(spec)

        def is_up() -> bool:
            workers = {one.pid for one in supervisor.processes() if one.name.startswith("worker-")}
            return (
                supervisor.all_alive()
                and len(workers) == lineup.workers
                and is_healthy(lineup.web_url)
                and self._registered(lineup.database_url, workers)
            )

        self._wait(supervisor, is_up, PLATFORM_WITHIN, "the platform is not ready")

    def _wait(
        self, supervisor: Supervisor, condition: Callable[[], bool], seconds: float, complaint: str
    ) -> None:
        def is_settled() -> bool:
            return condition() or supervisor.most_quick_deaths() >= TOO_MANY_DEATHS

        if (
            not supervisor.wait_until(is_settled, seconds)
            or supervisor.most_quick_deaths() >= TOO_MANY_DEATHS
        ):
            raise StartFailed(f"{complaint}; see {self._wish.home / 'logs'}")

    def _announce(self, supervisor: Supervisor, lineup: Lineup) -> None:
        self._run = home.Run(
            pid=os.getpid(),
            started=home.start_time(os.getpid()) or 0,
            web=lineup.web_url,
            database_url=lineup.database_url,
            redis_url=lineup.redis_url,
            flower=lineup.flower_url,
        )
        self._refresh(supervisor.processes())
        self._output.say(f"ready {lineup.web_url}")
        self._introduce(lineup)

    def _introduce(self, lineup: Lineup) -> None:
        """Where to look, and where the passwords are."""
        place = self._wish.home
        if (password := place / "admin-password").exists():
            self._output.say(f"admin   {lineup.web_url}/admin/ as admin, password in {password}")
        if lineup.flower_url:
            password = place / "secrets" / "flower-password"
            self._output.say(f"Flower  {lineup.flower_url} as {FLOWER_USER}, password in {password}")
        self._output.say(f"logs    {place / 'logs'}")
        if os.geteuid() == 0:
            self._output.say("Handlers run as root here: for more than a trial, start as an ordinary user.")

    def _refresh(self, processes: list[home.Process]) -> None:
        if self._run is not None:
            home.announce(replace(self._run, processes=processes), self._wish.home)


def is_healthy(web_url: str) -> bool:
    """Whether the web process says that it is well."""
    # Never through a proxy that the environment names: it knows another 127.0.0.1.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{web_url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False
