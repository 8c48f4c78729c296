"""Single stories on the simulated network, each with one point."""

from collections import Counter, defaultdict
from itertools import pairwise

import msgpack

from protocol import frames
from protocol.connection import MS
from protocol.packets import Kind
from protocol.roles import Role
from spaces_client.client import Phase
from spaces_client.events import Ended, Reconnected, Reconnecting
from spaces_server.node import Limits
from tests.sim.checkers import (
    EncodesFollowRecipes,
    NoncesNeverRepeat,
    every_request_has_one_answer,
    hears_exactly,
    views_agree,
)
from tests.sim.network import CLEAN, ROUGH, Path
from tests.sim.world import SERVER, Person, World

TONES = [431.0, 617.0, 853.0]


def test_everyone_hears_the_sum_of_the_others() -> None:
    world = World(1, CLEAN)
    NoncesNeverRepeat(world)
    encodes = EncodesFollowRecipes(world)
    people = world.gathered(TONES, listeners=2)
    for talking in ([0], [0, 1], [0, 1, 2], [1, 2], [2], []):
        for number, person in enumerate(people):
            person.talking = number in talking
        world.run(1_000)
        from_ns = world.now_ns
        world.run(1_500)
        for person in people:
            hears_exactly(person, [people[n] for n in talking], people, from_ns, world.now_ns)
    assert encodes.most >= 4, "three who talk make four recipes"
    views_agree(world)
    every_request_has_one_answer(world)


def test_a_clean_path_costs_no_concealment_and_little_delay() -> None:
    world = World(2, Path(latency_ms=10.0, jitter_ms=0.2))
    people = world.gathered(TONES[:1], listeners=4)
    people[0].talking = True
    world.run(5_000)
    for listener in people[1:]:
        stats = listener.client.playout.stats
        assert stats.concealed_samples == 0
        assert listener.client.received.lost == 0
        assert stats.delay_ns <= 45 * MS
    (room,) = world.node._rooms.values()
    assert room.mix.sources[people[0].me.id].stats.delay_ns <= 25 * MS


def _longest_gap_ms(person: Person, from_ns: int) -> float:
    times = [t for t in person.packets_ns if t >= from_ns]
    return max(b - a for a, b in pairwise(times)) / MS


def test_audio_goes_on_after_a_listener_gets_another_address() -> None:
    for seed in range(5):
        world = World(seed, Path(latency_ms=30.0, jitter_ms=3.0))
        people = world.gathered(TONES[:1], listeners=2)
        people[0].talking = True
        world.run(2_000)
        hellos = _count_hellos(world)
        from_ns = world.now_ns - 100 * MS
        world.network.rebind(people[1].address)
        world.run(1_500)
        assert _longest_gap_ms(people[1], from_ns) <= 200
        assert len(people[1].packets_ns) > 150
        assert hellos == []


def test_audio_goes_on_after_a_speaker_gets_another_address() -> None:
    world = World(3, Path(latency_ms=30.0, jitter_ms=3.0))
    people = world.gathered(TONES[:2], listeners=1)
    people[0].talking = people[1].talking = True
    world.run(2_000)
    hellos = _count_hellos(world)
    from_ns = world.now_ns - 100 * MS
    world.network.rebind(people[1].address)
    world.run(1_000)
    assert _longest_gap_ms(people[1], from_ns) <= 200, "what the speaker hears"
    assert people[2].client.playout.stats.concealed_samples == 0, "what the others hear of them"
    assert hellos == []


def _count_hellos(world: World) -> list[bytes]:
    seen: list[bytes] = []
    world.on_send.append(lambda _s, _d, data: seen.append(data) if data[0] == Kind.HELLO else None)
    return seen


def _media_to(world: World) -> dict[bytes, Counter[int]]:
    """Whose address -> how many datagrams of each kind of audio the server sends there from now
    on."""
    sent: dict[bytes, Counter[int]] = defaultdict(Counter)

    def watch(_source: bytes, destination: bytes, data: bytes) -> None:
        if data[0] in (Kind.AUDIO, Kind.CROWD) and destination in world.network._private:
            sent[world.network._private[destination]][data[0]] += 1

    world.on_send.append(watch)
    return sent


CROWDED = Limits(complexity=0, crowd_above=3)


