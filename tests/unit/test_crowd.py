"""Crowds: who gets what in one datagram, and when.  What a listener of a crowd gets is held against
what they get from the same mixer without crowds: the same packets, each once, a little later."""

import sys
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.connection import MS
from protocol.opus import Encoder
from protocol.packets import AudioFlag, DownlinkAudio, Kind, crowd_packets
from protocol.redundancy import NO_REMEDY, Remedy
from spaces_server.mixer.crowd import EVERY_TICK, NO_CROWDS, Crowd, RowSet, Turn, turn_of
from spaces_server.mixer.egress import Egress
from spaces_server.mixer.mixer import Mixer
from spaces_server.mixer.plan import HOLD_NS, MixClass, Plan
from spaces_server.mixer.source import FRAME_SAMPLES
from tests.unit.test_egress import Pair, deliver, pair
from tests.unit.test_mixer import TONES_HZ, Voice

TICK_NS = 20 * MS
START = 2**32 - 5 * FRAME_SAMPLES  # wraps soon

Got = list[tuple[int, Kind, list[bytes]]]  # tick, kind, the packets in the datagram


def mixed(tick: int) -> DownlinkAudio:
    """What a class is given at a tick."""
    return DownlinkAudio(tick * 960, AudioFlag.FIRST * (tick == 0), (), b"%d" % tick)


class Rig:
    """A space of which every datagram that a member gets is kept."""

    def __init__(self, crowd: Crowd) -> None:
        self.egress = Egress()
        self.mixer = Mixer(self.egress, partial(Encoder, complexity=0), map, crowd)
        self.mix = self.mixer.open()
        self.pairs: dict[int, Pair] = {}
        self.rows: dict[int, int] = {}
        self.got: dict[int, Got] = defaultdict(list)
        self.voices: dict[int, Voice] = {}
        self.now_ns = 1_000 * MS
        self.tick_number = 0

    def join(self, member: int, packet_ms: int = 60) -> None:
        self.pairs[member] = pair(member)
        self.rows[member] = self.egress.add(self.pairs[member].server)
        self.mix.add_member(member, self.rows[member], packet_ms)

    def leave(self, member: int) -> None:
        self.step_down(member)
        self.mix.remove_member(member)
        self.egress.remove(self.rows.pop(member))
        del self.pairs[member]

    def step_up(self, member: int) -> None:
        self.mix.plan.set_on_stage(member, True)
        self.mix.add_source(member, member)
        self.voices[member] = Voice(member, TONES_HZ[member % 5])

    def step_down(self, member: int) -> None:
        if member in self.voices:
            del self.voices[member]
            self.mix.plan.set_on_stage(member, False)
            self.mix.remove_source(member)

    def say(self, member: int, *, last: bool = False) -> None:
        voice = self.voices.get(member)
        if voice is not None and (voice.talking or not last):
            self.mixer.receive(self.mix, member, voice.packet(last=last), self.now_ns)

    def tick(self) -> int:
        """-> how many datagrams it sent."""
        self.now_ns += TICK_NS
        self.tick_number += 1
        timestamp = (START + self.tick_number * FRAME_SAMPLES) % 2**32
        self.mixer.tick(timestamp, self.now_ns)
        sealed = self.egress.sealed
        got = deliver(self.egress.seal(), list(self.pairs.values()))
        for member, person in self.pairs.items():
            for kind, plaintext in got.get(person.address, ()):
                packets = [plaintext] if kind == Kind.AUDIO else list(crowd_packets(plaintext))
                self.got[member].append((self.tick_number, Kind(kind), packets))
        return self.egress.sealed - sealed

    def ticks(self, count: int, *talking: int) -> list[int]:
        sent = []
        for _ in range(count):
            for member in talking:
                self.say(member)
            sent.append(self.tick())
        return sent

    def finish(self, *talking: int) -> list[int]:
        """They say their last; -> what is sent until all is said."""
        for member in talking:
            self.say(member, last=True)
        sent = [self.tick()]
        while self.mixer.awake:
            sent.append(self.tick())
            assert len(sent) < 20
        return sent


def made_at(packet: bytes) -> int:
    """The tick at which a packet was made."""
    return (DownlinkAudio.unpack(packet).timestamp - START) % 2**32 // FRAME_SAMPLES


def packets_of(got: Got) -> list[bytes]:
    return [packet for _, _, packets in got for packet in packets]


