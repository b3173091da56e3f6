"""One scale of priority: 0 to 10, larger runs sooner, 5 unless said otherwise."""

from __future__ import annotations

LOWEST, DEFAULT, HIGHEST = 0, 5, 10

NAMES = {"high": 8, "medium": 5, "low": 2, "alta": 8, "media": 5, "baja": 2}

# The lists of a queue in Redis. There 0 is the most urgent; two of our priorities share a list,
# because every worker names every list of every queue in each of its reads.
REDIS_STEPS = (0, 2, 4, 6, 8, 10)


def parse(value: int | str) -> int:
    """The priority that ``value`` means: an integer 0 to 10, or one of ``NAMES``.

    Raises ValueError, saying what is allowed, for anything else.
    """
    if isinstance(value, str) and value.strip().lower() in NAMES:
        return NAMES[value.strip().lower()]
    if isinstance(value, int) and not isinstance(value, bool) and LOWEST <= value <= HIGHEST:
        return value
    raise ValueError(f"must be an integer from {LOWEST} to {HIGHEST} or one of {', '.join(NAMES)}")


def redis_step(priority: int) -> int:
    """The step of the Redis list for a task of this priority: never less urgent for a higher one."""
    return (HIGHEST - priority) // 2 * 2
