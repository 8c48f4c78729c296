"""The mix plan: who shares a mix, and how a switch between two mixes stays inaudible."""

import gc
import sys
from collections.abc import Iterable
from functools import partial
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.connection import MS
from protocol.opus import Encoder
from protocol.redundancy import NO_REMEDY, Remedy
from spaces_server.mixer.plan import HOLD_NS, QUIET_PEAK, Hearing, MixClass, Plan, Recipe

LOUD = 0.3
FRAME = 960


def new_plan(members: int) -> Plan:
    """Member i has row 100 + i."""
    plan = Plan(partial(Encoder, complexity=0))
    for member in range(members):
        plan.add_member(member, 100 + member)
    return plan


def on_stage(plan: Plan, speakers: Iterable[int]) -> None:
    for speaker in speakers:
        plan.set_gain(speaker, speaker, 0.0)


def mix(plan: Plan, active: Iterable[int], now_ns: int = 0, *, peak: float = LOUD) -> None:
    """What a tick of the mixer does to a plan: a class is live from its first packet on until all
    that it hears has ended."""
    sounding = set(active)
    for mix_class in plan.classes:
        mix_class.live &= any(source in sounding for source, _ in mix_class.recipe)
    plan.rebuild(sorted(sounding), now_ns)
    for mix_class in plan.classes:
        mix_class.live = True
        mix_class.peak = peak
    plan.join_held(now_ns)


def found(plan: Plan) -> dict[Recipe, set[int]]:
    """recipe -> members, where no two classes have the same."""
    assert len({c.recipe for c in plan.classes}) == len(plan.classes)
    return {c.recipe: {row - 100 for row in rows_of(c)} for c in plan.classes}


def rows_of(mix_class: MixClass) -> list[int]:
    rows = [row for members in mix_class.rows.values() for row in members.array.tolist()]
    assert len(rows) == len(mix_class)
    return rows


def class_of(plan: Plan, member: int) -> MixClass | None:
    classes = [c for c in plan.classes if 100 + member in rows_of(c)]
    assert len(classes) <= 1
    return classes[0] if classes else None


def ones(*sources: int) -> Recipe:
    return tuple((source, 1.0) for source in sources)