def pattern(got: Got, until: int) -> str:
    """How many packets came at each tick: a digit a datagram, . where there was none."""
    at: dict[int, str] = defaultdict(str)
    for tick, _, packets in got:
        at[tick] += str(len(packets))
    return " ".join(at.get(tick, ".") for tick in range(1, until + 1))


ALL_OF_THEM = Crowd(0, 60)


def hall(listeners: int, crowd: Crowd = ALL_OF_THEM, packet_ms: int = 60) -> Rig:
    """Member 0 is on stage; the members from 1 on listen and have the phases 1, 2, 0, 1, …"""
    rig = Rig(crowd)
    for member in range(1 + listeners):
        rig.join(member, packet_ms)
    rig.step_up(0)
    return rig


# -- when -----------------------------------------------------------------------------------------


def test_a_listener_gets_three_packets_at_every_third_tick() -> None:
    rig = hall(3)
    rig.ticks(12, 0)
    assert [pattern(rig.got[member], 12) for member in (1, 2, 3)] == [
        ". 2 . . 3 . . 3 . . 3 .",
        ". . 3 . . 3 . . 3 . . 3",
        "1 . . 3 . . 3 . . 3 . .",
    ]
    first, second, third = (packets_of(rig.got[member]) for member in (1, 2, 3))
    assert first == second[:11]
    assert third == second[:10]


def test_the_kind_is_crowd_where_there_are_several() -> None:
    rig = hall(3)
    rig.ticks(12, 0)
    for got in rig.got.values():
        assert all((kind == Kind.CROWD) is (len(packets) > 1) for _, kind, packets in got)


@pytest.mark.parametrize(
    ("asked", "given", "most"), [(20, 60, 1), (40, 60, 2), (60, 40, 2), (50, 60, 2), (60, 20, 1)]
)
def test_as_much_as_client_and_server_take(asked: int, given: int, most: int) -> None:
    rig = hall(4, Crowd(0, given), asked)
    rig.ticks(12, 0)
    for member in range(1, 5):
        assert {len(packets) for _, _, packets in rig.got[member][1:]} == {most}


def test_a_talkspurts_end_goes_out_in_its_turn() -> None:
    rig = hall(30)
    rig.ticks(10, 0)
    sent = rig.finish(0)
    assert max(sent) == 10, "no burst"
    for member in range(1, 31):
        packets = packets_of(rig.got[member])
        assert [made_at(packet) for packet in packets] == list(range(1, 1 + len(packets)))
        assert DownlinkAudio.unpack(packets[-1]).flags == AudioFlag.LAST
    encodes = rig.mixer.stats.encodes
    assert rig.ticks(5) == [0] * 5
    assert rig.mixer.stats.encodes == encodes


def test_nothing_is_encoded_while_the_rest_goes_out() -> None:
    rig = hall(3)
    rig.ticks(10, 0)
    rig.finish(0)
    assert rig.mixer.stats.encodes == len(packets_of(rig.got[1]))


def test_two_talkspurts_close_together() -> None:
    rig = hall(3)
    rig.ticks(5, 0)
    for _ in range(3):
        rig.say(0, last=True)
        rig.ticks(4)
        rig.ticks(5, 0)
    rig.finish(0)
    assert packets_of(rig.got[1]) == packets_of(rig.got[2]) == packets_of(rig.got[3])


# -- who ------------------------------------------------------------------------------------------


def test_a_crowd_begins_above_a_size_and_ends_at_four_fifths_of_it() -> None:
    plan = Plan(partial(Encoder, complexity=0), Crowd(10, 60))
    plan.add_member(100, 100)
    plan.set_on_stage(100, True)

    def gathers() -> bool:
        turns = {hearer.turn for hearer in plan._hearers.values()}
        assert plan._hearers[100].turn is EVERY_TICK
        return turns != {EVERY_TICK}

    begun = []
    for member in range(13):
        plan.add_member(member, member, 60)
        begun.append(gathers())
    assert begun == [False] * 10 + [True] * 3
    left = []
    for member in range(8):
        plan.remove_member(member)
        left.append(gathers())
    assert left == [True] * 5 + [False] * 3  # 8 are left, then 7