def test_a_crowd_hears_what_the_stage_hears_in_a_third_of_the_datagrams() -> None:
    world = World(21, Path(latency_ms=10.0, jitter_ms=2.0), CROWDED)
    NoncesNeverRepeat(world)
    EncodesFollowRecipes(world)
    people = world.gathered(TONES[:2], listeners=6)
    for talking in ([0], [], [0, 1]):
        for number, person in enumerate(people):
            person.talking = number in talking
        world.run(1_000)
        from_ns = world.now_ns
        world.run(1_000)
        for person in people:
            hears_exactly(person, [people[n] for n in talking], people, from_ns, world.now_ns)
    concealed = [p.client.playout.stats.concealed_samples for p in people]
    sent = _media_to(world)
    world.run(1_200)
    for person in people[:2]:
        assert sent[person.address] == {Kind.AUDIO: 60}
    for person in people[2:]:
        assert sent[person.address] == {Kind.CROWD: 20}
        assert person.client.playout.stats.delay_ns <= 90 * MS
    assert [p.client.playout.stats.concealed_samples for p in people] == concealed
    assert all(p.client.received.lost == p.client.received.malformed == 0 for p in people)


def test_from_the_crowd_to_the_stage_and_back() -> None:
    world = World(22, Path(latency_ms=10.0, jitter_ms=2.0), CROWDED)
    people = world.gathered(TONES[:1], listeners=6)
    host, guest = people[0], people[3]
    guest.tone_hz = TONES[1]
    host.talking = True
    world.run(2_000)
    concealed = guest.client.playout.stats.concealed_samples
    world.answer(guest, frames.RaiseHand)
    world.answer(host, frames.BringUp, member=guest.me.id)
    sent = _media_to(world)
    guest.talking = True
    world.run(2_000)
    assert sent[guest.address].keys() == {Kind.AUDIO}
    for person in people:
        hears_exactly(person, [host, guest], people, world.now_ns - 1_000 * MS, world.now_ns)
    world.answer(guest, frames.TakeDown)
    world.run(200)
    sent.clear()
    world.run(1_200)
    assert sent[guest.address] == {Kind.CROWD: 20}
    stats = guest.client.playout.stats
    assert stats.concealed_samples - concealed <= 3 * 960, "while its jitter buffer learns it"
    assert stats.duplicate == 0
    assert guest.client.received.lost == 0


def test_a_crowd_of_old_clients_gets_what_they_know() -> None:
    world = World(23, CLEAN, CROWDED)
    people = world.connected(6, TONES[:1])
    world.registered(people)
    opened = world.answer(people[0], frames.Open, title="sim")
    assert isinstance(opened, frames.Joined)
    for person in people[1:]:
        connection = person.client._connection
        assert connection is not None
        person.client._last_id += 1
        request = {"type": "join", "id": person.client._last_id, "space": opened.space}
        connection.send(msgpack.packb(request))
    world.run_until(lambda: all(p.inside for p in people))
    sent = _media_to(world)
    people[0].talking = True
    world.run(500)
    assert {kind for person in people for kind in sent[person.address]} == {Kind.AUDIO}


def test_audio_goes_on_after_one_of_a_crowd_gets_another_address() -> None:
    world = World(24, Path(latency_ms=30.0, jitter_ms=3.0), CROWDED)
    people = world.gathered(TONES[:1], listeners=6)
    people[0].talking = True
    world.run(2_000)
    probes = [p.client._probes for p in people]
    from_ns = world.now_ns - 100 * MS
    world.network.rebind(people[2].address)
    world.run(1_500)
    assert probes == [0] * 7
    assert _longest_gap_ms(people[2], from_ns) <= 300


def test_an_address_that_is_not_proven_gets_no_more_than_it_sent() -> None:
    """Somebody on the path repeats a listener's packet from a victim's address, first."""
    world = World(4, CLEAN)
    people = world.gathered(TONES[:1], listeners=1)
    people[0].talking = True
    world.run(1_000)
    victim = b"victim".ljust(28, b".")
    listener = people[1].client
    assert listener._connection is not None
    listener._connection.ping(world.now_ns)
    (stolen,) = listener.transmit(world.now_ns)
    to_victim = 0

    def count(source: bytes, destination: bytes, data: bytes) -> None:
        nonlocal to_victim
        if source == SERVER and destination == victim:
            to_victim += len(data)

    world.on_send.append(count)
    world.node.receive_datagram(stolen, victim, world.now_ns)
    world.run(400)
    assert 0 < to_victim <= len(stolen)
    world.run(6_000)  # the listener's next packet brings the session back
    assert to_victim <= len(stolen)
    from_ns = world.now_ns
    world.run(1_000)
    hears_exactly(people[1], people[:1], people, from_ns, world.now_ns)


def test_a_listener_comes_on_stage_and_is_heard() -> None:
    world = World(5, CLEAN)
    people = world.gathered(TONES[:1], listeners=2)
    host, guest, other = people
    guest.tone_hz = TONES[1]
    guest.talking = True
    world.run(1_000)
    assert world.node.mixer.stats.encodes == 0, "a listener is not heard"
    world.answer(guest, frames.RaiseHand)
    world.run(300)
    assert [m.id for m in host.client.view.members.values() if m.hand] == [guest.me.id]
    assert world.answer(host, frames.BringUp, member=guest.me.id) is not None
    world.run(1_500)
    assert guest.me.role is Role.SPEAKER
    from_ns = world.now_ns
    world.run(1_000)
    hears_exactly(other, [guest], people, from_ns, world.now_ns)
    hears_exactly(guest, [], people, from_ns, world.now_ns)


