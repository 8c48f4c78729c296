"""The governor: what gives way when the server has more to do than it can do in time.

Two things can give.  The encoders' complexity: a mix sounds a little worse, and costs a third.  And
the door: newcomers are refused with a reason, before those who are in have to hear it.  They stand
on one ladder: rung 0 is the complexity that the operator has chosen, each rung below it a cheaper
one, and on the last, at complexity 0, the door is shut.

    load above HIGH                 down, at once, to the first rung where it would be below HIGH
    load one rung up below LOW      up one rung, when that has been so for a while

The *load* is the share of its 20 ms for which the server is at work in a tick, smoothed.  Near 1,
ticks run late.  What it would be on another rung follows from what an encode costs there, which is
measured before the server serves; so a step up is taken when it will hold, and one that had to be
taken back makes the next wait longer.  Of what a tick has taken, no more is believed than SLOWER
times what this machine needed for the same work before: a stall, or another program that takes the
machine, makes ticks late too, but nothing here would help against it.

Load is measured where people talk.  A space in which nobody does costs nothing, however many wait
there for it to begin, so its door has a second rule: what one tick of this space alone would send
must fit into BUDGET.  Each space is looked at for itself, because they seldom all talk at once; if
they do, it is the load that shows it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from protocol.connection import MS

TICK_NS = 20 * MS
STEPS = (8, 5, 3, 1, 0)  # complexities between which an encode's cost differs by much
HIGH = 0.85
LOW = 0.70
BUDGET = 0.80  # of a tick, for one space
SMOOTHING = 16  # ticks; a third of a second
FULL = 1.25  # of longer ticks it is said enough that they were too long
SLOWER = 3.0
TEACHING_DATAGRAMS = 500  # in smaller ticks, what belongs to no datagram weighs too much
TEACHING_TICKS = 256
CALM_NS = 5_000 * MS  # before the first step up
MAX_CALM_NS = 60_000 * MS  # before any; and a step up that did not last for it was taken too soon
SILENCE_NS = 30_000 * MS  # after that, what was measured when somebody spoke says nothing


def ladder(complexity: int) -> tuple[int, ...]:
    """The complexities from the operator's down."""
    return (complexity, *(step for step in STEPS if step < complexity))


@dataclass(frozen=True, slots=True)
class Costs:
    """What work took on this machine before it had any.  encode_ns: by complexity, in the
    ladder's order.  datagram_ns: to seal and send one of many."""

    encode_ns: Mapping[int, int]
    decode_ns: int
    datagram_ns: int


@dataclass(frozen=True, slots=True)
class Tick:
    """What a tick took, from its beginning until all was sent.  encoding_ns: the part of it for
    which it waited for the encoders.  busy_ns: for how long the server was at work since the tick
    before, in this one and between."""

    took_ns: int
    encoding_ns: int
    busy_ns: int
    encodes: int
    decodes: int
    datagrams: int


class Governor:
    """`ticked` is to be called after every tick.  load: 1 is all the time there is."""

    def __init__(self, costs: Costs) -> None:
        self.load = 0.0
        self._encoding = 0.0  # the encoders' part of it
        self._costs = costs
        self._datagram_ns = float(costs.datagram_ns)  # as it is while running
        self._ladder = tuple(costs.encode_ns)
        self._rung = 0
        self._spoken_ns = 0  # when a tick last had something to encode
        self._strained_ns = 0  # when the rung above would last have been too much
        self._climbed_ns: int | None = None
        self._calm_ns = CALM_NS

    @property
    def complexity(self) -> int:
        """What all encoders are to have now."""
        return self._complexity(self._rung)

    @property
    def shut(self) -> bool:
        """Whether nobody more is let in, whichever space they want to enter."""
        return self._rung == len(self._ladder)

    @property
    def capacity(self) -> int:
        """How many datagrams a tick, which is listeners (of 20 ms packets), one space may have
        while one person talks."""
        codec_ns = self._costs.decode_ns + self._costs.encode_ns[self.complexity]
        return max(0, int((BUDGET * TICK_NS - codec_ns) / max(1.0, self._datagram_ns)))

    def crowded(self, datagrams: int) -> bool:
        """Whether a space is to be kept from growing to so many datagrams a tick."""
        return self.shut or datagrams > self.capacity

    def ticked(self, tick: Tick, now_ns: int) -> str:
        """-> what has changed, for the operator to read; empty if nothing.  A step up takes
        CALM_NS at least, so there is not much to read."""
        if tick.encodes:
            self._measure(tick)
            self._spoken_ns = now_ns
        elif now_ns - self._spoken_ns > SILENCE_NS:
            self.load = self._encoding = 0.0
        if self.load > HIGH:
            return self._go_down(now_ns)
        if not self._rung or self._expected(self._rung - 1) > LOW:
            self._strained_ns = now_ns
        elif now_ns - self._strained_ns >= self._calm_ns:
            return self._go_up(now_ns)
        return ""

    # -- measuring --------------------------------------------------------------------------------

    def _measure(self, tick: Tick) -> None:
        costs = self._costs
        known_ns = (
            tick.encodes * costs.encode_ns[self.complexity]
            + tick.decodes * costs.decode_ns
            + tick.datagrams * costs.datagram_ns
        )
        needed_ns = min(tick.busy_ns, FULL * TICK_NS, SLOWER * known_ns)
        encoding_ns = min(tick.encoding_ns, needed_ns)
        self.load += (needed_ns / TICK_NS - self.load) / SMOOTHING
        self._encoding += (encoding_ns / TICK_NS - self._encoding) / SMOOTHING
        if tick.datagrams >= TEACHING_DATAGRAMS:
            each_ns = (tick.took_ns - tick.encoding_ns) / tick.datagrams
            believed_ns = min(each_ns, SLOWER * costs.datagram_ns)
            self._datagram_ns += (believed_ns - self._datagram_ns) / TEACHING_TICKS

    def _complexity(self, rung: int) -> int:
        return self._ladder[min(rung, len(self._ladder) - 1)]

    def _encoding_at(self, rung: int) -> float:
        encode_ns = self._costs.encode_ns
        return self._encoding * encode_ns[self._complexity(rung)] / encode_ns[self.complexity]

    def _expected(self, rung: int) -> float:
        """The load on that rung, if people did the same there."""
        return self.load - self._encoding + self._encoding_at(rung)

    # -- the ladder -------------------------------------------------------------------------------

    def _step(self, rung: int) -> None:
        """What was measured becomes what is expected; so the next tick does not step again."""
        self.load, self._encoding = self._expected(rung), self._encoding_at(rung)
        self._rung = rung

    def _go_down(self, now_ns: int) -> str:
        self._strained_ns = now_ns
        if self.shut:
            return ""
        if self._climbed_ns is not None:
            too_soon = now_ns - self._climbed_ns < MAX_CALM_NS
            self._calm_ns = min(2 * self._calm_ns, MAX_CALM_NS) if too_soon else CALM_NS
            self._climbed_ns = None
        load, last = self.load, len(self._ladder)
        below = range(self._rung + 1, last)
        self._step(next((rung for rung in below if self._expected(rung) <= HIGH), last))
        return f"ticks take {load:.0%} of their time: {self._state()}"

    def _go_up(self, now_ns: int) -> str:
        self._strained_ns = self._climbed_ns = now_ns
        self._step(self._rung - 1)
        return f"ticks take {self.load:.0%} of their time: {self._state()}"

    def _state(self) -> str:
        door = "refused" if self.shut else "let in"
        return f"encoder complexity is {self.complexity}, newcomers are {door}"
