"""The message: it only points to tasks, by their ids, and holds nothing of their payload.

One message may announce several short tasks of one type (a bundle). Its own id is nobody's task id:
Celery forgets the task of a finished message's id, and a duplicate would erase the one that runs.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

HEADER = "capataz"
MAX_IDS = 250

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_EMPTY_BODY = '[[], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'


def queue_key(queue: str, step: int, separator: str = ":") -> str:
    """The Redis list (of messages, kept until consumed) that holds one priority step of a queue."""
    return f"{queue}{separator}{step}" if step else queue


def encode(task_type: str, queue: str, step: int, ids: Sequence[uuid.UUID]) -> str:
    """The message that announces these tasks, as kombu's Redis transport reads it."""
    own_id = str(uuid.uuid4())
    return json.dumps(
        {
            "body": _EMPTY_BODY,
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {
                "lang": "py",
                "task": task_type,
                "id": own_id,
                "root_id": own_id,
                "parent_id": None,
                "group": None,
                "argsrepr": "()",
                "kwargsrepr": "{}",
                HEADER: [str(task_id) for task_id in ids],
            },
            "properties": {
                "correlation_id": own_id,
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": queue},
                "priority": step,
                "body_encoding": None,
                "delivery_tag": own_id,
            },
        },
        separators=(",", ":"),
    )


def is_pointer(headers: Any) -> bool:
    """Whether a message with these headers is one of ours."""
    return isinstance(headers, Mapping) and HEADER in headers


def decode(headers: Mapping[str, Any]) -> list[uuid.UUID]:
    """The ids that a message announces, without repetitions.

    Raises ValueError for anything but a list of 1 to ``MAX_IDS`` UUIDs: anybody who reaches Redis can
    forge a message, and nothing that is not an id may get into a statement.
    """
    ids = headers.get(HEADER)
    if not isinstance(ids, list) or not 0 < len(ids) <= MAX_IDS:
        raise ValueError("the list of ids is missing, empty or too long")
    if not all(isinstance(each, str) and _UUID.fullmatch(each) for each in ids):
        raise ValueError("something in the list of ids is not a UUID")
    return [uuid.UUID(each) for each in dict.fromkeys(ids)]
