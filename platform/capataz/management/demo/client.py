"""The client: the demo's way to the platform is the HTTP API, with a token, as everybody's."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import quote

from capataz.management.demo.errors import DemoFailed
from capataz.management.demo.workload import Job

TIMEOUT = 30  # seconds
TRIES = 10
PAUSE = 1.0  # seconds between two tries
PAGE = 200
BULK = 100  # tasks a call: a few calls, so that there is something to see


class Client:
    """Calls the API. A call that finds nobody, or a 503, is made again: our ids make that harmless."""

    def __init__(self, url: str, token: str, check: Callable[[], None]) -> None:
        """``check`` is called between two calls and may raise."""
        self._url = f"{url}/api/v1"
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self._check = check
        # Never through a proxy that the environment names: it knows another 127.0.0.1.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def submit(self, job: Job) -> None:
        """Submit one task."""
        self._call("/tasks", job.submission())

    def submit_many(self, jobs: Sequence[Job]) -> None:
        """Submit tasks in bulk."""
        for start in range(0, len(jobs), BULK):
            self._call("/tasks/bulk", {"tasks": [job.submission() for job in jobs[start : start + BULK]]})

    def cancel(self, job: Job) -> None:
        """Cancel a task."""
        self._call(f"/tasks/{quote(job.id)}/cancel", {"reason": "the demo shows it"})

    def tasks(self) -> Iterator[dict[str, Any]]:
        """Every task, newest first, without its attempts."""
        cursor = ""
        while True:
            page = self._call(f"/tasks?limit={PAGE}{cursor}")
            yield from page["items"]
            if page["nextCursor"] is None:
                return
            cursor = f"&cursor={page['nextCursor']}"

    def living_workers(self) -> list[dict[str, Any]]:
        """The workers that are there."""
        return [worker for worker in self._call("/workers") if worker["state"] in ("running", "draining")]

    def _call(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        for left in reversed(range(TRIES)):
            self._check()
            request = urllib.request.Request(self._url + path, data, self._headers)  # noqa: S310  # ours
            try:
                with self._opener.open(request, timeout=TIMEOUT) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code != 503 or not left:
                    raise DemoFailed(
                        f"{path} answered {error.code}: {error.read().decode()[:1000]}"
                    ) from None
            except OSError as error:
                if not left:
                    raise DemoFailed(f"{path} does not answer: {error}") from None
            time.sleep(PAUSE)
        raise AssertionError("the last try returns or raises")