def test_a_muted_speaker_is_not_mixed_from_the_next_tick_on() -> None:
    world = World(6, CLEAN)
    people = world.gathered(TONES[:2], listeners=1)
    host, speaker, _ = people
    speaker.talking = True
    world.run(1_000)
    speaker.client.view.me = None  # a client that does not do as it is told
    world.answer(host, frames.Mute, member=2)
    (room,) = world.node._rooms.values()
    world.run(20)
    assert 2 not in room.mix.sources
    encodes = world.node.mixer.stats.encodes
    world.run(1_000)
    assert world.node.mixer.stats.encodes == encodes


def test_a_silent_space_costs_nothing() -> None:
    world = World(7, CLEAN)
    people = world.gathered(TONES, listeners=3)
    people[0].talking = True
    world.run(1_000)
    people[0].talking = False
    world.run(1_500)
    before = (world.node.mixer.stats.encodes, world.node.mixer.stats.decodes)
    sealed = world.node.egress.sealed
    world.run(10_000)
    assert (world.node.mixer.stats.encodes, world.node.mixer.stats.decodes) == before
    assert world.node.egress.sealed == sealed
    assert not world.node.mixer._awake


def test_under_load_everyone_still_comes_in_by_cookie() -> None:
    world = World(8, ROUGH, Limits(complexity=0, cookies_above=3))
    world.connected(20, [])
    assert world.node.endpoint.dropped["cookie asked"] > 0


def test_the_same_person_again_takes_the_place_over() -> None:
    world = World(9, CLEAN)
    people = world.gathered(TONES[:1], listeners=0)
    key = world.rng.randbytes(32)
    space = people[0].client.view.id
    first = world.person(key=key)
    world.run_until(lambda: first.client.phase is Phase.CONNECTED)
    world.answer(first, frames.Join, space=space, name="twice")
    second = world.person(key=key)
    world.run_until(lambda: second.client.phase is Phase.CONNECTED)
    world.answer(second, frames.Join, space=space, name="twice")
    world.run(1_000)
    assert first.client.phase is Phase.CLOSED
    assert len(world.node.spaces[space]) == 2


def test_a_client_that_vanishes_is_gone_after_the_idle_timeout() -> None:
    world = World(10, CLEAN)
    people = world.gathered(TONES[:2], listeners=1)
    space = world.node.spaces[people[0].client.view.id]
    world.network.lose_all(people[1].address)
    world.run(25_000)
    assert len(space) == 3
    world.run(10_000)
    assert len(space) == 2
    assert [m.id for m in people[2].client.view.stage] == [people[0].me.id]
    assert any(isinstance(e, Reconnecting) for e in people[1].events)
    world.network.lose_nothing(people[1].address)
    world.run(10_000)
    assert any(isinstance(e, Reconnected) for e in people[1].events)
    assert people[1].me.role is Role.SPEAKER, "the place on stage was kept"
    views_agree(world)


def test_the_end_of_a_space_and_of_the_server_is_told() -> None:
    world = World(13, ROUGH)  # of which not all three CLOSEs are lost
    people = world.gathered(TONES[:1], listeners=2)
    world.answer(people[0], frames.Close)
    world.run(3_000)
    for person in people:
        assert any(isinstance(e, Ended) for e in person.events)
        assert person.client.phase is Phase.CONNECTED
    assert not world.node.spaces
    world.node.shut_down(world.now_ns)
    world.run(2_000)
    for person in people:
        (event,) = [e for e in person.events if isinstance(e, Reconnecting)]
        assert event.text == "the server is shutting down"


def test_a_server_that_is_killed_and_started_again_has_everybody_back() -> None:
    world = World(12, ROUGH)
    NoncesNeverRepeat(world)
    people = world.gathered(TONES, listeners=2)
    host, speaker, muted, *_ = people
    world.answer(host, frames.Mute, member=muted.me.id)
    for person in people:
        person.talking = True
    world.run(1_000)
    world.start()
    world.run(25_000)
    assert all(any(isinstance(e, Reconnected) for e in p.events) for p in people)
    assert [p.me.role for p in people[:3]] == [Role.HOST, Role.SPEAKER, Role.SPEAKER]
    assert muted.me.held
    from_ns = world.now_ns
    world.run(2_000)
    for person in people:
        hears_exactly(
            person, [host, speaker], people, from_ns, world.now_ns,
            level=(0.25, 1.5), silence=0.12,
        )  # fmt: skip
    views_agree(world)
