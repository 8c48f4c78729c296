"""How many does a server carry?  The largest number of which less than 0.5 % is lost.

Of ours one thing more is asked: that its ticks are in time.  Where it has no time left, they stay
as late as a stall has made them, up to what is made up for, and only beyond that something is
lost.  If half of them are late by more than a tick, it has too much to do.
"""

from collections.abc import Callable
from typing import Any

from bench.audience import AudienceError

MAX_LOSS = 0.005
MAX_TICK_LATENESS_MS = 20.0  # of ticks: p50
CLOSE_ENOUGH = 0.05
STEP = 1.5  # down, while too many were tried
FURTHER = 4.0  # times as many at most, by what the server's CPU lets expect
TRIES = 12
TRY_S = 3.0  # how long `--find` measures a number, unless it is told
ATTEMPTS = 2  # a number has failed if it fails so often: the machine may have stalled once

Figures = dict[str, Any]
Attempt = tuple[Figures | None, str]  # the figures if there are any; what is wrong, '' if nothing


def trouble_in(figures: Figures) -> str:
    """Why a run's server did not carry what it had to, or the run says nothing; '' if all is well.
    What the generator loses is not the server's loss."""
    lost = f"{figures['loss']:.2%} lost" if figures["loss"] >= MAX_LOSS else ""
    late_ms = figures.get("tick_lateness_ms", {"p50": 0.0})["p50"]
    late = f"half of the ticks were late by {late_ms:.0f} ms or more"
    return figures["reason"] or lost or (late if late_ms > MAX_TICK_LATENESS_MS else "")


def attempts(
    measure: Callable[[], Figures],
    errors: tuple[type[Exception], ...] = (AudienceError,),
    say: Callable[[str], None] = lambda line: None,
) -> Attempt:
    """Runs measure(), once more if it fails.  errors: with which it may.  say: told how it went."""
    for _ in range(ATTEMPTS):
        figures: Figures | None = None
        try:
            figures = measure()
        except errors as error:
            trouble = str(error) or type(error).__name__
        else:
            trouble = trouble_in(figures)
        say(trouble or "carried")
        if not trouble:
            break
    return figures, trouble


def search(attempt: Callable[[int], Attempt], start: int, most: int) -> tuple[Figures, str]:
    """-> (the figures of the largest number that was carried, within 5 %; what was wrong with the
    next larger one).

    attempt: tries a number.  The search begins with `start` and goes down in steps of one and a
    half until a number is carried; from there to where the server's core would be full, by what
    this number took of it, or a little below; and then bisects between what was carried and what
    was not.  Raises AudienceError if not even one is carried."""
    best: Figures | None = None
    good, bad, limit = 0, 0, ""
    count = min(start, most)
    for _ in range(TRIES):
        figures, trouble = attempt(count)
        if figures is None or trouble:
            bad, limit = count, f"{count}: {trouble}"
        else:
            good, best = count, figures
        if good == most:
            limit = f"there is room for no more than {most}"
            break
        if bad and bad - good <= max(1, CLOSE_ENOUGH * good):
            break
        count = round(bad / STEP) if best is None else min(most, _next(good, bad, best))
    if best is None:
        raise AudienceError(limit)
    return best, limit


def _next(good: int, bad: int, figures: Figures) -> int:
    """What to try when so many were carried, with these figures.  bad: too many; 0: not known."""
    busy = figures["server_cpu"] / figures.get("server_cores", 1)
    full = round(good * min(FURTHER, 1 / busy)) if busy else 0
    close = 1 + CLOSE_ENOUGH
    if good * close < full and (not bad or full * close < bad):
        return full
    if not bad:
        return max(good + 1, round(good * close**2))
    middle = (good + bad) // 2
    nearly_right = bad <= full <= bad * close
    return max(middle, min(bad - 1, round(bad / close**2))) if nearly_right else middle


def find(
    measure: Callable[[int], Figures],
    start: int,
    most: int,
    errors: tuple[type[Exception], ...] = (AudienceError,),
    say: Callable[[int, str], None] = lambda count, line: None,
) -> Figures:
    """Searches with runs of measure(count); one that fails, for whatever reason, is repeated once.
    errors: with which it may.  say: told of each run how it went.

    -> the figures of the largest number, with `tries`, and with `limit`: what went wrong with the
    next larger one.  Raises AudienceError if even one is too many."""
    tries = 0

    def attempt(count: int) -> Attempt:
        def once() -> Figures:
            nonlocal tries
            tries += 1
            return measure(count)

        return attempts(once, errors, lambda line: say(count, line))

    best, limit = search(attempt, start, most)
    return {**best, "tries": tries, "limit": limit}
