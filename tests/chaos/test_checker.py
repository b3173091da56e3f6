"""The checker of chaos runs finds what is wrong: a check that cannot fail proves nothing."""

import json
from dataclasses import replace

import pytest

from ops.chaos.checker import Row, check, percentile
from ops.chaos.compare import as_markdown as compared
from ops.chaos.faults import FAULTS, KINDS, PROMISES, Injection
from ops.chaos.report import Circumstances, as_json, as_markdown
from ops.chaos.witness import Run, parse
from ops.chaos.workload import Asked

SHORT = Asked("a", "short", {}, ["succeeded"], told="accepted", ids=["1"])
DONE = Row("1", "a", "succeeded", ("succeeded",))
RAN = Run("1", 1, child=11, worker=10, began=100.0, ended=101.0)


def found(asked=SHORT, row=DONE, runs=(RAN,), injections=()):
    return check([asked], [row] if row else [], list(runs), list(injections))


def test_what_went_well_is_sound():
    findings = found()
    assert findings.is_sound
    assert (findings.accepted, findings.started_more_than_once, findings.recovered) == (1, 0, 0)
    assert findings.ends == {"short": {"succeeded": 1}}


@pytest.mark.parametrize(
    ("row", "runs", "says"),
    [
        (None, [RAN], "there is no row"),
        (replace(DONE, state="running", outcomes=()), [RAN], "still running"),
        (replace(DONE, state="queued", outcomes=()), [], "still queued"),
        (DONE, [], "no execution got to its end"),
        (DONE, [replace(RAN, ended=None)], "no execution got to its end"),
    ],
)
def test_what_is_lost_is_found(row, runs, says):
    findings = found(row=row, runs=runs)
    assert not findings.is_sound
    assert says in findings.lost[0]


@pytest.mark.parametrize(
    "outcomes", [("succeeded", "succeeded"), ("succeeded", "lost"), ("lost", "succeeded", "succeeded")]
)
def test_what_finished_twice_is_found(outcomes):
    findings = found(row=replace(DONE, outcomes=outcomes))
    assert len(findings.finished_twice) == 1
    assert not findings.is_sound


@pytest.mark.parametrize(
    ("asked", "row"),
    [
        (SHORT, replace(DONE, state="dead", outcomes=("failed",))),
        (SHORT, replace(DONE, state="cancelled", outcomes=())),
        (SHORT, replace(DONE, outcomes=())),  # said to have succeeded, and no attempt says so
        (replace(SHORT, ids=["1", "2"]), DONE),  # the same task was accepted as two
        (replace(SHORT, ids=["2"]), DONE),
        (replace(SHORT, kind="failing", ends=["dead"]), DONE),
    ],
)
def test_what_ended_otherwise_is_found(asked, row):
    assert len(found(asked, row).wrong_end) == 1


def test_a_task_of_which_nobody_was_told_may_be_there_or_not():
    unknown = replace(SHORT, told="unknown", ids=[])
    assert found(unknown, None, []).is_sound
    assert found(unknown).is_sound
    assert not found(unknown, replace(DONE, state="running", outcomes=())).is_sound


def test_what_was_refused_is_not_missed():
    findings = found(replace(SHORT, told="refused: 422", ids=[]), None, [])
    assert findings.is_sound
    assert findings.refused == 1


def test_the_task_that_follows_is_missed_too():
    leader = replace(SHORT, kind="dependent", follows="b")
    findings = found(leader)
    assert findings.lost == ["b: there is no row"]
    rows = [DONE, Row("2", "b", "succeeded", ("succeeded",))]
    assert check([leader], rows, [RAN, replace(RAN, task="2")], []).is_sound


def test_a_second_start_is_counted_and_no_fault():
    runs = [replace(RAN, ended=None), replace(RAN, number=2, child=12, began=103.0, ended=104.0)]
    findings = found(row=replace(DONE, outcomes=("lost", "succeeded")), runs=runs)
    assert findings.is_sound
    assert (findings.started_more_than_once, findings.recovered) == (1, 1)


@pytest.mark.parametrize(("fault", "victim"), [("kill-child", 11), ("kill-worker", 10)])
def test_recovery_is_the_time_to_the_next_start(fault, victim):
    runs = [replace(RAN, ended=None), replace(RAN, number=2, child=12, began=103.5, ended=104.0)]
    injection = Injection(fault, began=100.5, healed=100.5, victims=[victim])
    kind = KINDS[fault]
    assert found(runs=runs, injections=[injection]).recovery[kind] == [3.0]
    assert found(runs=runs, injections=[replace(injection, overlapped=True)]).recovery[kind] == []
    assert found(runs=runs, injections=[replace(injection, victims=[99])]).recovery[kind] == []
    assert found(runs=runs, injections=[replace(injection, began=99.0)]).recovery[kind] == []


