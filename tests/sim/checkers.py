"""What must hold in every world, whatever happens in it."""

from collections.abc import Iterable

import numpy as np

from protocol.connection import MS
from protocol.packets import HEADER_BYTES, Kind
from spaces_server.mixer.plan import HOLD_NS
from tests.sim.world import BLOCK, SERVER, TONE_LEVEL, Person, World

WINDOW_MS = 500  # two syllables: every window holds the same energy
NOMINAL = TONE_LEVEL * 0.55  # of a tone in the mean over a syllable


def tones_heard(
    person: Person, from_ns: int, to_ns: int, tones: Iterable[float]
) -> dict[float, float]:
    """How loud each tone is in what the person heard then: amplitudes by FFT, 1 = as spoken."""
    first = (from_ns - person.heard_since_ns) // (20 * MS)
    last = (to_ns - person.heard_since_ns) // (20 * MS)
    blocks = person.heard[max(0, first) : last]
    assert blocks, "nothing was recorded then"
    samples = np.concatenate(blocks)
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) * 4 / len(samples)
    resolution_hz = 48_000 / len(samples)
    heard = {}
    for tone in tones:
        middle, width = round(tone / resolution_hz), max(1, round(2 / resolution_hz))
        heard[tone] = float(spectrum[middle - width : middle + width + 1].max()) / NOMINAL
    return heard


def hears_exactly(
    person: Person, talking: Iterable[Person], everyone: Iterable[Person], from_ns: int, to_ns: int
) -> None:
    """The person hears those who talk, and not themselves or anybody else."""
    expected = {p.tone_hz for p in talking if p is not person}
    tones = {p.tone_hz for p in everyone if p.tone_hz}
    for tone, level in tones_heard(person, from_ns, to_ns, tones).items():
        if tone in expected:
            assert 0.4 < level < 1.6, f"{person.name} hears {tone} Hz at {level:.2f}"
        else:
            assert level < 0.05, f"{person.name} hears {tone} Hz at {level:.2f}, and should not"


class NoncesNeverRepeat:
    """No key and nonce twice: a stream's key is known by direction, receiver's index and whether
    it is control or media; the nonce is the header."""

    def __init__(self, world: World) -> None:
        self.seen: set[tuple[bool, bytes]] = set()
        world.on_send.append(self._watch)

    def _watch(self, source: bytes, _destination: bytes, data: bytes) -> None:
        if data[0] < Kind.CONTROL:
            return
        stream = b"control" if data[0] == Kind.CONTROL else b"media"
        used = (source == SERVER, stream + data[1:HEADER_BYTES])
        assert used not in self.seen, f"a nonce was used twice: {used}"
        self.seen.add(used)
        assert len(data) <= 1_200


class EncodesFollowRecipes:
    """Every tick encodes once for each distinct recipe; beyond that only for classes that wait
    to be joined with another, and never longer than HOLD_NS after the last change."""

    def __init__(self, world: World) -> None:
        self.ticks_checked = 0
        self.most = 0
        self._before = 0
        self._recipes: frozenset[tuple[int, ...]] = frozenset()
        self._changed_ns = 0
        world.after_tick.append(self._watch)

    def _watch(self, world: World) -> None:
        encodes = world.node.mixer.stats.encodes - self._before
        self._before += encodes
        recipes: set[tuple[int, ...]] = set()
        slack = 0
        for room in world.node._rooms.values():
            sounding = {m for m, s in room.mix.sources.items() if s.sounding}
            mine = {tuple(sorted(sounding - {member})) for member in room.members}
            recipes |= {(id(room), *recipe) for recipe in mine if recipe}
            slack += len(room.mix.sources)
        if frozenset(recipes) != self._recipes:
            self._recipes = frozenset(recipes)
            self._changed_ns = world.now_ns
        held = world.now_ns - self._changed_ns <= HOLD_NS + 20 * MS
        most = len(recipes) + (slack if held else 0)
        assert len(recipes) <= encodes <= most, (
            f"{encodes} encodes for {len(recipes)} recipes at {world.now_ns / MS:.0f} ms"
        )
        self.ticks_checked += 1
        self.most = max(self.most, encodes)


def every_request_has_one_answer(world: World) -> None:
    for person in world.people:
        for request_id in person.asked:
            count = person.replies[request_id]
            assert count == 1, f"{person.name}'s request {request_id} had {count} replies"


def views_agree(world: World) -> None:
    """Everyone in a space knows what the server knows."""
    for person in world.people:
        view = person.client.view
        if view.me is None:
            continue
        space = world.node.spaces[view.id]
        snapshot = space.snapshot()
        assert view.number == snapshot.number, f"{person.name} is behind"
        assert view.members == {m.id: m for m in snapshot.members}, f"{person.name}'s stage"
        assert view.listeners == snapshot.listeners, f"{person.name}'s count of listeners"
        assert view.me == space.view(view.me.id)


__all__ = [
    "BLOCK",
    "EncodesFollowRecipes",
    "NoncesNeverRepeat",
    "every_request_has_one_answer",
    "hears_exactly",
    "tones_heard",
    "views_agree",
]