def test_whoever_steps_up_gets_everything_at_once() -> None:
    for wait in range(3):
        rig = hall(3)
        rig.ticks(10 + wait, 0)
        for member in (1, 2, 3):
            rig.step_up(member)
        rig.ticks(5, 0)
        for member in (1, 2, 3):
            got = rig.got[member]
            since = [tick for tick, _, _ in got if tick > 10 + wait]
            assert set(since) == set(range(11 + wait, 16 + wait))
            made = [made_at(packet) for packet in packets_of(got)]
            assert made == list(range(1, 16 + wait)), "none is missing, none comes twice"
            late = [tick - made_at(p) for tick, _, ps in got if tick > 11 + wait for p in ps]
            assert late == [0] * 4


def test_whoever_steps_down_is_in_the_crowd_again() -> None:
    for wait in range(3):
        rig = hall(3)
        rig.step_up(1)
        rig.ticks(10 + wait, 0)
        rig.step_down(1)
        rig.ticks(9, 0)
        got = rig.got[1]
        made = [made_at(packet) for packet in packets_of(got)]
        assert made == list(range(1, 1 + len(made)))
        assert [len(packets) for _, _, packets in got[-2:]] == [3, 3]


def test_newcomers_get_nothing_from_before() -> None:
    rig = hall(3)
    for member in range(10, 16):
        rig.ticks(4, 0)
        rig.join(member)
    joined = {10 + i: 4 * (i + 1) for i in range(6)}
    rig.ticks(9, 0)
    for member, tick in joined.items():
        made = [made_at(packet) for packet in packets_of(rig.got[member])]
        assert made == list(range(tick + 1, tick + 1 + len(made)))
        assert [len(packets) for _, _, packets in rig.got[member][-2:]] == [3, 3]


def test_those_who_come_in_silence_are_in_the_crowd_at_once() -> None:
    rig = hall(6)
    rig.ticks(10, 0)
    rig.finish(0)
    for member in range(10, 16):
        rig.join(member)
    sent = rig.ticks(6, 0)
    assert max(sent) == 4
    for member in range(10, 16):
        assert [len(packets) for _, _, packets in rig.got[member]][1:] == [3]


def test_a_row_that_is_taken_over_gets_nothing_that_was_owed() -> None:
    rig = hall(6)
    rig.ticks(11, 0)
    for member in range(1, 7):
        rig.step_up(member)
    rows = dict(rig.rows)
    for member in range(1, 7):
        rig.leave(member)
    for member in range(11, 17):
        rig.join(member)
    assert set(rig.rows.values()) == set(rows.values())
    rig.ticks(6, 0)
    for member in range(11, 17):
        assert min(made_at(packet) for packet in packets_of(rig.got[member])) == 12


# -- the same as without --------------------------------------------------------------------------


def as_without(script: Callable[[Rig], None]) -> Rig:
    """Plays the script with and without crowds, and sees that everybody got the same packets, each
    once.  -> the rig with crowds."""
    rigs = hall(6, NO_CROWDS), hall(6)
    for rig in rigs:
        script(rig)
        rig.finish(*rig.voices)
    plain, crowd = rigs
    for member in plain.pairs:
        came = sorted(packets_of(crowd.got[member]), key=made_at)
        assert came == packets_of(plain.got[member])
    return crowd


@pytest.mark.parametrize("wait", range(3))
def test_a_class_that_splits_off_takes_along_what_is_gathered(wait: int) -> None:
    def script(rig: Rig) -> None:
        rig.ticks(10 + wait, 0)
        for member in (1, 2, 3):
            rig.mix.plan.set_gain(member, 0, 0.5)
        rig.ticks(10, 0)

    rig = as_without(script)
    sizes = [[len(packets) for _, _, packets in rig.got[member]][1:-1] for member in range(1, 7)]
    assert {size for row in sizes for size in row} == {3}, "without a datagram in between"


