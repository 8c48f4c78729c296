"""The mixing loop: what happens every 20 ms, for all spaces together; in the middle between two of
these ticks, for those of low delay alone, whose frames have 10 ms.

    1. decode   each waiting source fills its row of `planes`, at its level
    2. plan     where the sources that sound, or the members, have changed
    3. mix      gains @ planes, one row a class; limiter
    4. encode   once a class, in parallel over all spaces
    5. put      one job a class, and a turn of a crowd, into the egress, which seals and batches

A space in which nobody sounds is not looked at, once everybody has got what is gathered for them.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from protocol.opus import Encoder
from protocol.packets import Audible, AudioFlag, DownlinkAudio, UplinkAudio
from protocol.profile import VOICE, Profile
from spaces_server.mixer.crowd import FRAME_MS, NO_CROWDS, Crowd
from spaces_server.mixer.egress import Egress
from spaces_server.mixer.loudness import Leveller
from spaces_server.mixer.plan import MixClass, Plan
from spaces_server.mixer.source import COUNTED, FRAME_SAMPLES, Source

A = TypeVar("A")
B = TypeVar("B")
ParallelMap = Callable[[Callable[[A], B], Iterable[A]], Iterable[B]]


# Frames that are concealed by deep PLC in one tick, which takes 0.5 ms each (protocol/opus.py).
# Where the server's own line has an outage, all speakers' frames are missing at once.
MOST_DEEP_PLC = 6


class DeepPlc:
    """What is left of a tick's time for deep PLC; asked before each concealment."""

    def __init__(self) -> None:
        self._left = 0

    def begin(self) -> None:
        """A tick."""
        self._left = MOST_DEEP_PLC

    def __call__(self) -> bool:
        self._left -= 1
        return self._left >= 0


@dataclass(slots=True)
class MixerStats:
    """Counters since the start; `classes` is of the last tick."""

    ticks: int = 0
    busy_ticks: int = 0  # ticks in which something was encoded
    decodes: int = 0
    encodes: int = 0
    classes: int = 0


class SpaceMix:
    """Sources and plan of one space."""

    def __init__(
        self,
        new_encoder: Callable[[], Encoder],
        crowd: Crowd,
        profile: Profile,
        deep_plc: DeepPlc,
    ) -> None:
        self._deep_plc = deep_plc
        self.plan = Plan(new_encoder, crowd, profile.channels)
        self.profile = profile
        self.sources: dict[int, Source] = {}  # member id -> source
        self._levellers: dict[int, Leveller] = {}  # of members who were on stage at least once
        self._counted: Counter[str] = Counter()  # of sources that are gone
        self._active: tuple[int, ...] = ()
        self._shape = profile.shape(profile.frame_samples)
        self._planes = np.zeros((0, *self._shape), np.float32)

    def add_member(self, member: int, row: int, packet_ms: int = FRAME_MS) -> None:
        """packet_ms: the most that they take in one datagram, 20 to 60."""
        self.plan.add_member(member, row, packet_ms)

    def remove_member(self, member: int) -> None:
        """Their source is removed before, and may still be fading out."""
        self.plan.remove_member(member)
        self._levellers.pop(member, None)
        if member not in self.sources:
            self.plan.forget_source(member)

    def add_source(self, member: int, seat: int) -> None:
        source = self.sources.get(member)
        if source is not None:  # muted and unmuted before the fade was over
            source.resume(seat)
            return
        if member not in self._levellers and not self.profile.music:
            self._levellers[member] = Leveller(self.profile.frame_samples)
        self.sources[member] = Source(
            seat, self._levellers.get(member), self.profile, self._deep_plc
        )
        self.plan.set_gain(member, member, 0.0)
        if len(self._planes) < len(self.sources):
            self._planes = np.zeros((len(self.sources) + 3, *self._shape), np.float32)

    def remove_source(self, member: int) -> None:
        """No packet of this source is taken any more; the next tick fades it out."""
        source = self.sources.get(member)
        if source is not None:
            source.stop()
            if not source.waiting():
                self._forget(member)

    def _forget(self, member: int) -> None:
        self.sources.pop(member).count(self._counted)
        self.plan.forget_source(member)

    def receive(self, member: int, audio: UplinkAudio, now_ns: int) -> bool:
        """-> False if this member has no source (is not on stage, or is muted)."""
        source = self.sources.get(member)
        if source is None or source.stopped:
            return False
        source.receive(audio, now_ns)
        return True

    def count(self, into: Counter[str]) -> None:
        """Adds what became of the packets of all who ever spoke here (source.COUNTED)."""
        into.update(self._counted)
        for source in self.sources.values():
            source.count(into)

    @property
    def datagrams_a_tick(self) -> int:
        """How many go out in 20 ms while somebody is heard."""
        return self.plan.datagrams_a_tick * FRAME_SAMPLES // self.profile.frame_samples

    def waiting(self) -> bool:
        return bool(self._active) or any(s.waiting() for s in self.sources.values())

    def mix(self, due_ns: int) -> tuple[int, list[tuple[MixClass, NDArray[np.float32]]]]:
        """Steps 1 to 3.  -> (decodes, the classes that are to be encoded with their samples)."""
        sounding: dict[int, NDArray[np.float32]] = {}
        decodes = 0
        for plane, (member, source) in zip(self._planes, self.sources.items(), strict=False):
            if source.waiting():
                decodes += 1
                source.fill(plane, due_ns)
                if source.sounding:
                    sounding[member] = plane
        for member in [m for m, s in self.sources.items() if s.stopped and not s.sounding]:
            self._forget(member)
        active = tuple(sorted(sounding))
        if active != self._active or self.plan.changed:
            self._active = active
            self.plan.rebuild(active, due_ns)
        classes = self.plan.classes
        if not classes:
            return decodes, []
        gains = np.zeros((len(classes), len(active)), np.float32)
        column = {member: i for i, member in enumerate(active)}
        for row, mix_class in enumerate(classes):
            for member, gain in mix_class.recipe:
                gains[row, column[member]] = gain
        planes = np.stack([sounding[member] for member in active])
        mixes = (gains @ planes.reshape(len(active), -1)).reshape(-1, *self._shape)
        for mix_class, samples in zip(classes, mixes, strict=True):
            if not mix_class.live:
                mix_class.encoder.reset()  # the members reset their decoders at FIRST
                mix_class.limiter.reset()
            mix_class.peak = mix_class.limiter.limit(samples)
        return decodes, list(zip(classes, mixes, strict=True))

    def packet(self, mix_class: MixClass, timestamp: int, opus: bytes) -> DownlinkAudio:
        """What all members of the class get; moves the class's talkspurt on."""
        heard = [self.sources[member] for member, _ in mix_class.recipe]
        flags = 0
        if not mix_class.live:
            flags |= AudioFlag.FIRST
        if all(source.ending for source in heard):
            flags |= AudioFlag.LAST
        mix_class.live = not flags & AudioFlag.LAST
        audible = tuple(Audible(s.seat, s.level, s.capture) for s in heard if not s.ending)
        return DownlinkAudio(timestamp, flags, audible, opus)


