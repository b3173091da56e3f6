"""Everything that can be killed is killed while work goes on, and nothing is lost."""

import contextlib
import os
import random
import signal
import time

import psutil
from django.db import OperationalError

from capataz.models import Task

TASKS = int(os.environ.get("STORM_TASKS", "600"))


def test_nothing_is_lost_when_everything_is_killed(
    platform, records, eventually, restart_redis, restart_postgres, broker
):
    dispatchers = [platform.start_dispatcher()]
    workers = [platform.start_worker("3,3"), platform.start_worker("3,3")]
    records.submit(TASKS, seconds=0.05)

    def progress(share):
        def reached():
            try:
                return Task.objects.filter(pk__in=records.ids, state="succeeded").count() >= TASKS * share
            except OperationalError:
                return False

        return reached

    def keep_running():
        for group, start in (
            (dispatchers, platform.start_dispatcher),
            (workers, lambda: platform.start_worker("3,3", wait=False)),
        ):
            for index, process in enumerate(group):
                if not process.is_alive():
                    group[index] = start()

    eventually(progress(0.05))
    workers[0].kill()
    keep_running()
    eventually(progress(0.15))
    for child in random.sample(workers[1].children(), 2):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    eventually(progress(0.25))
    broker.flushall()
    eventually(progress(0.35))
    dispatchers[0].kill()
    keep_running()
    eventually(progress(0.45))
    restart_redis()
    eventually(progress(0.6))
    restart_postgres()
    eventually(progress(0.75))
    workers[1].signal(signal.SIGSTOP)
    eventually(progress(0.85))
    time.sleep(1)
    workers[1].signal(signal.SIGCONT)
    keep_running()
    eventually(records.all_succeeded)
    records.check()
