"""Counting: exact where it is cheap, honest where it is not."""

from __future__ import annotations

import pytest
from django.db import connection

from capataz.lifecycle.submission import Submission, submit_many
from capataz.models import Task, counting
from capataz.models.counting import Count, count

pytestmark = pytest.mark.django_db


def submit_some(number: int) -> None:
    submit_many([Submission(type="demo.echo") for _ in range(number)])


def test_few_rows_are_counted_exactly() -> None:
    submit_some(3)
    assert count(Task.objects.all()) == Count(3)
    assert count(Task.objects.filter(state="dead")) == Count(0)
    assert count(Task.objects.none()) == Count(0)
    assert count(Task.objects.filter(state__in=[])) == Count(0)


def test_counting_stops_at_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "CAP", 5)
    submit_some(5)
    assert count(Task.objects.all()) == Count(5, exact=True)
    submit_some(1)
    assert count(Task.objects.all()) == Count(5, exact=False)


def test_what_is_dear_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "CHEAP", 0.0)
    submit_some(200)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE capataz_task")
    found = count(Task.objects.all())
    assert found.estimated
    assert found.value == 200


@pytest.mark.parametrize(
    ("number", "text"),
    [(Count(1234), "1,234"), (Count(10_000, exact=False), "10,000+"), (Count(7, False, True), "about 7")],
)
def test_a_count_says_what_it_is(number: Count, text: str) -> None:
    assert str(number) == text


def test_counts_add_up_with_their_doubts() -> None:
    assert Count(1) + Count(2) == Count(3)
    assert Count(1) + Count(2, exact=False) == Count(3, exact=False)
    assert Count(1, False, True) + Count(2) == Count(3, False, True)
