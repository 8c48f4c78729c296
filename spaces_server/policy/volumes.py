"""Personal mixes: how loud each person wants to hear which other.

In memory only; it holds until the space ends, also for somebody who comes back.  Every other set of
volumes is another mix, and so another encode for each packet; people with the same one (those who
all turn down the same shouter) share it.  So it is the number of different sets that has a limit.
"""

from collections import Counter

from protocol.frames import ErrorCode
from spaces_server.policy.effects import RefusedError, Who

AS_IT_IS = 100
STEP = 10  # percent: finer steps would be other mixes, and nobody hears them
MAX_VOLUMES = 20  # that one person may set
MAX_MIXES = 64

Mix = frozenset[tuple[Who, int]]  # (whom, percent)
_NONE: Mix = frozenset()


class Volumes:
    """Percent, where it is not 100."""

    def __init__(self) -> None:
        self._mixes: dict[Who, Mix] = {}  # of hearers
        self._hearers: dict[Who, set[Who]] = {}  # source -> who set a volume for it
        self._in_use: Counter[Mix] = Counter()

    def of(self, hearer: Who, source: Who) -> int:
        return dict(self._mixes.get(hearer, _NONE)).get(source, AS_IT_IS)

    def set_by(self, hearer: Who) -> list[Who]:
        """Whose volume this hearer has set."""
        return [source for source, _ in self._mixes.get(hearer, _NONE)]

    def hearers(self, source: Who) -> set[Who]:
        """Who hears this source louder or softer than it is."""
        return self._hearers.get(source, set())

    def set(self, hearer: Who, source: Who, percent: int) -> None:
        """Rounded to STEP, halves up.  Raises RefusedError if there are too many, and then nothing
        has changed."""
        percent = (percent + STEP // 2) // STEP * STEP
        before = self._mixes.get(hearer, _NONE)
        volumes = dict(before)
        if percent == AS_IT_IS:
            volumes.pop(source, None)
        else:
            volumes[source] = percent
        mix = frozenset(volumes.items())
        if len(mix) > MAX_VOLUMES:
            text = f"you have set the volume of {MAX_VOLUMES} people already"
            raise RefusedError(ErrorCode.TOO_MANY, text)
        if mix and mix not in self._in_use and len(self._in_use) >= MAX_MIXES:
            text = "as many people here have a mix of their own as the space carries"
            raise RefusedError(ErrorCode.TOO_MANY, text)
        self._count(before, -1)
        self._count(mix, 1)
        if mix:
            self._mixes[hearer] = mix
        else:
            self._mixes.pop(hearer, None)
        if source in volumes:
            self._hearers.setdefault(source, set()).add(hearer)
        else:
            self._unheard(source, hearer)

    def forget(self, hearer: Who) -> None:
        for source in self.set_by(hearer):
            self._unheard(source, hearer)
        self._count(self._mixes.pop(hearer, _NONE), -1)

    def _unheard(self, source: Who, hearer: Who) -> None:
        hearers = self._hearers.get(source)
        if hearers is not None:
            hearers.discard(hearer)
            if not hearers:
                del self._hearers[source]

    def _count(self, mix: Mix, by: int) -> None:
        if mix:
            self._in_use[mix] += by
            if not self._in_use[mix]:
                del self._in_use[mix]
