"""Rotation: encrypting the sensitive values of every row anew, under the first key."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from capataz import sensitive
from capataz.database import Connection
from capataz.errors import CannotDecrypt
from capataz.sql import statement

ROWS = 2000  # looked at by one statement


@dataclass
class Rotated:
    """What a look at some rows came to. ``raced`` were changed by somebody else meanwhile."""

    looked_at: int = 0
    changed: int = 0
    raced: int = 0
    unreadable: int = 0


def rotate(connection: Connection) -> Iterator[Rotated]:
    """Go through all tasks, a transaction for each, and tell after each few thousand rows how it goes.

    It may be stopped and begun again at any time: what is under the first key already is left alone.
    """
    after = uuid.UUID(int=0)
    while True:
        parameters = {"after": after, "most": ROWS, "name": f'%"{sensitive.ENVELOPE}"%'}
        [(last, count)] = connection.execute(statement("rotation_window"), parameters).fetchall()
        if last is None:
            return
        done = Rotated(looked_at=count)
        for row in connection.execute(statement("sealed_rows"), {**parameters, "last": last}).fetchall():
            _rotate_row(connection, row, done)
        yield done
        after = last


def _rotate_row(connection: Connection, row: tuple[uuid.UUID, str, str | None], done: Rotated) -> None:
    task_id, payload, result = row
    try:
        new_payload = _anew(payload, sensitive.PAYLOAD, task_id)
        new_result = result and _anew(result, sensitive.RESULT, task_id)
    except CannotDecrypt:
        done.unreadable += 1
        return
    if (new_payload, new_result) == (payload, result):
        return
    change = {"id": task_id, "payload": payload, "result": result}
    written = connection.execute(
        statement("write_rotated"), {**change, "new_payload": new_payload, "new_result": new_result}
    )
    done.changed += written.rowcount
    done.raced += 1 - written.rowcount


def _anew(text: str, column: str, task_id: uuid.UUID) -> str:
    value = json.loads(text)
    again = sensitive.sealed_anew(value, column, task_id)
    return text if again == value else json.dumps(again, ensure_ascii=False)
