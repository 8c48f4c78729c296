"""Who hears whom: blocks and volumes in the mix, and what is never mixed, counted and listened to,
through the whole server."""

from collections.abc import Callable

import numpy as np
import pytest

from protocol import frames
from protocol.packets import Kind
from spaces_server.mixer.plan import HOLD_NS
from tests.unit.hall import OUTSIDE, SECOND, TICK_NS, TONE_LEVEL, Guest, Hall, level

TONES_HZ = (440.0, 1_010.0)
HEARD = (0.7, 1.4)  # what a voice codec does to a tone that it may distort
UNHEARD = 0.02


def encodes(hall: Hall, *speakers: Guest) -> set[int]:
    """How many there are a tick, while these go on talking for half a second."""
    counts = set()
    for _ in range(SECOND // 2):
        before = hall.node.mixer.stats.encodes
        hall.tick(1, *speakers)
        counts.add(hall.node.mixer.stats.encodes - before)
    return counts


def classes_of(hall: Hall, audience: list[Guest]) -> int:
    """How many mix classes the audience hears now."""
    (room,) = hall.node._rooms.values()
    rows = [room.members[guest.id].row for guest in audience]
    return sum(
        any(np.isin(s.array, rows).any() for s in c.rows.values()) for c in room.mix.plan.classes
    )


def hears(guest: Guest, *talking: Guest) -> list[float]:
    """How loud each of these is in what the guest has heard; 1 is as it was spoken."""
    sound = guest.sound()
    return [level(sound, speaker.tone_hz) / TONE_LEVEL for speaker in talking]


def stage(listeners: int = 2) -> tuple[Hall, list[Guest]]:
    """Two speakers with tones of their own, and listeners."""
    hall = Hall()
    people = hall.space(2, listeners)
    for guest, tone_hz in zip(people, TONES_HZ, strict=False):
        guest.tone_hz = tone_hz
    return hall, people


def test_a_thousand_listeners_of_whom_three_blocked_a_speaker() -> None:
    """Of two who talk, the blocked one is `other`.  While both do, the audience hears two mixes:
    both, and `one` alone.  A third encode is of the stage: `one` hears `other` alone; what `other`
    hears, `one` alone, is the mix of the three as well."""
    hall, (one, other, *blockers) = stage(3)
    guests = hall.guests_of(997)
    for guest in guests:
        guest.client.request(frames.Join, space=one.client.view.id)
    hall.settle()
    audience = [*blockers, *guests]
    assert hall.the_space().listeners == len(audience) == 1_000
    for guest in blockers:
        hall.does(guest, frames.Block, person=other.handle)
    hall.guests = [one, other, *blockers, guests[0]]  # nobody looks at what the others are sent

    assert encodes(hall, one) == {1}
    assert classes_of(hall, audience) == 1
    hall.tick(5, one, other)
    for guest in (guests[0], *blockers):
        guest.heard.clear()
    sealed = hall.node.egress.sealed
    assert encodes(hall, one, other) == {3}
    assert classes_of(hall, audience) == 2
    assert hall.node.egress.sealed - sealed == SECOND // 2 * 1_002
    loud, also_loud = hears(guests[0], one, other)
    assert HEARD[0] < loud < HEARD[1]
    assert HEARD[0] < also_loud < HEARD[1]
    for guest in blockers:
        loud, silent = hears(guest, one, other)
        assert HEARD[0] < loud < HEARD[1]
        assert silent < UNHEARD

    # Two streams that tell the same become one again; before that, the silence must be noticed.
    hall.tick(HOLD_NS // TICK_NS + SECOND // 2, one)
    assert encodes(hall, one) == {1}
    assert classes_of(hall, audience) == 1


def test_the_two_of_a_block_hear_nothing_of_each_other() -> None:
    hall, (one, other, listener, blocker) = stage()
    hall.does(one, frames.Offer, member=blocker.id)
    hall.does(blocker, frames.Accept)
    blocker.tone_hz = 1_700.0
    hall.does(blocker, frames.Block, person=other.handle)
    hall.tick(5, one, other, blocker)
    for guest in hall.guests:
        guest.heard.clear()
    hall.tick(SECOND, one, other, blocker)
    assert max(hears(other, other, blocker)) < UNHEARD
    assert max(hears(blocker, other, blocker)) < UNHEARD
    assert HEARD[0] < hears(other, one)[0] < HEARD[1]
    assert HEARD[0] < hears(blocker, one)[0] < HEARD[1]
    assert all(HEARD[0] < heard < HEARD[1] for heard in hears(listener, one, other, blocker))
    assert all(HEARD[0] < heard < HEARD[1] for heard in hears(one, other, blocker))
    # Who is named as audible is who is mixed: nothing tells the two of each other.
    seats = {guest: hall.the_space().view(guest.id).seat for guest in (one, other, blocker)}
    assert {a.seat for audio in other.heard for a in audio.audible} == {seats[one]}
    assert {a.seat for audio in blocker.heard for a in audio.audible} == {seats[one]}


def test_a_block_and_its_end_take_effect_within_a_tick() -> None:
    hall, (one, other, listener, _) = stage()
    hall.tick(10, one, other)
    hall.does(listener, frames.Block, person=other.handle)
    listener.heard.clear()
    hall.tick(SECOND, one, other)
    assert hears(listener, other)[0] < UNHEARD
    assert {len(audio.audible) for audio in listener.heard} == {1}
    hall.does(listener, frames.Unblock, person=other.handle)
    listener.heard.clear()
    hall.tick(SECOND, one, other)
    assert HEARD[0] < hears(listener, other)[0]
    assert {len(audio.audible) for audio in listener.heard} == {2}


@pytest.mark.parametrize("percent", [0, 50, 100, 200])
def test_a_personal_volume_is_what_is_heard(percent: int) -> None:
    hall, (one, other, listener, as_it_is) = stage()
    hall.does(listener, frames.SetVolume, member=other.id, percent=percent)
    hall.tick(SECOND, one, other)
    (before, reference), (same, heard) = hears(as_it_is, one, other), hears(listener, one, other)
    assert same == pytest.approx(before, rel=0.2)
    assert heard / reference == pytest.approx(percent / 100, rel=0.2, abs=UNHEARD)


def test_volumes_and_blocks_outlive_a_mute_and_a_step_down() -> None:
    hall, (one, other, listener, blocker) = stage()
    hall.does(listener, frames.SetVolume, member=other.id, percent=0)
    hall.does(blocker, frames.Block, person=other.handle)
    hall.tick(5, other)
    hall.does(other, frames.Mute)
    hall.tick(5, one)
    hall.does(other, frames.Unmute)
    hall.tick(5, other)
    hall.does(other, frames.TakeDown)
    hall.does(one, frames.Offer, member=other.id)
    hall.tick(10)  # all that was said ends
    hall.does(other, frames.Accept)
    for guest in hall.guests:
        guest.heard.clear()
    hall.tick(SECOND, other)
    assert listener.heard == blocker.heard == []
    assert len(one.heard) >= SECOND - 3


def test_of_somebody_who_has_left_no_number_is_kept() -> None:
    hall, (one, other, listener, passer_by) = stage()
    hall.does(listener, frames.SetVolume, member=other.id, percent=30)
    hall.does(listener, frames.SetVolume, member=passer_by.id, percent=30)
    hall.tick(5, one, other)
    hall.does(passer_by, frames.Leave)
    hall.does(other, frames.Leave)
    hall.tick(5, one)
    (room,) = hall.node._rooms.values()
    assert room.mix.plan._gains.keys() == {one.id}


# -- what is never mixed ---------------------------------------------------------------------------

Deed = Callable[[Hall, Guest, Guest], None]


def muted(hall: Hall, host: Guest, speaker: Guest) -> None:
    hall.does(host, frames.Mute, member=speaker.id)


def muted_with_all(hall: Hall, host: Guest, _: Guest) -> None:
    hall.does(host, frames.MuteAll)


def self_muted(hall: Hall, _: Guest, speaker: Guest) -> None:
    hall.does(speaker, frames.Mute)


def taken_down(hall: Hall, host: Guest, speaker: Guest) -> None:
    hall.does(host, frames.TakeDown, member=speaker.id)


def held_and_up_again(hall: Hall, host: Guest, speaker: Guest) -> None:
    hall.does(host, frames.Configure, who_speaks=frames.WhoSpeaks.EVERYONE)
    hall.does(host, frames.Mute, member=speaker.id)
    hall.does(speaker, frames.TakeDown)
    hall.does(speaker, frames.StepUp)


def in_the_audience(hall: Hall, host: Guest, speaker: Guest) -> None:
    hall.does(host, frames.TakeDown, member=speaker.id)
    hall.does(speaker, frames.RaiseHand)


def removed(hall: Hall, host: Guest, speaker: Guest) -> None:
    hall.does(host, frames.Remove, member=speaker.id)


def left(hall: Hall, _: Guest, speaker: Guest) -> None:
    hall.does(speaker, frames.Leave)


def blocked_by_the_host(hall: Hall, host: Guest, speaker: Guest) -> None:
    hall.does(host, frames.Block, person=speaker.handle)


@pytest.mark.parametrize(
    ("deed", "out"),
    [
        (muted, False),
        (muted_with_all, False),
        (self_muted, False),
        (taken_down, False),
        (held_and_up_again, False),
        (in_the_audience, False),
        (removed, True),
        (left, True),
        (blocked_by_the_host, True),
    ],
)
def test_after_the_acknowledgement_not_one_packet_is_mixed(deed: Deed, out: bool) -> None:
    hall = Hall()
    host, speaker, _ = hall.space(2, 1)
    hall.tick(10, speaker)
    deed(hall, host, speaker)
    (room,) = hall.node._rooms.values()
    taken = {m: s for m, s in room.mix.sources.items() if not s.stopped}
    assert set(taken) <= {host.id}
    hall.tick(1, speaker)  # what was received before is faded out in it
    why = OUTSIDE if out else "audio of one who may not speak"
    assert hall.node.dropped == {why: 1}
    hall.silent(speaker, why)
    if out:
        speaker.told.clear()
        assert isinstance(hall.ask(host, frames.Chat, text="among us"), frames.Said)
        hall.tick(SECOND, host)
        assert speaker.heard == []
        assert not speaker.batches()
        assert not speaker.was_told("among us")


def test_of_a_banned_person_nothing_is_mixed_and_nothing_goes_to_them() -> None:
    hall = Hall()
    host, speaker, _ = hall.space(2, 1)
    operator = hall.operator()
    hall.tick(10, speaker)
    sealed = speaker.connection  # of the session that will be closed
    hall.does(operator, frames.Ban, person=speaker.handle)
    hall.tick(1)
    for guest in hall.guests:
        guest.heard.clear()
    encodes_before = hall.node.mixer.stats.encodes
    speaker.told.clear()
    for _ in range(10):
        hall.send(speaker, sealed.send_media(Kind.AUDIO, speaker.audio()))
        hall.tick(1)
    assert hall.node.mixer.stats.encodes == encodes_before
    assert isinstance(hall.ask(host, frames.Chat, text="among us"), frames.Said)
    hall.tick(SECOND, host)
    assert speaker.heard == []
    assert speaker.told == []


def test_what_a_listener_or_a_guest_sends_is_not_even_decoded() -> None:
    hall = Hall()
    host, listener = hall.space(1, 1)
    guest, outside = hall.guest(), hall.guest()
    hall.join(guest, host.client.view.id)
    hall.tick(SECOND, listener, guest, outside)
    assert hall.node.mixer.stats.decodes == hall.node.mixer.stats.encodes == 0
    assert hall.node.dropped == {"audio of one who may not speak": 2 * SECOND, OUTSIDE: SECOND}
    assert all(g.heard == [] for g in hall.guests)
