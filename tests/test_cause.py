"""The cause of a death: the same for the same fault, and readable."""

import traceback

import pytest

from capataz.cause import LONGEST, cause_of


def raised(depth, text):
    def convert(left):
        if left:
            return convert(left - 1)
        raise ValueError(text)

    try:
        convert(depth)
    except ValueError as error:
        return cause_of(f"ValueError: {error}", "".join(traceback.format_exception(error)))


def test_the_same_fault_of_the_same_code_has_the_same_cause_whatever_it_says():
    assert raised(1, "row 17") == raised(3, "row 18") == "ValueError in convert (tests/test_cause.py)"


def test_of_a_chain_the_last_exception_counts():
    try:
        try:
            int("x")
        except ValueError as error:
            raise RuntimeError("so") from error
    except RuntimeError as error:
        cause = cause_of("RuntimeError: so", "".join(traceback.format_exception(error)))
    assert cause.startswith("RuntimeError in test_of_a_chain")


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        ("hard time limit of 60 s exceeded", "hard time limit of # s exceeded"),
        (
            "quarantined after 3 deaths of its process; signal 9",
            "quarantined after # deaths of its process; signal #",
        ),
        ("SystemExit", "SystemExit"),
        (None, "unknown"),
        ("", "unknown"),
        ("two\nlines", "two"),
    ],
)
def test_what_was_not_raised_is_known_by_its_words(error, cause):
    assert cause_of(error, None) == cause


def test_a_cause_is_never_longer_than_its_column():
    assert len(cause_of("x" * 1000, None)) == LONGEST
