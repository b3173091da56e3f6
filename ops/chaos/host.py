"""A worker on a host of its own: behind a virtual network cable, and with a clock of its own.

The cable and the packet loss need the right to make network namespaces (root), the clock a C compiler. What
is not there is said in ``lacks``, and the faults that need it are reported as not injected.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from capataz.home import REPOSITORY
from capataz.services.keepsakes import free_port
from ops.chaos.target import Target, wait_until

READY_WITHIN = 60  # seconds
SHIM = Path(__file__).with_name("clock.c")


class Host:
    """One worker of our own, started again when it dies, as any supervisor would."""

    def __init__(self, target: Target, folder: Path, environment: dict[str, str]) -> None:
        """``environment`` is what the platform's other processes are told."""
        self._environment = environment
        self._target = target
        self._folder = folder
        number = os.getpid() % 200
        self._namespace = f"chaos{os.getpid()}"
        self._cable = f"cz{os.getpid()}"
        self._here, self._there = f"10.213.{number}.1", f"10.213.{number}.2"
        self._relays: list[subprocess.Popen[bytes]] = []
        self._worker: subprocess.Popen[bytes] | None = None
        self._clock = folder / "clock-offset"
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep_alive, daemon=True)
        self.lacks: dict[str, str] = {}

    @property
    def pid(self) -> int:
        """The worker's parent."""
        assert self._worker is not None
        return self._worker.pid

    def start(self) -> None:
        """Lay the cable, build the clock, and start the worker."""
        self._folder.mkdir(exist_ok=True)
        self._lay_cable()
        self._build_clock()
        if "network" in self.lacks:
            self._here = "127.0.0.1"
        run = self._target.run()
        database = conninfo_to_dict(run.database_url)
        broker = urlsplit(run.redis_url)
        postgres_port, redis_port = free_port(), free_port()
        for port, target in ((postgres_port, database["port"]), (redis_port, broker.port)):
            command = [sys.executable, "-P", "-m", "ops.chaos.relay", self._here, str(port), str(target)]
            self._relays.append(self._popen(command, "relay", PYTHONPATH=str(REPOSITORY)))
        self._urls = {
            "DATABASE_URL": make_conninfo(run.database_url, host=self._here, port=postgres_port),
            "REDIS_URL": urlunsplit(broker._replace(netloc=f":{broker.password}@{self._here}:{redis_port}")),
        }
        self._start_worker()
        self._keeper.start()

    def stop(self) -> None:
        """End the worker and take the cable away."""
        self._stopping.set()
        self.plug_in()
        self.lose_packets(0)
        if self._worker is not None:
            self._keeper.join()
            self._worker.send_signal(signal.SIGCONT)
            self._worker.terminate()
            try:
                self._worker.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self._worker.kill()
        for relay in self._relays:
            relay.kill()
            relay.wait()
        if "network" not in self.lacks:
            _run("ip", "netns", "del", self._namespace)
            _run("ip", "link", "del", self._cable)

    def unplug(self) -> None:
        """Nothing gets through in either direction, and nobody is told."""
        self._switch("down", signal.SIGSTOP)

    def plug_in(self) -> None:
        """The cable is whole again."""
        self._switch("up", signal.SIGCONT)

    def lose_packets(self, percent: int) -> None:
        """Lose so many of the packets in both directions."""
        if "packet-loss" in self.lacks:
            return
        _run("nft", "delete", "table", "inet", self._namespace)
        if percent:
            rules = f"""table inet {self._namespace} {{
                chain in {{ type filter hook input priority 0;
                    iifname "{self._cable}" numgen random mod 100 < {percent} drop; }}
                chain out {{ type filter hook output priority 0;
                    oifname "{self._cable}" numgen random mod 100 < {percent} drop; }}
            }}"""
            subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)

    def set_clock(self, offset: int) -> None:
        """Move the worker's wall clock, in seconds from the true time."""
        with self._clock.open("r+b") as file:
            file.write(offset.to_bytes(8, sys.byteorder, signed=True))

    def _switch(self, cable: str, relays: signal.Signals) -> None:
        """The cable, or for want of one the relays in its place."""
        if "network" in self.lacks:
            for relay in self._relays:
                relay.send_signal(relays)
        else:
            _run("ip", "link", "set", self._cable, cable)

    def _lay_cable(self) -> None:
        steps = [
            ["ip", "netns", "add", self._namespace],
            ["ip", "link", "add", self._cable, "type", "veth", "peer", "eth0", "netns", self._namespace],
            ["ip", "addr", "add", f"{self._here}/30", "dev", self._cable],
            ["ip", "link", "set", self._cable, "up"],
            ["ip", "-n", self._namespace, "addr", "add", f"{self._there}/30", "dev", "eth0"],
            ["ip", "-n", self._namespace, "link", "set", "eth0", "up"],
            ["ip", "-n", self._namespace, "link", "set", "lo", "up"],
        ]
        for step in steps:
            if problem := _run(*step):
                self.lacks["network"] = f"a network namespace is needed: {problem}"
                self.lacks["packet-loss"] = self.lacks["network"]
                return
        if not shutil.which("nft"):
            self.lacks["packet-loss"] = "the command nft (nftables) is needed"
        elif problem := _run("nft", "add", "table", "inet", self._namespace):
            self.lacks["packet-loss"] = f"nftables cannot be used: {problem}"

    def _build_clock(self) -> None:
        self._clock.write_bytes(bytes(8))
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            self.lacks["clock"] = "a C compiler is needed"
        elif problem := _run(
            compiler, "-shared", "-fPIC", "-O2", "-o", str(self._folder / "clock.so"), str(SHIM), "-ldl"
        ):
            self.lacks["clock"] = f"the clock could not be built: {problem}"

    def _start_worker(self) -> None:
        command = [
            sys.executable, "-P", "-m", "celery", "-q", "-A", "capataz", "worker", "-n", "remote@%h",
            "--autoscale=4,2", "-O", "fair", "--without-gossip", "--without-mingle", "-l", "WARNING",
        ]  # fmt: skip
        if "network" not in self.lacks:
            command = ["ip", "netns", "exec", self._namespace, *command]
        clock = (
            {}
            if "clock" in self.lacks
            else {"LD_PRELOAD": str(self._folder / "clock.so"), "CHAOS_CLOCK": str(self._clock)}
        )
        self._worker = self._popen(
            command,
            "worker",
            **self._urls,
            **clock,
            **self._environment,
            CAPATAZ_HOME=str(self._target.home),
            DJANGO_SETTINGS_MODULE="capataz.settings",
            PYTHONPATH=os.pathsep.join([str(REPOSITORY / "platform"), str(REPOSITORY)]),
        )

    def _keep_alive(self) -> None:
        while not self._stopping.wait(0.5):
            if self._worker is not None and self._worker.poll() is not None:
                self._start_worker()

    def _popen(self, command: list[str], name: str, **environment: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_until_ready(self) -> bool:
        """Whether the worker has registered."""

        def is_there() -> Any:
            with self._target.database() as session:
                found = "SELECT 1 FROM capataz_worker WHERE pid = %s AND state = 'running'"
                return session.execute(found, [self.pid]).fetchall()

        return wait_until(is_there, READY_WITHIN, every=0.5)


def _run(*command: str) -> str:
    """What is wrong; empty if nothing is."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    return (done.stderr.strip() or f"exit code {done.returncode}") if done.returncode else ""