@pytest.mark.parametrize("wait", range(3))
def test_a_class_that_joins_another_gets_the_rest_of_its_own(wait: int) -> None:
    def script(rig: Rig) -> None:
        for member in (1, 2, 3):
            rig.mix.plan.set_gain(member, 0, 0.5)
        rig.ticks(10 + wait, 0)
        for member in (1, 2, 3):
            rig.mix.plan.set_gain(member, 0, 1.0)
        rig.ticks(HOLD_NS // TICK_NS + 10, 0)
        assert len(rig.mix.plan.classes) == 1

    as_without(script)


@pytest.mark.parametrize("wait", range(3))
def test_whoever_hears_no_more_gets_what_was_before(wait: int) -> None:
    def script(rig: Rig) -> None:
        rig.ticks(10 + wait, 0)
        for member in (1, 2, 3):
            rig.mix.plan.set_gain(member, 0, 0.0)
        rig.ticks(10, 0)
        for member in (1, 2, 3):
            rig.mix.plan.set_gain(member, 0, 1.0)
        rig.ticks(10, 0)

    as_without(script)


@pytest.mark.parametrize("wait", range(3))
def test_a_class_of_ones_own_that_ends_with_the_talkspurt(wait: int) -> None:
    """Another talkspurt begins before all of the first has gone out."""

    def script(rig: Rig) -> None:
        rig.step_up(6)
        for member in (1, 2, 3):
            rig.mix.plan.set_gain(member, 0, 0.5)
        rig.ticks(10 + wait, 0)
        rig.say(0, last=True)
        rig.ticks(3)
        rig.ticks(10, 6)

    as_without(script)


def test_a_talkspurts_end_where_everyone_has_a_mix_of_their_own() -> None:
    def script(rig: Rig) -> None:
        for member in range(1, 7):
            rig.mix.plan.set_gain(member, 0, 0.5)
        rig.ticks(10, 0)

    as_without(script)


def test_a_newcomer_who_blocked_somebody_gets_nothing_of_theirs() -> None:
    for wait in range(3):
        rig = hall(6)
        rig.step_up(6)
        rig.ticks(10 + wait, 0, 6)
        for member in (10, 11, 12):
            rig.join(member)
            rig.mix.plan.set_gain(member, 0, 0.0)
        rig.ticks(10, 0, 6)
        for member in (10, 11, 12):
            heard = [DownlinkAudio.unpack(packet) for packet in packets_of(rig.got[member])]
            assert heard
            assert {a.seat for audio in heard for a in audio.audible} == {6}


MEMBERS = 7
WHO = st.integers(0, MEMBERS - 1)
STEPS = st.one_of(
    st.tuples(st.just("here"), WHO, st.sampled_from([20, 40, 60])),
    st.tuples(st.just("stage"), WHO),
    st.tuples(st.just("gain"), WHO, WHO, st.sampled_from([0.0, 0.5, 1.0])),
    st.tuples(st.just("talk"), WHO),
    st.tuples(st.just("ticks"), st.integers(1, 6)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, min_size=10, max_size=50), st.integers(0, 4), st.sampled_from([40, 60]))
def test_a_crowd_gets_the_same_packets_each_once(
    steps: list[tuple[Any, ...]], above: int, packet_ms: int
) -> None:
    """Whoever comes, goes, steps up and down, talks or hears somebody at another volume."""
    plain, crowd = rigs = Rig(NO_CROWDS), Rig(Crowd(above, packet_ms))
    takes: dict[int, int] = {}
    ids: dict[int, int] = {}  # who -> member: a member's number is not used again
    talking: set[int] = set()
    gone: dict[int, int] = {}  # member -> the last tick before they left
    staged: set[tuple[int, int]] = set()  # (member, tick) on stage at that tick

    def run(count: int) -> None:
        for _ in range(count):
            for rig in rigs:
                for member in sorted(talking):
                    rig.say(member)
                rig.tick()
            staged.update((m, plain.tick_number) for m in plain.voices)

    start = [("here", 0, 60), ("here", 1, 60), ("here", 2, 60), ("stage", 0), ("talk", 0)]
    for what, *arguments in [*start, ("ticks", 4), *steps, ("ticks", 6)]:
        if what == "ticks":
            run(arguments[0])
            continue
        who = arguments[0]
        member = ids.get(who)
        if what == "here" and member is None:
            ids[who] = member = len(takes)
            takes[member] = arguments[1]
            for rig in rigs:
                rig.join(member, arguments[1])
        elif member is None:
            continue
        elif what == "here":
            gone[ids.pop(who)] = plain.tick_number
            talking.discard(member)
            for rig in rigs:
                rig.leave(member)
        elif what == "stage":
            talking.discard(member)
            for rig in rigs:
                (rig.step_down if member in rig.voices else rig.step_up)(member)
        elif what == "gain" and ids.get(arguments[1]) not in (None, member):
            for rig in rigs:
                rig.mix.plan.set_gain(member, ids[arguments[1]], arguments[2])
        elif what == "talk" and member in plain.voices:
            if member in talking:
                talking.discard(member)
                for rig in rigs:
                    rig.say(member, last=True)
            else:
                talking.add(member)
    for rig in rigs:
        rig.finish(*talking)
    assert plain.mixer.stats.encodes == crowd.mixer.stats.encodes, "gathering encodes nothing"
    for member, most_ms in takes.items():
        wanted = packets_of(plain.got[member])
        came = sorted(packets_of(crowd.got[member]), key=made_at)
        if member in gone:
            latest = gone[member] - 2  # what was gathered for them is lost with them
            assert [p for p in wanted if made_at(p) <= latest] == [
                p for p in came if made_at(p) <= latest
            ]
            assert set(came) <= set(wanted)
            assert len(came) == len(set(came))
        else:
            assert came == wanted
        for tick, kind, packets in crowd.got[member]:
            made = [made_at(packet) for packet in packets]
            assert tick - 3 < made[0] <= made[-1] <= tick
            assert all(a < b for a, b in pairwise(made))
            assert len(packets) <= min(most_ms, packet_ms) // 20
            assert (kind == Kind.CROWD) is (len(packets) > 1)
            if (member, tick) in staged and (member, tick - 1) in staged:
                assert made == [tick]


@pytest.mark.parametrize("wide", [0, 2])
def test_whoever_has_a_narrow_path_gets_every_packet_over_silences_too(wide: int) -> None:
    rig = hall(4, Crowd(1_000, 60))
    for member in range(1, 5 - wide):
        rig.mix.plan.set_remedy(member, Remedy(half_rate=True))
    for length in (7, 8, 9, 10):
        rig.ticks(length, 0)
        rig.finish(0)
        rig.ticks(3)
    for member in range(1, 5):
        packets = [DownlinkAudio.unpack(packet) for packet in packets_of(rig.got[member])]
        assert len(packets) == rig.mixer.stats.busy_ticks
        made = [packet.timestamp for packet in packets]
        assert made == sorted(set(made), key=lambda t: (t - START) % 2**32)
        assert [p.flags for p in packets].count(AudioFlag.FIRST) == 4
        assert [p.flags for p in packets].count(AudioFlag.LAST) == 4
    assert rig.mixer.stats.encodes <= rig.mixer.stats.busy_ticks * 2


# -- costs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("packet_ms", "seals"), [(20, 3_000), (40, 1_500), (60, 1_000)])
def test_seals_and_encodes_of_three_thousand(packet_ms: int, seals: int) -> None:
    """Each tick one encode, and a seal for those whose turn it is (beside one for the stage)."""
    rig = Rig(Crowd(1_000, packet_ms))
    rig.join(0)
    rig.join(1)
    for member in (0, 1):
        rig.step_up(member)
    connection = rig.pairs[1].server
    for member in range(2, 3_002):
        rig.mix.add_member(member, rig.egress.add(connection), 60)
    rig.pairs.clear()  # nobody opens what is sent here
    for _ in range(12):
        encodes, sealed = rig.mixer.stats.encodes, rig.egress.sealed
        rig.say(0)
        rig.now_ns += TICK_NS
        rig.mixer.tick(0, rig.now_ns)
        list(rig.egress.seal())
        if encodes:
            assert rig.mixer.stats.encodes - encodes == 1
            assert rig.egress.sealed - sealed == seals + 1


def lines_run(work: Any) -> int:
    count = 0

    def trace(_frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def test_coming_and_going_costs_the_same_in_any_audience() -> None:
    costs = []
    for members in (30, 6_000):
        plan = Plan(partial(Encoder, complexity=0), Crowd(20, 60))
        for member in range(members):
            plan.add_member(member, member, 60)
        plan.rebuild([1], 0)
        plan.give_out(0)

        def a_tick(plan: Plan = plan, members: int = members) -> None:
            plan.add_member(members, members, 60)
            plan.remove_member(7)
            assert not plan.changed
            plan.classes[0].give(1, mixed(1))
            plan.give_out(1)

        costs.append(lines_run(a_tick))
    assert costs[0] == costs[1]


# -- rows and turns -------------------------------------------------------------------------------


def test_turns_share_the_rows_out_evenly() -> None:
    for packet_ms, frames in ((20, 1), (40, 2), (59, 2), (60, 3)):
        turns = [turn_of(row, packet_ms) for row in range(600)]
        assert {turns.count(turn) for turn in turns} == {600 // frames}
        for tick in range(12):
            assert sum(turn.at(tick) for turn in set(turns)) == 1
    assert turn_of(5, 20) is EVERY_TICK


@given(st.integers(1, 3), st.integers(0, 2), st.integers(-1, 100))
def test_the_latest_tick_of_a_turn(frames: int, phase: int, tick: int) -> None:
    turn = Turn(frames, phase % frames)
    latest = turn.latest(tick)
    assert turn.at(latest)
    assert tick - frames < latest <= tick


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans())))
def test_a_set_of_rows(steps: list[tuple[int, bool]]) -> None:
    rows, model = RowSet(), set[int]()
    for row, look in steps:
        if row in model:
            model.remove(row)
            rows.remove(row)
        else:
            model.add(row)
            rows.add(row)
        assert len(rows) == len(model)
        if look:
            before = rows.array
            kept = before.copy()
            assert sorted(before.tolist()) == sorted(model)
            assert rows.array is before, "the same object until something changes"
            rows.add(99)
            assert rows.array is not before
            assert np.array_equal(before, kept), "what was handed out is not written to"
            rows.remove(99)
    assert sorted(rows.array.tolist()) == sorted(model)