def tone(frame: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    at = np.arange(frame * FRAME, (frame + 1) * FRAME) / 48_000
    return (LOUD * np.sin(2 * np.pi * 440 * at)).astype(np.float32)


# -- recipes --------------------------------------------------------------------------------------


def test_silence_has_no_classes() -> None:
    plan = new_plan(5)
    on_stage(plan, [0, 1])
    mix(plan, [])
    assert plan.classes == []


def test_one_who_talks_makes_one_class() -> None:
    plan = new_plan(5)
    on_stage(plan, [0, 1])
    mix(plan, [0])
    assert found(plan) == {ones(0): {1, 2, 3, 4}}


def test_those_who_talk_hear_all_but_themselves() -> None:
    plan = new_plan(6)
    on_stage(plan, [0, 1, 2])
    mix(plan, [0, 1, 2])
    assert found(plan) == {
        ones(0, 1, 2): {3, 4, 5},
        ones(1, 2): {0},
        ones(0, 2): {1},
        ones(0, 1): {2},
    }


def test_classes_follow_activity_not_seats() -> None:
    plan = new_plan(100)
    on_stage(plan, range(10))
    mix(plan, [2, 5, 7])
    assert len(plan.classes) == 4
    assert found(plan)[ones(2, 5, 7)] == set(range(100)) - {2, 5, 7}


def test_the_audience_comes_first() -> None:
    plan = new_plan(4)
    on_stage(plan, [0, 1])
    mix(plan, [0, 1])
    assert plan.classes[0].recipe == ones(0, 1)


def test_a_space_of_speakers_only() -> None:
    plan = new_plan(2)
    on_stage(plan, [0, 1])
    mix(plan, [0, 1])
    assert found(plan) == {ones(1): {0}, ones(0): {1}}


def test_own_numbers_count_while_their_source_sounds() -> None:
    plan = new_plan(6)
    on_stage(plan, [0, 1])
    plan.set_gain(4, 1, 0.0)  # a block
    plan.set_gain(5, 1, 0.5)  # a volume
    mix(plan, [0])
    assert found(plan) == {ones(0): {1, 2, 3, 4, 5}}
    mix(plan, [0, 1])
    assert found(plan) == {
        ones(0, 1): {2, 3},
        ones(1): {0},
        ones(0): {1, 4},
        ((0, 1.0), (1, 0.5)): {5},
    }


def test_a_gain_of_one_is_no_number_of_ones_own() -> None:
    plan = new_plan(3)
    plan.set_gain(2, 0, 0.5)
    plan.set_gain(2, 0, 1.0)
    mix(plan, [0, 1])
    assert found(plan) == {ones(0, 1): {0, 1, 2}}


def test_a_block_of_the_only_one_who_talks_is_silence() -> None:
    plan = new_plan(3)
    plan.set_gain(2, 0, 0.0)
    mix(plan, [0])
    assert found(plan) == {ones(0): {0, 1}}


def test_members_come_and_go() -> None:
    plan = new_plan(3)
    on_stage(plan, [0])
    mix(plan, [0])
    assert not plan.changed
    plan.add_member(7, 107)
    assert not plan.changed  # one more in the audience: it hears what the audience does
    assert found(plan) == {ones(0): {1, 2, 7}}
    mix(plan, [0])
    assert found(plan) == {ones(0): {1, 2, 7}}
    plan.remove_member(1)
    assert not plan.changed
    assert found(plan) == {ones(0): {2, 7}}
    mix(plan, [0])
    assert found(plan) == {ones(0): {2, 7}}
    plan.remove_member(0)  # may sound on for a tick
    assert plan.changed
    mix(plan, [0])
    assert found(plan) == {ones(0): {2, 7}}


def test_numbers_go_with_their_member() -> None:
    plan = new_plan(3)
    plan.set_gain(2, 0, 0.0)
    plan.remove_member(2)
    plan.add_member(2, 102)
    mix(plan, [0])
    assert found(plan) == {ones(0): {0, 1, 2}}


def lines_run(plan: Plan, active: list[int]) -> int:
    """How many lines of Python a rebuild runs."""
    count = 0

    def trace(_frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    gc.disable()  # a collection in between runs lines of its own
    sys.settrace(trace)
    try:
        plan.rebuild(active, 0)
    finally:
        sys.settrace(before)
        gc.enable()
    return count


def test_members_without_numbers_of_their_own_cost_nothing() -> None:
    costs = []
    for members in (20, 5_000):
        plan = new_plan(members)
        on_stage(plan, range(5))
        plan.set_gain(10, 0, 0.5)
        mix(plan, [0, 1])
        costs.append([lines_run(plan, active) for active in ([0, 1, 2], [0], [], [3])])
    assert costs[0] == costs[1]


@pytest.mark.parametrize(
    "remedy", [Remedy(half_rate=True), Remedy((1,), 10), Remedy(expected_loss_percent=10)]
)
def test_members_with_bad_paths_cost_no_more_the_more_there_are(remedy: Remedy) -> None:
    costs = []
    for troubled in (20, 3_000):
        plan = new_plan(troubled + 10)
        on_stage(plan, range(5))
        mix(plan, [0, 1])
        for member in range(10, 10 + troubled):
            plan.set_remedy(member, remedy)
        plan.set_remedy(0, remedy)
        plan.set_gain(9, 0, 0.5)
        mix(plan, [0, 1])
        mix(plan, [0, 1], 2 * HOLD_NS)
        costs.append([])
        for active in ([0, 1, 2], [0], [], [3], [0, 1]):
            for mix_class in plan.classes:
                mix_class.live = any(source in active for source, _ in mix_class.recipe)
            costs[-1].append(lines_run(plan, active))
            for mix_class in plan.classes:
                mix_class.live = True
    assert costs[0] == costs[1]


# -- switching ------------------------------------------------------------------------------------


def test_a_class_that_splits_off_forks_the_encoder_and_the_limiter() -> None:
    plan = new_plan(5)
    on_stage(plan, [0, 1])
    mix(plan, [0])
    parent = class_of(plan, 1)
    assert parent is not None
    parent.limiter.limit(np.full(960, 5, np.float32))
    for frame in range(20):
        parent.encoder.encode(tone(frame))
    mix(plan, [0, 1])
    twin = class_of(plan, 1)
    assert twin is not None
    assert twin is not parent
    assert class_of(plan, 4) is parent
    assert twin.live
    after = np.zeros((2, 960), np.float32)
    assert [c.limiter.limit(one) for c, one in zip((parent, twin), after, strict=True)] == [5, 5]
    np.testing.assert_array_equal(after[0], after[1])
    assert after.any()
    cold = Encoder(complexity=0)
    packets = [
        [c.encode(tone(frame)) for frame in range(20, 40)]
        for c in (parent.encoder, twin.encoder, cold)
    ]
    assert packets[0] == packets[1]
    assert packets[0][0] != packets[2][0]  # so there is something to inherit


def test_the_largest_group_keeps_the_class() -> None:
    plan = new_plan(10)
    mix(plan, [0, 1])
    for hearer in (7, 8, 9):
        plan.set_gain(hearer, 0, 0.5)
    mix(plan, [0, 1])
    three = class_of(plan, 7)
    plan.set_gain(7, 0, 0.2)
    mix(plan, [0, 1])
    assert class_of(plan, 8) is class_of(plan, 9) is three
    assert class_of(plan, 7) not in (three, class_of(plan, 0))


def test_a_class_goes_on_when_its_recipe_changes() -> None:
    plan = new_plan(6)
    on_stage(plan, [0, 1, 2])
    mix(plan, [0])
    mix(plan, [0, 1])
    own = class_of(plan, 1)
    mix(plan, [0, 1, 2])
    assert class_of(plan, 1) is own
    mix(plan, [1, 2])
    assert class_of(plan, 1) is own


def split() -> tuple[Plan, MixClass]:
    """A plan where member 2's class has the audience's recipe again since 1,000 ms."""
    plan = new_plan(5)
    plan.set_gain(2, 0, 0.5)
    mix(plan, [0], 0)
    own = class_of(plan, 2)
    assert own is not None
    plan.set_gain(2, 0, 1.0)
    mix(plan, [0], 1_000 * MS)
    assert class_of(plan, 2) is own
    assert [c.recipe for c in plan.classes] == [ones(0), ones(0)]
    return plan, own


@pytest.mark.parametrize("peak", [QUIET_PEAK, 0.0])
def test_a_held_class_joins_when_it_is_quiet(peak: float) -> None:
    plan, own = split()
    own.peak = peak
    plan.join_held(1_020 * MS)
    assert found(plan) == {ones(0): {0, 1, 2, 3, 4}}
    mix(plan, [0], 1_040 * MS)
    assert found(plan) == {ones(0): {0, 1, 2, 3, 4}}


def test_a_held_class_does_not_join_while_it_is_loud() -> None:
    plan, own = split()
    own.peak = QUIET_PEAK * 1.01
    plan.join_held(1_000 * MS + HOLD_NS - 1)
    assert class_of(plan, 2) is own
    plan.join_held(1_000 * MS + HOLD_NS)
    assert class_of(plan, 2) is class_of(plan, 0)


def test_the_time_to_hold_is_not_begun_anew_by_other_changes() -> None:
    plan, own = split()
    for ms in range(1_200, 3_000, 200):
        plan.add_member(ms, 100 + ms)
        mix(plan, [0] if ms % 400 else [0, 1], ms * MS)
        assert class_of(plan, 2) is own
    mix(plan, [0], 1_000 * MS + HOLD_NS)
    assert class_of(plan, 2) is class_of(plan, 0)


def test_a_held_class_may_part_again() -> None:
    plan, own = split()
    plan.set_gain(2, 0, 0.3)
    mix(plan, [0], 1_100 * MS)
    assert class_of(plan, 2) is own
    assert own.held_since_ns is None
    mix(plan, [0], 1_100 * MS + 2 * HOLD_NS)
    assert class_of(plan, 2) is own


def test_a_pause_ends_the_holding() -> None:
    plan, _ = split()
    mix(plan, [], 1_100 * MS)
    mix(plan, [0], 1_120 * MS)
    assert found(plan) == {ones(0): {0, 1, 2, 3, 4}}


def test_two_that_become_alike_join_each_other() -> None:
    plan = new_plan(6)
    plan.set_gain(4, 0, 0.5)
    plan.set_gain(5, 0, 0.25)
    mix(plan, [0])
    plan.set_gain(5, 0, 0.5)
    mix(plan, [0])
    assert len(plan.classes) == 3
    mix(plan, [0], HOLD_NS)
    assert found(plan) == {ones(0): {0, 1, 2, 3}, ((0, 0.5),): {4, 5}}


def test_a_class_that_begins_is_cold() -> None:
    plan = new_plan(3)
    on_stage(plan, [0])
    plan.rebuild([0], 0)
    (audience,) = plan.classes
    assert not audience.live


# -- anything -------------------------------------------------------------------------------------

MEMBERS = 7
GAIN = st.sampled_from([0.0, 0.5, 1.0])
WHO = st.integers(0, MEMBERS - 1)
CHANGES = st.one_of(
    st.tuples(st.just("gain"), WHO, WHO, GAIN),
    st.tuples(st.just("here"), WHO),
    st.tuples(st.just("path"), WHO, st.booleans(), st.sampled_from([0, 0, 10, 20])),
    st.tuples(st.just("tick"), st.sets(st.integers(0, 3)), st.booleans(), st.integers(20, 900)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(CHANGES, max_size=40))
def test_every_member_hears_exactly_what_they_should(changes: list[tuple[Any, ...]]) -> None:
    plan = new_plan(MEMBERS)
    here = set(range(MEMBERS))
    paths: dict[int, Remedy] = {}
    gains: dict[tuple[int, int], float] = {}
    now_ns = 0
    for what, *arguments in [*changes, ("tick", {0, 1, 2}, True, 20)]:
        if what == "gain":
            hearer, source, gain = arguments
            if hearer in here:
                plan.set_gain(hearer, source, gain)
                gains[hearer, source] = gain
        elif what == "path":
            member, half_rate, loss = arguments
            if member in here:
                paths[member] = Remedy(expected_loss_percent=loss, half_rate=half_rate)
                plan.set_remedy(member, paths[member])
        elif what == "here":
            (member,) = arguments
            if member in here:
                here.discard(member)
                plan.remove_member(member)
                paths.pop(member, None)
                gains = {k: g for k, g in gains.items() if k[0] != member}
            else:
                here.add(member)
                plan.add_member(member, 100 + member)
        else:
            active, loud, ms = arguments
            now_ns += ms * MS
            mix(plan, active, now_ns, peak=LOUD if loud else 0.0)
            check(plan, here, gains, paths, sorted(active))
            held = [c for c in plan.classes if c.held_since_ns is not None]
            assert loud or not held, "held although it is quiet"


def check(
    plan: Plan,
    here: set[int],
    gains: dict[tuple[int, int], float],
    paths: dict[int, Remedy],
    active: list[int],
) -> None:
    expected = {m: tuple((s, g) for s in active if (g := gains.get((m, s), 1.0))) for m in here}
    heard: dict[int, Hearing] = {}
    for mix_class in plan.classes:
        assert mix_class.recipe
        assert len(mix_class)
        for row in rows_of(mix_class):
            assert row - 100 not in heard, "in two classes"
            heard[row - 100] = mix_class.hears
        losses = [
            paths.get(row - 100, NO_REMEDY).expected_loss_percent for row in rows_of(mix_class)
        ]
        assert mix_class.encoder.expected_loss_percent == min(losses)
        assert mix_class.encoder.bitrate == (16_000 if mix_class.remedy.half_rate else 32_000)
    assert heard == {
        m: (recipe, paths.get(m, NO_REMEDY).half_rate) for m, recipe in expected.items() if recipe
    }
    prime = [c.hears for c in plan.classes if c.held_since_ns is None]
    assert len(set(prime)) == len(prime) == len(set(heard.values())), "one class a recipe, but held"


# -- narrow and lossy paths -----------------------------------------------------------------------

HALF = Remedy(half_rate=True)


def by_rate(plan: Plan) -> dict[bool, set[int]]:
    """half rate -> members"""
    for mix_class in plan.classes:
        assert mix_class.encoder.bitrate == (16_000 if mix_class.remedy.half_rate else 32_000)
    return {c.remedy.half_rate: {row - 100 for row in rows_of(c)} for c in plan.classes}


def test_whoever_has_a_narrow_path_shares_a_class_at_half_the_rate() -> None:
    plan = new_plan(6)
    on_stage(plan, [0])
    mix(plan, [0])
    before = class_of(plan, 3)
    for member in (3, 5):
        plan.set_remedy(member, HALF)
    mix(plan, [0])
    assert by_rate(plan) == {False: {1, 2, 4}, True: {3, 5}}
    assert class_of(plan, 1) is before
    half = class_of(plan, 3)
    assert half is not None
    assert half.live, "it goes on where the other is"
    plan.set_remedy(2, HALF)  # one more, while those are there
    mix(plan, [0])
    assert [len(c) for c in plan.classes] == [2, 2, 1]  # until one can join the other unheard
    mix(plan, [0], HOLD_NS + MS)
    assert by_rate(plan) == {False: {1, 4}, True: {2, 3, 5}}


def test_many_narrow_paths_make_few_classes() -> None:
    """Costs: a thousand paths become narrow within a second, and wide again."""
    plan = new_plan(1_000)
    on_stage(plan, [0])
    mix(plan, [0])
    most = 0
    for remedy in (HALF, NO_REMEDY):
        for tick in range(100):
            for member in range(1 + 10 * tick, 10 + 10 * tick):
                plan.set_remedy(member, remedy)
            mix(plan, [0], (1 + tick) * 20 * MS)
            most = max(most, len(plan.classes))
    assert most <= 4
    mix(plan, [0], 10_000 * MS)
    mix(plan, [0], 20_000 * MS)
    assert len(plan.classes) == 1


def test_a_path_that_is_wide_again_comes_back_where_it_is_quiet() -> None:
    plan = new_plan(4)
    on_stage(plan, [0])
    plan.set_remedy(3, HALF)
    mix(plan, [0])
    plan.set_remedy(3, NO_REMEDY)
    mix(plan, [0])
    alone = class_of(plan, 3)
    assert alone is not None
    assert alone is not class_of(plan, 1)
    assert alone.encoder.bitrate == 32_000
    mix(plan, [0], peak=QUIET_PEAK / 2)
    assert found(plan) == {ones(0): {1, 2, 3}}


def test_a_speaker_with_a_narrow_path_has_their_own_mix_at_half_the_rate() -> None:
    plan = new_plan(5)
    on_stage(plan, [0, 1])
    mix(plan, [0, 1])
    own = class_of(plan, 1)
    plan.set_remedy(1, HALF)
    mix(plan, [0, 1])
    assert class_of(plan, 1) is own
    assert own is not None
    assert own.encoder.bitrate == 16_000
    assert len(plan.classes) == 3, "no encode more"


def test_the_narrow_come_and_go_with_their_members() -> None:
    plan = new_plan(3)
    on_stage(plan, [0])
    for member in (1, 2):
        plan.set_remedy(member, HALF)
    mix(plan, [0])
    assert by_rate(plan) == {True: {1, 2}}
    plan.remove_member(1)
    plan.remove_member(2)
    mix(plan, [0])
    assert plan.classes == []


def test_in_band_fec_is_for_a_class_all_of_whose_members_lose_much() -> None:
    plan = new_plan(4)
    on_stage(plan, [0, 1])
    mix(plan, [0, 1])

    def expected(member: int) -> int:
        mix(plan, [0, 1])
        mix_class = class_of(plan, member)
        assert mix_class is not None
        assert mix_class.encoder.fec == (mix_class.encoder.expected_loss_percent > 0)
        return mix_class.encoder.expected_loss_percent

    plan.set_remedy(0, Remedy((1,), 10))
    assert expected(0) == 10, "their own mix"
    plan.set_remedy(2, Remedy((1,), 15))
    assert expected(2) == expected(3) == 0, "one of two"
    plan.set_remedy(3, Remedy((1,), 5))
    assert expected(2) == expected(3) == 5, "as much as does all of them good"
    plan.add_member(4, 104)
    assert expected(4) == 0
    plan.remove_member(4)
    plan.set_remedy(0, NO_REMEDY)
    assert expected(0) == 0
