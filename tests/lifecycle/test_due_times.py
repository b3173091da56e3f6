"""Due times: a grid that every beat agrees on, and clocks that are put forward and back."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from celery.schedules import BaseSchedule, schedule
from django_celery_beat.clockedschedule import clocked
from django_celery_beat.tzcrontab import TzAwareCrontab
from hypothesis import assume, given
from hypothesis import strategies as st

from capataz.lifecycle.due_times import EPOCH, Unschedulable, latest_dues, next_due

moments = st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
intervals = st.integers(1, 7 * 86400).map(lambda seconds: timedelta(seconds=seconds))
zones = st.sampled_from(
    ["UTC", "Europe/Madrid", "America/New_York", "America/Santiago", "Australia/Lord_Howe", "Asia/Kathmandu"]
)
minutes = st.sampled_from(["*", "*/15", "0", "30", "7,37", "5-10"])
hours = st.sampled_from(["*", "*/6", "2", "0,12", "1-3", "23"])
days = st.sampled_from(["*", "1", "13", "*/10", "28-31"])
weekdays = st.sampled_from(["*", "mon-fri", "sun", "1,4"])


def cron(expression: str, zone: str = "UTC") -> TzAwareCrontab:
    minute, hour, day, month, weekday = expression.split()
    return TzAwareCrontab(minute, hour, weekday, day, month, tz=ZoneInfo(zone))


# When these clocks are put back, forward, back by half an hour, and over a whole day.
CHANGES = [
    ("Europe/Madrid", datetime(2026, 10, 25, 1, tzinfo=UTC)),
    ("America/New_York", datetime(2026, 3, 8, 7, tzinfo=UTC)),
    ("America/Santiago", datetime(2026, 9, 6, 4, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 4, 4, 15, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 10, 3, 15, 30, tzinfo=UTC)),
    ("Pacific/Apia", datetime(2011, 12, 30, 10, tzinfo=UTC)),
]


def crontabs_in(zones: st.SearchStrategy[str]) -> st.SearchStrategy[TzAwareCrontab]:
    return st.builds(
        lambda minute, hour, day, weekday, zone: cron(f"{minute} {hour} {day} * {weekday}", zone),
        minutes,
        hours,
        days,
        weekdays,
        zones,
    )


crontabs = crontabs_in(zones)


def rules_around(zone: str, change: datetime) -> st.SearchStrategy[tuple[TzAwareCrontab, datetime]]:
    return st.tuples(crontabs_in(st.just(zone)), st.just(change))


def minute_by_minute(rule: TzAwareCrontab, after: datetime, until: datetime) -> list[datetime]:
    """Due times by looking at the clock every minute: cron's rules, with no calendar arithmetic."""
    minute, step = after.replace(second=0, microsecond=0), timedelta(minutes=1)
    found = []
    while (minute := minute + step) <= until:
        shows, showed = (moment.astimezone(rule.tz) for moment in (minute, minute - step))
        leapt_over = minutes_after(showed.replace(tzinfo=None), shows.replace(tzinfo=None))
        if follows_the_clock(rule):
            is_due = fits(rule, shows)
        else:
            is_due = (fits(rule, shows) and not shows.fold) or any(fits(rule, each) for each in leapt_over)
        if is_due:
            found.append(minute)
    return found


def minutes_after(first: datetime, last: datetime) -> Iterator[datetime]:
    """The minutes between these two, without them."""
    while (first := first + timedelta(minutes=1)) < last:
        yield first


def follows_the_clock(rule: TzAwareCrontab) -> bool:
    return any(str(written).startswith("*") for written in (rule._orig_minute, rule._orig_hour))


def fits(rule: TzAwareCrontab, shown: datetime) -> bool:
    return (
        shown.minute in rule.minute
        and shown.hour in rule.hour
        and shown.day in rule.day_of_month
        and shown.isoweekday() % 7 in rule.day_of_week
    )


def dues(rule: object, after: datetime, count: int) -> list[datetime]:
    found = []
    while len(found) < count and (due := next_due(rule, after)) is not None:
        found.append(due)
        after = due
    return found


def local(expression: str, zone: str, after: str, count: int) -> list[str]:
    """The next due times as the clock on the wall shows them."""
    moment = datetime.fromisoformat(after).replace(tzinfo=ZoneInfo(zone))
    found = dues(cron(expression, zone), moment, count)
    return [due.astimezone(ZoneInfo(zone)).isoformat(timespec="minutes") for due in found]


# Intervals.


@given(moments, intervals)
def test_an_intervals_due_time_is_the_next_point_of_its_grid(moment: datetime, every: timedelta) -> None:
    due = next_due(schedule(every), moment)
    assert due is not None
    assert due - every <= moment < due
    assert (due - EPOCH) % every == timedelta()


@given(moments, intervals, moments)
def test_a_grid_may_have_another_anchor(moment: datetime, every: timedelta, anchor: datetime) -> None:
    due = next_due(schedule(every), moment, anchor=anchor)
    assert due is not None
    assert (due - anchor) % every == timedelta()


@given(moments, intervals, st.integers(1, 30))
def test_no_point_of_a_grid_is_left_out_or_comes_twice(
    moment: datetime, every: timedelta, count: int
) -> None:
    ahead = dues(schedule(every), moment, count)
    assert [later - earlier for earlier, later in pairwise(ahead)] == [every] * (count - 1)
    assert latest_dues(schedule(every), moment, ahead[-1], most=count + 5) == ahead
    assert latest_dues(schedule(every), moment, ahead[-1], most=1) == ahead[-1:]


