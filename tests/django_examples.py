"""Tasks as Django's documentation of its Tasks framework has them, and a few for what it says beside them."""

import asyncio
import logging
from typing import Any

from django.core.mail import send_mail
from django_tasks import task

from tests.workload import note, notes

logger = logging.getLogger(__name__)


@task(priority=2, queue_name="emails")
def email_users(emails, subject, message):
    return send_mail(subject=subject, message=message, from_email=None, recipient_list=emails)


@task(takes_context=True)
def email_in_context(context, emails, subject, message):
    logger.debug(f"Attempt {context.attempt} to send user email. Task result id: {context.task_result.id}.")
    return [context.attempt, context.task_result.id, context.task_result.status]


@task()
def double_dictionary(key):
    return {key: key * 2}


@task
def process_data(data: Any) -> Any:
    return data


@task
async def later(value: int) -> int:
    await asyncio.sleep(0)
    return value + 1


@task
def fails_once(file: str) -> int:
    note(file, "try")
    if len(notes(file)) == 1:
        raise LookupError("not\nyet")
    return 42


class OwnError(Exception):
    pass


@task
def fails() -> None:
    try:
        raise KeyError("first")
    except KeyError:
        raise OwnError("Traceback: mine\nWorse: yes") from None


def not_a_task() -> None:
    raise AssertionError("never runs")