def test_what_had_failed_before_the_fault_is_no_victim():
    failed = replace(RAN, ended=None, failed=100.2)
    runs = [failed, replace(RAN, number=2, child=12, began=103.5, ended=104.0)]
    injection = Injection("kill-worker", began=100.5, healed=100.5, victims=[10])
    assert found(runs=runs, injections=[injection]).recovery["worker"] == []


def test_what_had_ended_before_the_fault_is_no_victim():
    runs = [RAN, replace(RAN, number=2, child=12, began=103.5, ended=104.0)]
    injection = Injection("kill-worker", began=102.0, healed=102.0, victims=[10])
    assert found(runs=runs, injections=[injection]).recovery["worker"] == []


def test_redis_is_timed_from_its_return_to_the_next_start_of_anything():
    injection = Injection("kill-redis", began=90.0, healed=98.0)
    assert found(injections=[injection]).recovery["redis"] == [2.0]


def test_a_recovery_beyond_the_promise_is_named():
    runs = [replace(RAN, ended=None), replace(RAN, number=2, child=12, began=140.0, ended=141.0)]
    injection = Injection("kill-child", began=100.5, healed=100.5, victims=[11])
    assert found(runs=runs, injections=[injection]).too_slow() == {"child": 39.5}


def test_percentiles_are_values_that_occurred():
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, each) for each in (50, 99, 100)] == [50.0, 99.0, 100.0]
    assert percentile([7.0], 99) == 7.0
    assert percentile([], 50) == 0.0


def test_the_witness_reads_starts_without_ends():
    lines = ["start t 1 11 10 100.000", "start u 1 12 10 100.500", "end t 1 11 10 101.000"]
    lines += ["start v 1 12 10 102.000", "failed v 1 12 10 103.000"]
    assert parse(lines) == [
        Run("t", 1, 11, 10, 100.0, 101.0),
        Run("u", 1, 12, 10, 100.5, None),
        Run("v", 1, 12, 10, 102.0, None, 103.0),
    ]


def test_the_page_names_every_fault_also_those_that_were_not_injected():
    circumstances = Circumstances("Capataz", 7, 1.0, 61.0, 3, 3)
    injections = [Injection("kill-child"), Injection("clock-jump", injected=False, note="no compiler")]
    page = as_markdown(circumstances, found(row=None), injections)
    assert all(f"| {name} |" in page for name in FAULTS)
    assert "| clock-jump | 0 |  | no compiler |" in page
    assert "| kill-web | 0 |  | not asked for |" in page
    assert "- a: there is no row" in page
    assert '"sound": false' in as_json(circumstances, found(row=None), injections)


def test_every_promise_belongs_to_a_fault():
    assert set(KINDS.values()) == set(PROMISES)
    assert set(KINDS) <= set(FAULTS)


def deadly(how="segfault"):
    return replace(SHORT, kind="misbehaving", task={"data": {"how": how}})


DIED = [
    replace(RAN, ended=None, failed=100.5),
    replace(RAN, number=2, child=12, began=101.25, ended=101.5),
]
RAN_AGAIN = replace(DONE, outcomes=("lost", "succeeded"))


def test_a_task_that_kills_its_process_counts_as_the_death_of_a_child():
    assert found(deadly(), RAN_AGAIN, DIED).recovery["child"] == [0.75]
    assert found(deadly("past-hard-limit"), RAN_AGAIN, DIED).recovery["child"] == []


@pytest.mark.parametrize(("began", "healed"), [(90.0, 98.0), (101.0, 102.0)])
def test_a_death_beside_a_fault_says_nothing_about_times(began, healed):
    injection = Injection("lock-table", began=began, healed=healed)
    assert found(deadly(), RAN_AGAIN, DIED, [injection]).recovery["child"] == []
    not_injected = replace(injection, injected=False)
    assert found(deadly(), RAN_AGAIN, DIED, [not_injected]).recovery["child"] == [0.75]


def test_the_page_counts_every_misbehaviour():
    circumstances = Circumstances("Capataz", 7, 1.0, 61.0, 3, 3)
    page = as_markdown(circumstances, found(deadly(), RAN_AGAIN, DIED), [])
    assert "| segfault | 1 succeeded |" in page
    assert "| huge-result | none was asked for |" in page


def test_runs_are_compared_side_by_side():
    good = as_json(Circumstances("Capataz", 7, 1.0, 60.0, 3, 3), found(), [Injection("kill-child")])
    unended = replace(DONE, state="started", outcomes=())
    bad = as_json(Circumstances("Celery", 7, 1.0, 66.0, 3, 3), found(row=unended), [])
    table = compared([json.loads(good), json.loads(bad)]).splitlines()
    assert table[0] == "|  | Capataz | Celery |"
    assert "| minutes of faults | 1.0 | 1.1 |" in table
    assert "| **lost**, or not ended four minutes later | 0 | 1 |" in table
    assert "| of these: with a row | 0 | 1 |" in table