# Crontabs.


@given(crontabs, moments, st.integers(1, 12))
def test_looking_back_finds_what_looking_ahead_found(
    rule: TzAwareCrontab, moment: datetime, count: int
) -> None:
    ahead = dues(rule, moment, count)
    assert ahead == sorted(set(ahead))
    assert latest_dues(rule, moment, ahead[-1], most=count + 5) == ahead
    assert latest_dues(rule, moment, ahead[-1] - timedelta(microseconds=1), most=count + 5) == ahead[:-1]


@given(
    st.sampled_from(CHANGES).flatmap(lambda zone_and_change: rules_around(*zone_and_change)),
    st.timedeltas(timedelta(hours=-4), timedelta(hours=4)),
)
def test_clocks_that_change_hide_and_repeat_no_due_time(
    rule_and_change: tuple[TzAwareCrontab, datetime], moment: timedelta
) -> None:
    rule, change = rule_and_change
    after, until = change + moment, change + timedelta(hours=8)
    expected = minute_by_minute(rule, after, until)
    assert latest_dues(rule, after, until, most=1000) == expected
    assert next_due(rule, after) == expected[0] if expected else next_due(rule, after) > until


@given(crontabs, moments)
def test_a_due_time_fits_its_crontab(rule: TzAwareCrontab, moment: datetime) -> None:
    [due] = dues(rule, moment, 1)
    shown = due.astimezone(rule.tz)
    shown = due.astimezone(rule.tz)
    assert (due.second, due.microsecond) == (0, 0)
    assert shown.day in rule.day_of_month
    assert shown.isoweekday() % 7 in rule.day_of_week
    assume(shown.utcoffset() == (shown - timedelta(hours=3)).utcoffset())  # no change of the clock around it
    assert (shown.hour in rule.hour, shown.minute in rule.minute) == (True, True)


def test_the_day_of_the_month_and_the_day_of_the_week_have_to_fit_both() -> None:
    assert local("0 9 13 * fri", "UTC", "2026-01-01", 3) == [
        "2026-02-13T09:00+00:00",
        "2026-03-13T09:00+00:00",
        "2026-11-13T09:00+00:00",
    ]


@pytest.mark.parametrize(
    ("zone", "expression", "after", "expected"),
    [
        # 02:00 to 03:00 does not exist: the job runs when it is over, and the next day as ever.
        ("Europe/Madrid", "30 2 * * *", "2026-03-28T12:00", ["03-29T03:00+02:00", "03-30T02:30+02:00"]),
        # 02:30 comes twice: the first one counts.
        ("Europe/Madrid", "30 2 * * *", "2026-10-24T12:00", ["10-25T02:30+02:00", "10-26T02:30+01:00"]),
        ("America/New_York", "15 2 * * *", "2026-03-08T00:00", ["03-08T03:00-04:00", "03-09T02:15-04:00"]),
        ("America/New_York", "15 1 * * *", "2026-11-01T00:00", ["11-01T01:15-04:00", "11-02T01:15-05:00"]),
        # Here the clock leaps over midnight, and there by half an hour.
        ("America/Santiago", "10 0 * * *", "2026-09-05T12:00", ["09-06T01:00-03:00", "09-07T00:10-03:00"]),
        ("Australia/Lord_Howe", "15 2 * * *", "2026-10-03T12:00", ["10-04T02:30+11:00", "10-05T02:15+11:00"]),
        # What follows the clock runs in every hour there is, the doubled one twice.
        ("Europe/Madrid", "0 * * * *", "2026-10-25T01:30", ["10-25T02:00+02:00", "10-25T02:00+01:00"]),
        ("Europe/Madrid", "*/30 * * * *", "2026-03-29T01:15", ["03-29T01:30+01:00", "03-29T03:00+02:00"]),
    ],
)
def test_clocks_that_are_put_forward_and_back(
    zone: str, expression: str, after: str, expected: list[str]
) -> None:
    assert local(expression, zone, after, 2) == [f"2026-{due}" for due in expected]


def test_a_fixed_time_is_due_once_a_day_all_through_the_year() -> None:
    for zone in ("Europe/Madrid", "America/New_York", "America/Santiago", "Australia/Lord_Howe"):
        found = dues(cron("30 2 * * *", zone), datetime(2026, 1, 1, tzinfo=UTC), 365)
        assert len({due.astimezone(ZoneInfo(zone)).date() for due in found}) == 365


# Others.


def test_a_clocked_schedule_is_due_once() -> None:
    when = datetime(2026, 5, 6, 7, tzinfo=UTC)
    rule = clocked(when)
    assert next_due(rule, when - timedelta(days=1)) == when
    assert next_due(rule, when) is None
    assert latest_dues(rule, when - timedelta(days=1), when + timedelta(days=1), most=5) == [when]
    assert latest_dues(rule, when - timedelta(days=1), when - timedelta(hours=1), most=5) == []


def test_a_schedule_of_another_kind_is_refused() -> None:
    with pytest.raises(Unschedulable, match="only intervals, crontabs and clocked times"):
        next_due(BaseSchedule(), datetime(2026, 1, 1, tzinfo=UTC))


def test_a_long_downtime_is_looked_through_from_its_end() -> None:
    rule, until = schedule(timedelta(seconds=1)), datetime(2026, 1, 1, tzinfo=UTC)
    found = latest_dues(rule, until - timedelta(days=3650), until, most=3)
    assert found == [until - timedelta(seconds=2), until - timedelta(seconds=1), until]
