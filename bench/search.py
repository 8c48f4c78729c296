"""How many does a server carry?  The largest number of which less than 0.5 % is lost."""

from collections.abc import Callable
from typing import Any

from bench.audience import AudienceError

MAX_LOSS = 0.005
CLOSE_ENOUGH = 0.05
STEP = 1.5
TRIES = 12
TRY_S = 3.0  # how long one of them measures
ATTEMPTS = 2  # a number has failed if it fails so often: the machine may have stalled once

Figures = dict[str, Any]


class UnmeasurableError(Exception):
    """Not even a few; the text says why."""


def search(trouble_with: Callable[[int], str], start: int, most: int) -> tuple[int, str]:
    """-> (the largest number without trouble, within 5 %, what the trouble was with the next).

    trouble_with: tries a number; '' if all is well.  Goes up or down from `start` in steps of one
    and a half until there is one of each kind, then bisects.  Raises UnmeasurableError.
    """
    good, bad, limit = 0, 0, ""
    count = min(start, most)
    for _ in range(TRIES):
        if trouble := trouble_with(count):
            bad, limit = count, trouble
        else:
            good = count
        if good == most:
            return good, f"there is room for no more than {most}"
        if bad and bad - good <= max(1, CLOSE_ENOUGH * good):
            break
        if not bad:
            count = min(most, round(good * STEP))
        elif not good:
            count = round(bad / STEP)
        else:
            count = (good + bad) // 2
    if not good:
        raise UnmeasurableError(limit)
    return good, limit


def trouble_in(figures: Figures) -> str:
    """Why a run's server did not carry what it had to, or the run says nothing; '' if all is well.
    What the generator loses is not the server's loss."""
    lost = f"{figures['loss']:.2%} lost" if figures["loss"] >= MAX_LOSS else ""
    return figures["reason"] or lost


def find(measure: Callable[[int], Figures], start: int, most: int, what: str) -> Figures:
    """Searches with runs of measure(count), which may raise AudienceError; one that fails, for
    whatever reason, is repeated once.  what: that is counted, in a word.

    -> the figures of the largest number, with `tries`, and with `limit`: what went wrong with the
    next larger one.  Raises AudienceError if even one is too many."""
    carried: dict[int, Figures] = {}
    tries = 0

    def trouble_with(count: int) -> str:
        nonlocal tries
        for _ in range(ATTEMPTS):
            tries += 1
            try:
                figures = measure(count)
            except AudienceError as error:
                trouble = str(error)
                continue
            if not (trouble := trouble_in(figures)):
                carried[count] = figures
                return ""
        return f"{count} {what}: {trouble}"

    try:
        best, limit = search(trouble_with, start, most)
    except UnmeasurableError as error:
        raise AudienceError(str(error)) from error
    return {**carried[best], "tries": tries, "limit": limit}
