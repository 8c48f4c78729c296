"""The governor on a simulated machine: one core, ticks in turn, encodes that cost by complexity.
Then in a whole server, whose ticks take as long as the test says."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from protocol import frames
from protocol.connection import MS
from protocol.frames import ErrorCode
from spaces_server.governor import (
    CALM_NS,
    FULL,
    HIGH,
    LOW,
    MAX_CALM_NS,
    SILENCE_NS,
    STEPS,
    TICK_NS,
    Costs,
    Governor,
    Tick,
    ladder,
)
from spaces_server.net.ticker import MAX_BURST
from spaces_server.policy.house import RETRY_MS
from tests.unit.hall import RULES, Guest, Hall

US = 1_000
SECOND = 50  # in ticks
ENCODE_NS = {8: 240 * US, 5: 150 * US, 3: 120 * US, 1: 80 * US, 0: 70 * US}
COSTS = Costs(ENCODE_NS, decode_ns=35 * US, datagram_ns=4 * US)


@dataclass(frozen=True)
class Work:
    """What there is to do in a tick."""

    encodes: int = 0
    datagrams: int = 0


QUIET = Work(encodes=10, datagrams=500)  # 24 % of a tick at complexity 8
# At complexity 8, 5, 3, 1, 0: 133, 95, 82, 65, 61 %.
CODEC_BOUND = Work(encodes=85, datagrams=800)
# 108, 107, 107, 107, 106 %.
SEND_BOUND = Work(encodes=2, datagrams=5_270)


@dataclass
class Machine:
    """slower: how much longer than at start all takes.  factor: how much longer than it was
    measured at start an encode takes at each complexity.  late: how late each tick began, in ns.
    skipped: ticks that were too late to be made up for."""

    governor: Governor = field(default_factory=lambda: Governor(COSTS))
    slower: float = 1.0
    factor: Callable[[int], float] = lambda _: 1.0
    now_ns: int = 0
    free_ns: int = 0
    late: list[int] = field(default_factory=list)
    skipped: int = 0
    complexities: list[int] = field(default_factory=list)
    shut: list[bool] = field(default_factory=list)
    news: list[tuple[int, str]] = field(default_factory=list)

    def run(self, ticks: int, work: Work, stall_ns: int = 0) -> None:
        """stall_ns: for how long the first of these ticks hangs."""
        for _ in range(ticks):
            self.now_ns += TICK_NS
            missed = max(0, self.free_ns - self.now_ns) // TICK_NS
            if missed >= MAX_BURST:
                self.now_ns += missed * TICK_NS
                self.skipped += missed
            begin_ns = max(self.now_ns, self.free_ns)
            complexity = self.governor.complexity
            encode_ns = ENCODE_NS[complexity] * self.factor(complexity) * self.slower
            encoding_ns = int(work.encodes * encode_ns)
            rest_ns = work.datagrams * COSTS.datagram_ns + work.encodes * COSTS.decode_ns
            took_ns = encoding_ns + int(rest_ns * self.slower) + stall_ns
            stall_ns = 0
            self.free_ns = begin_ns + took_ns
            tick = Tick(
                took_ns=took_ns,
                encoding_ns=encoding_ns,
                busy_ns=took_ns,
                encodes=work.encodes,
                decodes=work.encodes,
                datagrams=work.datagrams,
            )
            news = self.governor.ticked(tick, self.free_ns)
            if news:
                self.news.append((self.free_ns, news))
            self.late.append(begin_ns - self.now_ns)
            self.complexities.append(self.governor.complexity)
            self.shut.append(self.governor.shut)

    @property
    def changes(self) -> int:
        both = zip(self.complexities, self.shut, strict=True)
        return sum(before != after for before, after in pairwise(both))


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_the_ladder_begins_where_the_operator_wants_it_and_ends_at_0() -> None:
    assert ladder(10) == (10, *STEPS)
    assert ladder(8) == STEPS
    assert ladder(4) == (4, 3, 1, 0)
    assert ladder(0) == (0,)


def test_a_load_that_fits_changes_nothing(machine: Machine) -> None:
    machine.run(60 * SECOND, QUIET)
    assert set(machine.complexities) == {8}
    assert not any(machine.shut)
    assert machine.news == []
    assert machine.governor.load == pytest.approx(0.2375, abs=0.001)


def test_encoders_give_way_within_a_second_and_nobody_is_refused(machine: Machine) -> None:
    machine.run(10 * SECOND, QUIET)
    machine.run(SECOND, CODEC_BOUND)
    assert machine.governor.complexity == 3  # 82 %: the first that fits
    assert not machine.governor.shut
    machine.run(60 * SECOND, CODEC_BOUND)
    assert set(machine.complexities[-60 * SECOND :]) == {3}, "none below it fits better"
    assert max(machine.late[-59 * SECOND :]) == 0, "ticks are in time again"
    assert machine.skipped == 0, "and no tick was left out"
    assert len(machine.news) == 2
    assert "encoder complexity is 3, newcomers are let in" in machine.news[1][1]


def test_they_go_up_again_slowly_one_step_at_a_time(machine: Machine) -> None:
    machine.run(5 * SECOND, CODEC_BOUND)
    assert machine.governor.complexity == 3
    machine.run(CALM_NS // TICK_NS - 10, QUIET)
    assert machine.governor.complexity == 3
    machine.run(60 * SECOND, QUIET)
    assert machine.governor.complexity == 8
    assert list(dict.fromkeys(machine.complexities[-60 * SECOND :])) == [3, 5, 8]
    times_ns = [at_ns for at_ns, _ in machine.news[1:]]
    assert times_ns[1] - times_ns[0] >= CALM_NS


def test_a_step_up_that_would_not_hold_is_not_taken(machine: Machine) -> None:
    machine.run(SECOND, CODEC_BOUND)
    machine.run(60 * SECOND, Work(encodes=65, datagrams=800))  # 66 % at 3, 76 % at 5
    assert LOW < 0.76 < HIGH
    assert set(machine.complexities[-60 * SECOND :]) == {3}


def test_where_encoders_save_too_little_the_door_is_shut(machine: Machine) -> None:
    machine.run(10 * SECOND, QUIET)
    machine.run(SECOND // 2, SEND_BOUND)
    assert machine.governor.complexity == 0
    assert machine.governor.shut
    assert machine.governor.crowded(0)
    assert "newcomers are refused" in machine.news[-1][1]


def test_the_door_is_shut_before_anybody_has_to_hear_it(machine: Machine) -> None:
    """Listeners come as long as they are let in; 100 a second."""
    listeners = 2_000
    for _ in range(60 * SECOND):
        if not machine.governor.crowded(listeners + 2):
            listeners += 2
        machine.run(1, Work(encodes=2, datagrams=listeners))
    assert max(machine.late) == 0
    assert 0.75 < machine.governor.load <= HIGH
    assert listeners == pytest.approx(machine.governor.capacity, abs=2)


def test_many_small_spaces_are_stopped_by_the_load(machine: Machine) -> None:
    """Each of them is far from its own limit: one more space of five every fifth of a second."""
    spaces = 0
    for tick in range(60 * SECOND):
        spaces += tick % 10 == 0 and not machine.governor.crowded(5)
        machine.run(1, Work(encodes=2 * spaces, datagrams=5 * spaces))
    assert machine.governor.complexity == 0
    assert max(machine.late) == 0
    assert 0.7 < machine.governor.load < 0.9
    assert machine.governor.crowded(5) or machine.governor.load < HIGH


def test_the_door_opens_when_people_have_gone_and_then_encoders_recover(machine: Machine) -> None:
    machine.run(5 * SECOND, SEND_BOUND)
    assert machine.governor.shut
    before = machine.changes
    fewer = Work(encodes=2, datagrams=3_800)  # 79 %: between
    machine.run(60 * SECOND, fewer)
    assert machine.governor.shut, "it would be shut again with the next one"
    machine.run(60 * SECOND, Work(encodes=2, datagrams=3_000))
    assert not machine.governor.shut
    assert machine.governor.complexity == 8
    assert machine.changes - before == 5  # the door, then one step after the other


@pytest.mark.parametrize("work", [QUIET, Work(encodes=30, datagrams=1_500)])  # 24 and 71 %
def test_a_single_stall_changes_nothing(machine: Machine, work: Work) -> None:
    for _ in range(5):
        machine.run(10 * SECOND, work)
        machine.run(1, work, stall_ns=50 * MS)
    machine.run(10 * SECOND, work)
    assert max(machine.late) >= 30 * MS
    assert machine.changes == 0


@pytest.mark.parametrize("period_s", [1, 5, 20, 40])
def test_a_load_that_comes_and_goes_does_not_make_it_swing(machine: Machine, period_s: int) -> None:
    for _ in range(240 // period_s):
        machine.run(period_s * SECOND // 2, QUIET)
        machine.run(period_s * SECOND // 2, CODEC_BOUND)
    before = machine.changes
    assert before < 16  # till it has found out how long to wait
    for _ in range(240 // period_s):
        machine.run(period_s * SECOND // 2, QUIET)
        machine.run(period_s * SECOND // 2, CODEC_BOUND)
    assert machine.changes - before <= 2
    assert machine.governor.complexity in (5, 3)


def test_it_does_not_swing_where_encodes_cost_otherwise_than_at_start() -> None:
    """A step up looks cheap, and then is not."""
    machine = Machine(factor=lambda complexity: 3.0 if complexity == 8 else 1.0)
    machine.run(240 * SECOND, Work(encodes=55, datagrams=0))
    # At 5: 51 %, so 8 is expected at 76 %, and stays untried.
    assert set(machine.complexities[60 * SECOND :]) == {5}
    machine = Machine(factor=lambda complexity: 3.0 if complexity == 8 else 1.0)
    machine.run(300 * SECOND, Work(encodes=45, datagrams=0))  # expected at 62 %; it is 170 %
    ups = machine.news[1::2]
    waits_s = [(b - a) / (1_000 * MS) for (a, _), (b, _) in pairwise(ups)]
    assert waits_s == sorted(waits_s), "each wait is longer than the one before"
    assert max(waits_s) < 2 * MAX_CALM_NS / (1_000 * MS)
    assert len(ups) < 300 / 30


def test_another_program_that_takes_the_machine_does_not_shut_the_door() -> None:
    """Ticks of a few people take ten times as long and begin late: turning others away would
    not help."""
    machine = Machine(slower=12.0)
    machine.run(60 * SECOND, Work(encodes=4, datagrams=60))
    assert max(machine.late) == 0
    machine.run(1, Work(encodes=4, datagrams=60), stall_ns=3_000 * MS)
    machine.run(60 * SECOND, Work(encodes=4, datagrams=60))
    assert machine.changes == 0


def test_a_machine_that_is_slower_than_at_start_is_noticed() -> None:
    machine = Machine(slower=2.0)
    machine.run(10 * SECOND, Work(encodes=40, datagrams=500))  # 130 % at 8, 82 % at 3
    assert machine.governor.complexity == 3
    assert max(machine.late[SECOND * 5 // 4 :]) == 0
    assert machine.skipped == 0


def test_capacity_is_what_fits_into_its_share_of_a_tick(machine: Machine) -> None:
    assert machine.governor.capacity == (16_000 - 240 - 35) // 4
    assert not machine.governor.crowded(machine.governor.capacity)
    assert machine.governor.crowded(machine.governor.capacity + 1)


def test_capacity_follows_what_datagrams_really_take(machine: Machine) -> None:
    before = machine.governor.capacity
    machine.slower = 2.0
    machine.run(60 * SECOND, Work(encodes=1, datagrams=100))
    assert machine.governor.capacity == before, "small ticks teach nothing"
    machine.run(60 * SECOND, Work(encodes=1, datagrams=1_000))
    assert machine.governor.capacity == pytest.approx(before / 2, rel=0.01)
    machine.slower = 0.5
    machine.run(60 * SECOND, Work(encodes=1, datagrams=1_000))
    assert machine.governor.capacity == pytest.approx(before * 2, rel=0.01)


def test_a_crowd_may_wait_in_silence_only_as_far_as_it_can_be_served(machine: Machine) -> None:
    machine.run(60 * SECOND, Work())
    assert machine.governor.load == 0
    assert machine.governor.crowded(20_000)
    assert not machine.governor.crowded(3_000)


def test_what_was_measured_is_forgotten_when_nobody_has_spoken_for_long(machine: Machine) -> None:
    machine.run(5 * SECOND, SEND_BOUND)
    assert machine.governor.shut
    machine.run(SILENCE_NS // TICK_NS - SECOND, Work())
    assert machine.governor.shut, "a pause in a talk is no relief"
    machine.run(2 * SECOND + CALM_NS // TICK_NS, Work())
    assert not machine.governor.shut


def test_one_tick_says_no_more_than_that_it_was_too_long(machine: Machine) -> None:
    machine.run(60 * SECOND, Work(encodes=400, datagrams=20_000))
    assert machine.governor.load <= FULL


def test_the_news_say_what_an_operator_would_ask(machine: Machine) -> None:
    machine.run(SECOND, SEND_BOUND)
    machine.run(60 * SECOND, QUIET)
    texts = [text for _, text in machine.news]
    shut = texts.index(
        "ticks take 86% of their time: encoder complexity is 0, newcomers are refused"
    )
    assert texts[shut + 1].endswith("encoder complexity is 0, newcomers are let in")
    assert texts[-1].endswith("encoder complexity is 8, newcomers are let in")
    assert len(texts) <= 2 * (len(STEPS) + 1)


@pytest.mark.parametrize("complexity", [0, 1])
def test_a_server_that_is_at_the_bottom_already_has_the_door_left(complexity: int) -> None:
    machine = Machine(Governor(Costs({c: ENCODE_NS[c] for c in ladder(complexity)}, 35_000, 4_000)))
    machine.run(SECOND, SEND_BOUND)
    assert (machine.governor.complexity, machine.governor.shut) == (0, True)
    machine.run(60 * SECOND, QUIET)
    assert (machine.governor.complexity, machine.governor.shut) == (complexity, False)


# -- in a server ----------------------------------------------------------------------------------

OVERLOAD = TICK_NS * 2
PLACES = 3  # listeners of one space, where the machine is as slow as this:
SLOW = Costs({0: 1 * US}, decode_ns=1 * US, datagram_ns=5_300 * US)


def slow_hall(listeners: int) -> tuple[Hall, list[Guest], str]:
    """A space on a machine that is full with PLACES people, the host among them."""
    hall = Hall()
    people = hall.space(1, listeners)
    hall.node.governor = Governor(SLOW)
    assert hall.node.governor.capacity == PLACES
    return hall, people, hall.the_space().record.id


def refusal(hall: Hall, guest: Guest, space: str) -> frames.Error:
    reply = hall.ask(guest, frames.Join, space=space)
    assert isinstance(reply, frames.Error)
    return reply


def overloaded(hall: Hall, governor: Governor) -> None:
    """Ticks take so long that the door is shut."""
    hall.node.governor = governor
    for _ in range(SECOND):
        tick = Tick(OVERLOAD, 0, OVERLOAD, encodes=1, decodes=1, datagrams=TICK_NS // (4 * US))
        governor.ticked(tick, hall.now_ns)
    assert governor.shut


def test_a_newcomer_is_refused_in_words_and_told_when_to_come_again() -> None:
    hall, _, space = slow_hall(1)
    hall.join(hall.person(), space)
    last = hall.person()
    error = refusal(hall, last, space)
    assert (error.code, error.retry_ms) == (ErrorCode.UNAVAILABLE, RETRY_MS)
    assert error.text.startswith("the server is full for now: ")
    assert hall.node.house.refused_joins == 1
    assert len(hall.the_space()) == PLACES


def test_another_space_is_no_fuller_for_it() -> None:
    hall, _, space = slow_hall(2)
    other = hall.open(hall.person())
    guest = hall.person()
    assert refusal(hall, guest, space).code == ErrorCode.UNAVAILABLE
    hall.join(guest, other)


def test_while_the_door_is_shut_no_space_is_opened_either() -> None:
    hall, _, space = slow_hall(0)
    overloaded(hall, Governor(COSTS))
    guest = hall.person()
    assert refusal(hall, guest, space).code == ErrorCode.UNAVAILABLE
    hall.refuses(ErrorCode.UNAVAILABLE, guest, frames.Open, title="mine")
    assert hall.node.house.refused_joins == 2


def test_whoever_is_in_comes_in_again_from_another_device() -> None:
    hall, (_, listener, _), space = slow_hall(2)
    again = hall.guest(listener.key)
    hall.join(again, space)
    assert len(hall.the_space()) == PLACES


def test_whoever_was_lost_comes_back_in_but_not_after_long() -> None:
    hall, (_, listener, _), space = slow_hall(2)
    for seconds, back in ((1, True), (RULES.space.grace_s + 1, False)):
        listener.gone = listener.deaf = True
        while len(hall.the_space()) == PLACES:
            hall.tick(SECOND)
        hall.node.governor = None
        hall.join(hall.person(), space)  # somebody takes the place
        hall.node.governor = Governor(SLOW)
        hall.tick(seconds * SECOND)
        listener = hall.guest(listener.key)
        reply = hall.ask(listener, frames.Join, space=space)
        assert isinstance(reply, frames.Joined if back else frames.Error)
        if back:
            hall.does(hall.guests[-2], frames.Leave)


def test_whoever_left_is_a_newcomer() -> None:
    hall, (_, listener, _), space = slow_hall(2)
    hall.does(listener, frames.Leave)
    hall.join(hall.person(), space)
    assert refusal(hall, listener, space).code == ErrorCode.UNAVAILABLE


def test_the_host_and_speakers_whose_places_are_kept_come_in() -> None:
    hall = Hall()
    host, speaker, listener = hall.space(2, 1)
    space = hall.the_space().record.id
    hall.node.governor = Governor(SLOW)
    for person in (host, speaker):
        person.gone = person.deaf = True
    while len(hall.the_space()) > 1:
        hall.tick(SECOND)
    hall.tick(SECOND)
    overloaded(hall, hall.node.governor)
    for person in (host, speaker):
        hall.join(hall.guest(person.key), space)
    assert len(hall.the_space()) == PLACES
    assert listener.client.view.me is not None


def test_who_may_not_come_in_anyway_hears_that_instead() -> None:
    hall, (host, listener, _), space = slow_hall(2)
    hall.does(host, frames.Remove, member=listener.id)
    hall.join(hall.person(), space)
    assert refusal(hall, listener, space).code == ErrorCode.REMOVED


def test_no_more_personal_mixes_while_the_server_is_full() -> None:
    hall, (host, listener, other), _ = slow_hall(2)
    reply = hall.ask(listener, frames.SetVolume, member=host.id, percent=50)
    assert isinstance(reply, frames.Error)
    assert (reply.code, reply.retry_ms) == (ErrorCode.UNAVAILABLE, RETRY_MS)
    assert reply.text.startswith("the server is too busy for another mix")
    assert hall.node.house.refused_joins == 0
    hall.does(listener, frames.SetVolume, member=host.id, percent=100)
    hall.does(listener, frames.Block, person=host.handle)  # from that nobody is kept
    hall.does(other, frames.Leave)
    hall.does(listener, frames.SetVolume, member=host.id, percent=50)


def test_all_encoders_get_the_complexity_also_those_that_come_later() -> None:
    hall = Hall(complexity=8)
    host, speaker, listener = hall.space(2, 1)
    mix = hall.node.mixer.open()  # asleep all the while
    hall.tick(10, host)
    plan = hall.node._rooms[hall.the_space().record.id].mix.plan
    assert {c.encoder.complexity for c in plan.classes} == {8}
    hall.node.governor = Governor(COSTS)
    while not hall.node.governor.shut:
        hall.tick(1, host)
        hall.node.ticked(OVERLOAD, OVERLOAD // 2, OVERLOAD, hall.now_ns)
        hall.node.egress.sealed += 5_000  # as if so many listened
    hall.does(listener, frames.SetVolume, member=host.id, percent=100)
    hall.tick(10, host, speaker)
    assert len(plan.classes) == 3
    assert {c.encoder.complexity for c in plan.classes} == {0}
    assert any("encoder complexity is 0, newcomers are refused" in line for line in hall.log)
    assert mix.plan.classes == []


def test_the_log_tells_of_refusals_once_a_minute() -> None:
    hall, _, space = slow_hall(2)
    for _ in range(90):
        refusal(hall, hall.guests[-1] if len(hall.guests) > 3 else hall.person(), space)
        hall.tick(SECOND)
    told = [line for line in hall.log if "may not grow" in line]
    assert len(told) == 2
    assert (
        f"the space {space} may not grow: a tick of it sends 3 datagrams and can send 3" in told[0]
    )


def test_without_a_governor_everybody_is_let_in() -> None:
    hall, _, space = slow_hall(2)
    hall.node.governor = None
    hall.node.ticked(OVERLOAD, OVERLOAD, OVERLOAD, hall.now_ns)
    hall.join(hall.person(), space)