def test_a_class_remembers_three_packets() -> None:
    mix_class = MixClass(Encoder(complexity=0), 32_000)
    for tick in range(5):
        mix_class.give(tick, mixed(tick))
    assert mix_class.after(0) == tuple(mixed(tick).pack() for tick in (2, 3, 4))
    assert mix_class.fork().after(3) == (mixed(4).pack(),)


# -- copies for who loses packets ------------------------------------------------------------------


def given_to(plan: Plan, tick: int) -> dict[int, DownlinkAudio]:
    """Row -> what it gets at a tick."""
    for mix_class in plan.classes:
        mix_class.live = True
        mix_class.give(tick, mixed(tick))
    return {
        int(row): DownlinkAudio.unpack(plaintext)
        for kind, plaintext, rows in plan.give_out(tick)
        for row in rows
        if kind == Kind.AUDIO
    }


def audience_of(members: int, crowd: Crowd = NO_CROWDS, packet_ms: int = 20) -> Plan:
    """They hear 9, and have heard nine ticks of it."""
    plan = Plan(partial(Encoder, complexity=0), crowd)
    for member in range(members):
        plan.add_member(member, member, packet_ms)
    plan.rebuild([9], 0)
    for tick in range(9):
        given_to(plan, tick)
    return plan


def test_who_loses_packets_gets_earlier_frames_again_and_nobody_else() -> None:
    plan = audience_of(3)
    given_to(plan, 9)
    plan.set_remedy(1, Remedy((2, 4)))
    got = given_to(plan, 10)
    assert got[0] == got[2] == mixed(10)
    assert [copy.timestamp(got[1].timestamp) for copy in got[1].copies] == [6 * 960, 8 * 960]
    assert [copy.opus for copy in got[1].copies] == [mixed(6).opus, mixed(8).opus]
    assert got[1].opus == mixed(10).opus
    plan.set_remedy(1, NO_REMEDY)
    assert given_to(plan, 11)[1] == mixed(11)


def test_whoever_needs_copies_is_in_no_crowd() -> None:
    plan = audience_of(6, Crowd(2, 60), packet_ms=60)
    plan.set_remedy(1, Remedy((1,)))
    for tick in range(9, 12):  # what is owed from before goes out first
        got = given_to(plan, tick)
    for tick in range(12, 20):
        got = given_to(plan, tick)
        assert got[1].timestamp == tick * 960
        assert len(got[1].copies) == 1


def test_a_payload_is_made_once_for_all_who_need_the_same_copies() -> None:
    """Costs: as many jobs as there are kinds of payload, however many members."""
    plan = audience_of(300)
    given_to(plan, 9)
    for member in range(300):
        plan.set_remedy(member, Remedy(((), (1,), (2, 4))[member % 3]))
    for mix_class in plan.classes:
        mix_class.give(10, mixed(10))
    jobs = plan.give_out(10)
    assert sorted(len(rows) for _, _, rows in jobs) == [100, 100, 100]
