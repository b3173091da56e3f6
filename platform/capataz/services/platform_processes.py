"""The processes that make up the platform, and their command lines."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from capataz import servers
from capataz.home import REPOSITORY
from capataz.services.child import ProcessSpec
from capataz.services.keepsakes import Keepsakes

FLOWER_USER = "capataz"


@dataclass(frozen=True)
class Lineup:
    """What ``manage.py up`` was asked to run."""

    home: Path
    database_url: str
    redis_url: str
    address: str = "127.0.0.1"
    port: int = 3000
    workers: int = 1
    min_concurrency: int = 2
    max_concurrency: int = 10
    flower_port: int | None = None  # None: no Flower

    @property
    def web_url(self) -> str:
        """Where a browser on this machine finds the platform."""
        everywhere = self.address in ("0.0.0.0", "::")  # noqa: S104  # only recognised here
        host = "127.0.0.1" if everywhere else f"[{self.address}]" if ":" in self.address else self.address
        return f"http://{host}:{self.port}"

    @property
    def flower_url(self) -> str | None:
        """Where Flower listens."""
        return f"http://127.0.0.1:{self.flower_port}" if self.flower_port else None

    def specs(self) -> list[ProcessSpec]:
        """The processes, in the order in which they are started."""
        specs = [self._web(), self._dispatcher()]
        specs += [self._worker(number) for number in range(1, self.workers + 1)]
        specs.append(self._beat())
        if self.flower_port:
            specs.append(self._flower())
        return specs

    def manage(self, name: str, *arguments: str) -> ProcessSpec:
        """A management command, run as the platform's processes are."""
        return self._python(name, "django", *arguments)

    def _web(self) -> ProcessSpec:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return self._python(
            "web",
            "gunicorn",
            "capataz.wsgi",
            "-c",
            "python:capataz.gunicorn",
            "--bind",
            f"{host}:{self.port}",
        )

    def _dispatcher(self) -> ProcessSpec:
        return self.manage("dispatcher", "dispatcher")

    def _worker(self, number: int) -> ProcessSpec:
        name = f"worker-{number}"
        return self._celery(
            name, "worker", "-n", f"{name}@%h", f"--autoscale={self.max_concurrency},{self.min_concurrency}",
            "-O", "fair", "--without-gossip", "--without-mingle", "-l", "WARNING",
        )  # fmt: skip

    def _beat(self) -> ProcessSpec:
        # No pid file: a stale one, whose pid somebody else has got, would keep beat from starting.
        return self._celery("beat", "beat", "--pidfile=", "-l", "WARNING")

    def _flower(self) -> ProcessSpec:
        # It executes a flowerconfig.py from its current directory, so it gets a directory of its own.
        directory = self.home / "flower"
        directory.mkdir(mode=0o700, exist_ok=True)
        password = Keepsakes(self.home).password("flower-password")
        login = {"FLOWER_BASIC_AUTH": f"{FLOWER_USER}:{password}"}  # not in argv, which every user can read
        return self._celery(
            "flower", "flower", "--address=127.0.0.1", f"--port={self.flower_port}", "--logging=error",
            cwd=directory, extra=login,
        )  # fmt: skip

    def _celery(
        self, name: str, *arguments: str, cwd: Path | None = None, extra: Mapping[str, str] | None = None
    ) -> ProcessSpec:
        return self._python(name, "celery", "-q", "-A", "capataz", *arguments, cwd=cwd, extra=extra)

    def _python(
        self,
        name: str,
        module: str,
        *arguments: str,
        cwd: Path | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> ProcessSpec:
        return ProcessSpec(
            name=name,
            # -P: the current directory, which holds folders such as "platform", is no place to import from.
            argv=[sys.executable, "-P", "-m", module, *arguments],
            env={**self._environment(), **(extra or {})},
            cwd=cwd or (REPOSITORY if (REPOSITORY / "manage.py").is_file() else self.home),
        )

    def _environment(self) -> dict[str, str]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("FLOWER_")}
        roots = [
            str(REPOSITORY / "platform"),
            str(REPOSITORY),
            *os.environ.get("PYTHONPATH", "").split(os.pathsep),
        ]
        return {
            **inherited,
            # Without a host they mean nothing, and beside the URLs of our own servers a contradiction.
            **dict.fromkeys(servers.PARTS, ""),
            "HOME": os.environ.get("HOME") or str(self.home),
            "PYTHONPATH": os.pathsep.join(root for root in roots if root),
            "PYTHONUNBUFFERED": "1",
            # Celery's eight lines about root: said in one when everything is ready.
            "PYTHONWARNINGS": "ignore:You're running the worker with superuser privileges",
            "DJANGO_SETTINGS_MODULE": "capataz.settings",
            "CAPATAZ_HOME": str(self.home),
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
        }