class Mixer:
    """All spaces' mixes, and the one parallel encode over them."""

    def __init__(
        self,
        egress: Egress,
        new_encoder: Callable[..., Encoder],
        parallel_map: ParallelMap[Any, Any],
        crowd: Crowd = NO_CROWDS,
    ) -> None:
        self.stats = MixerStats()
        self._egress = egress
        self._new_encoder = new_encoder
        self._parallel_map = parallel_map
        self._crowd = crowd
        self._mixes: dict[SpaceMix, None] = {}  # those that are open
        self._counted: Counter[str] = Counter()  # of those that are closed
        # In order: the same run gives the same batches.
        self._awake: dict[SpaceMix, None] = {}
        self._hurried: dict[SpaceMix, None] = {}  # those with frames of 10 ms
        self._deep_plc = DeepPlc()
        self.complexity: int | None = None  # of all encoders from now on; None: as they were made

    @property
    def awake(self) -> bool:
        """Whether a tick has anything to do."""
        return bool(self._awake or self._hurried)

    @property
    def hurried(self) -> bool:
        """Whether a half tick has anything to do."""
        return bool(self._hurried)

    def open(self, profile: Profile = VOICE) -> SpaceMix:
        """Whoever wants little delay is in no crowd."""
        crowd = self._crowd if profile.frame_samples == FRAME_SAMPLES else NO_CROWDS
        new_encoder = partial(self._new_encoder, **profile.encoding)
        mix = SpaceMix(new_encoder, crowd, profile, self._deep_plc)
        self._mixes[mix] = None
        return mix

    def close(self, mix: SpaceMix) -> None:
        del self._mixes[mix]
        mix.count(self._counted)
        self._awake_like(mix).pop(mix, None)

    def counted(self) -> dict[str, int]:
        """What became of the packets of all speakers since the start (source.COUNTED)."""
        counted = Counter(dict.fromkeys(COUNTED, 0))
        counted.update(self._counted)
        for mix in self._mixes:
            mix.count(counted)
        return dict(counted)

    def _awake_like(self, mix: SpaceMix) -> dict[SpaceMix, None]:
        return self._awake if mix.profile.frame_samples == FRAME_SAMPLES else self._hurried

    def receive(self, mix: SpaceMix, member: int, audio: UplinkAudio, now_ns: int) -> bool:
        """-> whether the audio was taken."""
        taken = mix.receive(member, audio, now_ns)
        if taken:
            self._awake_like(mix)[mix] = None
        return taken

    def _encode(self, job: tuple[SpaceMix, MixClass, NDArray[np.float32]]) -> bytes:
        _, mix_class, samples = job
        if self.complexity is not None:
            mix_class.encoder.complexity = self.complexity  # costs less than to ask which it has
        return mix_class.encoder.encode(samples)

    def tick(self, timestamp: int, due_ns: int, *, half: bool = False) -> None:
        """timestamp: of this tick's first sample, the spaces' clock.  due_ns: its time.  half: it
        is one in the middle between two, for spaces with frames of 10 ms."""
        # Of a space's frames, numbers that follow each other.
        numbered = [(mix, 2 * self.stats.ticks - half) for mix in self._hurried]
        if not half:
            numbered += [(mix, self.stats.ticks) for mix in self._awake]
        jobs: list[tuple[SpaceMix, MixClass, NDArray[np.float32]]] = []
        self._deep_plc.begin()
        for mix, _ in numbered:
            decodes, classes = mix.mix(due_ns)
            self.stats.decodes += decodes
            jobs += [(mix, mix_class, samples) for mix_class, samples in classes]
        packets = self._parallel_map(self._encode, jobs)
        numbers = dict(numbered)
        for (mix, mix_class, _), opus in zip(jobs, packets, strict=True):
            mix_class.give(numbers[mix], mix.packet(mix_class, timestamp, opus))
        for mix, number in numbered:
            for kind, plaintext, rows in mix.plan.give_out(number):
                self._egress.put(kind, plaintext, rows)
            mix.plan.join_held(due_ns)
            if not mix.waiting() and not mix.plan.gathered:
                del self._awake_like(mix)[mix]
        self.stats.ticks += not half
        self.stats.busy_ticks += bool(jobs)
        self.stats.encodes += len(jobs)
        self.stats.classes = len(jobs)
