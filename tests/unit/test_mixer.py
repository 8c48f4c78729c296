"""The mixing loop with real codecs and real sessions: what comes out is what should be heard."""

import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from protocol import playout
from protocol.connection import MS
from protocol.jitter import JitterStats
from protocol.opus import DEEP_PLC_COMPLEXITY, Decoder, Encoder
from protocol.packets import AudioFlag, DownlinkAudio, Kind, UplinkAudio
from protocol.playout import Playout
from spaces_server.mixer.egress import Egress
from spaces_server.mixer.limiter import LIMIT, LOOK_AHEAD_SAMPLES
from spaces_server.mixer.loudness import Leveller
from spaces_server.mixer.mixer import MOST_DEEP_PLC, Mixer, SpaceMix
from spaces_server.mixer.source import COUNTED, FRAME_SAMPLES, SILENT_LEVEL, Source, level_dbov
from tests.unit.test_egress import Pair, deliver, pair

Samples = NDArray[np.float32]
TICK_NS = 20 * MS
TONES_HZ = [300, 500, 700, 900, 1_100]


def tone(hz: float, frame: int, level: float = 0.1) -> Samples:
    at = np.arange(frame * FRAME_SAMPLES, (frame + 1) * FRAME_SAMPLES) / 48_000
    return (level * np.sin(2 * np.pi * hz * at)).astype(np.float32)


@dataclass
class Voice:
    """One who speaks: packets of a tone of their own, 20 ms each."""

    member: int
    hz: float
    level: float = 0.1
    start: int = 0  # timestamp of the first sample
    frames: int = 0
    talking: bool = False
    encoder: Encoder = field(default_factory=lambda: Encoder(complexity=0))

    def packet(self, *, last: bool = False) -> UplinkAudio:
        flags = 0 if self.talking else AudioFlag.FIRST
        if not self.talking:
            self.encoder.reset()
        if last:
            flags |= AudioFlag.LAST
        self.talking = not last
        opus = self.encoder.encode(tone(self.hz, self.frames, self.level))
        self.frames += 1
        return UplinkAudio((self.start + (self.frames - 1) * FRAME_SAMPLES) % 2**32, flags, opus)


@dataclass
class Rig:
    """A space: the first members are on stage (member i at seat i), the others listen."""

    stage: int
    listeners: int
    level: float = 0.1

    def __post_init__(self) -> None:
        self.egress = Egress()
        self.mixer = Mixer(self.egress, partial(Encoder, complexity=0), map)
        self.mix = self.mixer.open()
        self.pairs: dict[int, Pair] = {}
        self.now_ns = 1_000 * MS
        self.timestamp = 2**32 - 3 * FRAME_SAMPLES
        for member in range(self.stage + self.listeners):
            self.join(member)
        self.voices = [Voice(m, TONES_HZ[m % 5], self.level) for m in range(self.stage)]
        for member in range(self.stage):
            self.mix.add_source(member, member)

    def join(self, member: int) -> None:
        self.pairs[member] = pair(member)
        self.mix.plan.add_member(member, self.egress.add(self.pairs[member].server))

    def say(self, *members: int, last: bool = False) -> None:
        for member in members:
            packet = self.voices[member].packet(last=last)
            self.mixer.receive(self.mix, member, packet, self.now_ns)

    def tick(self) -> dict[int, DownlinkAudio]:
        """-> what each member received, at most one packet."""
        self.now_ns += TICK_NS
        self.timestamp = (self.timestamp + FRAME_SAMPLES) % 2**32
        self.mixer.tick(self.timestamp, self.now_ns)
        got = deliver(self.egress.seal(), list(self.pairs.values()))
        heard = {}
        for member, person in self.pairs.items():
            if person.address in got:
                ((kind, plaintext),) = got[person.address]
                assert kind == Kind.AUDIO
                heard[member] = DownlinkAudio.unpack(plaintext)
                assert heard[member].timestamp == self.timestamp
        return heard

    def ticks(self, count: int, *members: int) -> list[dict[int, DownlinkAudio]]:
        """That many ticks while these talk."""
        heard = []
        for _ in range(count):
            self.say(*members)
            heard.append(self.tick())
        return heard

    def finish(self) -> list[dict[int, DownlinkAudio]]:
        """Ticks until nothing more comes (all have said their last)."""
        heard = []
        while packets := self.tick():
            heard.append(packets)
            assert len(heard) < 20
        return heard


def seats(audio: DownlinkAudio) -> list[int]:
    return [a.seat for a in audio.audible]


def flags(heard: list[dict[int, DownlinkAudio]], member: int) -> str:
    """F, L, X (both) or - for each packet to the member, . where there is none."""
    return "".join("-FLX"[packets[member].flags] if member in packets else "." for packets in heard)


# -- samples --------------------------------------------------------------------------------------


def test_a_mix_is_the_sum_of_its_sources_with_their_gains() -> None:
    """Against sources of our own: the same packets through the same playout and leveller."""
    rig = Rig(3, 3)
    rig.mix.plan.set_gain(4, 1, 0.25)
    rig.mix.plan.set_gain(5, 2, 0.0)
    references = [Playout() for _ in range(3)]
    levellers = [Leveller() for _ in range(3)]
    planes = np.zeros((3, FRAME_SAMPLES), np.float32)
    compared = 0
    for _ in range(30):
        rig.now_ns += TICK_NS
        for member, reference in enumerate(references):
            packet = rig.voices[member].packet()
            rig.mix.receive(member, packet, rig.now_ns)
            first = bool(packet.flags & AudioFlag.FIRST)
            reference.insert(packet.timestamp, packet.opus, rig.now_ns, first=first)
        _, classes = rig.mix.mix(rig.now_ns)
        before = planes.copy()
        for plane, reference, leveller in zip(planes, references, levellers, strict=True):
            if reference.pull(plane, rig.now_ns):
                leveller.level(plane)
        line = np.concatenate((before, planes), axis=1)
        held_back = line[:, FRAME_SAMPLES - LOOK_AHEAD_SAMPLES : -LOOK_AHEAD_SAMPLES]
        for mix_class, samples in classes:
            expected = sum(
                (np.float32(gain) * held_back[source] for source, gain in mix_class.recipe),
                np.zeros(FRAME_SAMPLES, np.float32),
            )
            np.testing.assert_allclose(samples, expected, atol=1e-6)
            mix_class.live = True
            compared += 1
    assert compared == 29 * 5  # members 2 and 5 hear the same; the first tick waits
    recipes = {c.recipe for c in rig.mix.plan.classes}
    assert {((0, 1.0), (1, 0.25), (2, 1.0)), ((0, 1.0), (1, 1.0))} <= recipes


def test_nobody_hears_themselves_and_all_hear_the_others() -> None:
    rig = Rig(3, 2)
    decoders = {member: Decoder() for member in rig.pairs}
    heard: dict[int, list[Samples]] = {member: [] for member in rig.pairs}
    for packets in rig.ticks(75, 0, 1, 2):
        for member, audio in packets.items():
            out = np.zeros(FRAME_SAMPLES, np.float32)
            decoders[member].decode(audio.opus, out)
            heard[member].append(out)
    for member, blocks in heard.items():
        samples = np.concatenate(blocks)[-48_000:]
        spectrum = np.abs(np.fft.rfft(samples * np.hanning(48_000))) * 4 / 48_000
        for source in range(3):
            level = spectrum[TONES_HZ[source] - 2 : TONES_HZ[source] + 3].max()
            if source == member:
                assert level < 0.01
            else:
                assert 0.05 < level < 0.15


def test_a_member_who_comes_late_hears_the_rest() -> None:
    rig = Rig(1, 1)
    rig.ticks(5, 0)
    rig.join(9)
    (packets,) = rig.ticks(1, 0)
    assert set(packets) == {1, 9}
    assert packets[9] == packets[1]


# -- levels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("hz", [300, 8_000])
def test_thirteen_at_full_scale(hz: float) -> None:
    """All in step: the worst there is.  Nothing clips, nor does it where it is decoded."""
    rig = Rig(13, 1, level=1.0)
    for voice in rig.voices:
        voice.hz = hz
    encoder, decoder = Encoder(complexity=0), Decoder()
    decoded = np.zeros(FRAME_SAMPLES, np.float32)
    mixed_peak = decoded_peak = 0.0
    for _ in range(50):
        rig.now_ns += TICK_NS
        for member, voice in enumerate(rig.voices):
            rig.mix.receive(member, voice.packet(), rig.now_ns)
        _, classes = rig.mix.mix(rig.now_ns)
        for mix_class, samples in classes:
            mix_class.live = True
            mixed_peak = max(mixed_peak, float(np.abs(samples).max()))
        if classes:
            decoder.decode(encoder.encode(classes[0][1]), decoded)
            decoded_peak = max(decoded_peak, float(np.abs(decoded).max()))
    assert len(classes) == 14
    assert 0.25 < mixed_peak <= LIMIT
    assert 0.25 < decoded_peak < 1.0


def test_nothing_but_a_slow_gain_is_done_to_one_speaker() -> None:
    """At -20 dBFS, the limiter leaves them alone: what comes out is what the leveller gives."""
    rig = Rig(1, 1, level=0.1 * 2**0.5)
    reference, leveller = Playout(), Leveller()
    given, expected = [], []
    for _ in range(300):
        rig.now_ns += TICK_NS
        packet = rig.voices[0].packet()
        rig.mix.receive(0, packet, rig.now_ns)
        reference.take(packet, rig.now_ns)
        for mix_class, samples in rig.mix.mix(rig.now_ns)[1]:
            mix_class.live = True
            given.append(samples)
        plane = np.zeros(FRAME_SAMPLES, np.float32)
        if reference.pull(plane, rig.now_ns):
            leveller.level(plane)
            expected.append(plane)
    assert leveller.gain_db < -1
    out, wanted = np.concatenate(given), np.concatenate(expected)
    np.testing.assert_array_equal(out[LOOK_AHEAD_SAMPLES:], wanted[:-LOOK_AHEAD_SAMPLES])


def test_a_mute_does_not_lose_the_gain_but_leaving_does() -> None:
    rig = Rig(2, 1, level=0.5)
    rig.ticks(200, 0)
    rig.mix.remove_source(0)
    rig.finish()
    rig.mix.add_source(0, 0)
    rig.voices[0].talking = False
    level = rig.ticks(5, 0)[-1][2].audible[0].level
    assert abs(level - 25) <= 2
    rig.mix.remove_source(0)
    rig.mix.remove_member(0)
    rig.finish()
    rig.mix.add_member(0, 0)
    rig.mix.add_source(0, 0)
    rig.voices[0].talking = False
    rig.ticks(3, 0)
    assert abs(rig.mix.sources[0].level - level_dbov(tone(300, 0, 0.5))) <= 1


def test_the_level_that_is_told_is_after_the_gain() -> None:
    rig = Rig(1, 1, level=0.5)
    heard = rig.ticks(250, 0)
    assert abs(heard[3][1].audible[0].level - 9) <= 1
    assert abs(heard[-1][1].audible[0].level - 23) <= 2  # a tone of 300 Hz at -26 LUFS


def test_the_end_of_a_talkspurt_holds_what_the_limiter_held_back() -> None:
    rig = Rig(1, 1)
    taken = []
    rig.ticks(5, 0)
    rig.say(0, last=True)
    for _ in range(6):
        rig.now_ns += TICK_NS
        for mix_class, samples in rig.mix.mix(rig.now_ns)[1]:
            ending = rig.mix.sources[0].ending
            mix_class.live = not ending
            taken.append((ending, samples))
    (final,) = [samples for ending, samples in taken if ending]
    assert final[:LOOK_AHEAD_SAMPLES].any()
    assert np.abs(final[LOOK_AHEAD_SAMPLES:]).max() < 1e-3  # of the high-pass
    rig.voices[0].talking = False
    for _ in range(4):
        rig.now_ns += TICK_NS
        rig.mix.receive(0, rig.voices[0].packet(), rig.now_ns)
        if classes := rig.mix.mix(rig.now_ns)[1]:
            break
    assert not classes[0][1][:LOOK_AHEAD_SAMPLES].any()  # nothing from before the silence


# -- what is told beside the sound ----------------------------------------------------------------


def test_talkspurts_have_a_first_and_a_last_packet() -> None:
    rig = Rig(1, 1)
    heard = []
    for _ in range(3):
        heard += rig.ticks(5, 0)
        rig.say(0, last=True)
        heard += rig.finish()
        heard += rig.ticks(4)
    told = flags(heard, 1)
    assert told.strip(".").count("F") == told.count("L") == 3
    assert "X" not in told
    for spurt in filter(None, told.split(".")):
        assert (spurt[0], spurt[-1]) == ("F", "L")
        assert 6 < len(spurt) <= 8  # what was said; a slope down from it; what the encoder holds
    assert all(0 not in packets for packets in heard)


def test_talkspurts_of_a_class_span_those_of_its_sources() -> None:
    rig = Rig(2, 1)
    heard = rig.ticks(5, 0) + rig.ticks(5, 0, 1)
    rig.say(0, last=True)
    heard += rig.ticks(8, 1)
    rig.say(1, last=True)
    heard += rig.finish()
    assert re.fullmatch("F-{18,19}L", flags(heard, 2).strip("."))  # the listener: all of it
    for speaker in (0, 1):  # the speakers: the other's part
        told = flags(heard, speaker).strip(".")
        assert (told[0], told[-1]) == ("F", "L")
        assert set(told[1:-1]) == {"-"}
    assert len(flags(heard, 0).strip(".")) < len(flags(heard, 2).strip("."))


def test_the_audible_are_listed_with_seat_level_and_capture() -> None:
    rig = Rig(3, 1)
    rig.voices[1].level = 0.01
    rig.voices[1].start = 2**32 - 2 * FRAME_SAMPLES  # wraps
    rig.voices[0].start = 48_000
    for number, packets in enumerate(rig.ticks(20, 0, 1)):
        if not packets:
            continue
        assert seats(packets[3]) == seats(packets[2]) == [0, 1]
        assert seats(packets[0]) == [1]
        assert seats(packets[1]) == [0]
        for audible in packets[3].audible:
            voice = rig.voices[audible.seat]
            captured = voice.start + number * FRAME_SAMPLES
            assert audible.capture == (captured % 2**32) // 120 % 2**16
            if number > 5:
                expected = level_dbov(tone(voice.hz, 0, voice.level))
                assert abs(audible.level - expected) <= 2
    rig.say(0, 1, last=True)
    *_, final = rig.finish()
    assert final[3].audible == ()  # the last packet holds what the encoder still had


def test_levels() -> None:
    assert level_dbov(np.zeros(FRAME_SAMPLES, np.float32)) == SILENT_LEVEL
    assert level_dbov(np.ones(FRAME_SAMPLES, np.float32)) == 0
    assert level_dbov(np.full(FRAME_SAMPLES, 10, np.float32)) == 0
    assert level_dbov(np.full(FRAME_SAMPLES, 0.1, np.float32)) == 20


# -- costs ----------------------------------------------------------------------------------------


def test_one_encode_a_class_however_many_listen() -> None:
    rig = Rig(10, 200)
    rig.ticks(10, 2, 5, 8)
    for _ in range(10):
        before = rig.mixer.stats.encodes
        (packets,) = rig.ticks(1, 2, 5, 8)
        assert rig.mixer.stats.encodes - before == rig.mixer.stats.classes == 4
        assert len(packets) == 210
        assert len({audio.opus for audio in packets.values()}) == 4


def test_a_silent_space_costs_nothing() -> None:
    rig = Rig(3, 5)
    rig.ticks(3)
    rig.ticks(5, 0, 1)
    rig.say(0, 1, last=True)
    rig.finish()
    stats = rig.mixer.stats
    before = (stats.decodes, stats.encodes, stats.busy_ticks, rig.egress.sealed)
    assert before[0] > 0
    assert before[1] > 0
    assert not any(rig.ticks(50))
    assert (stats.decodes, stats.encodes, stats.busy_ticks, rig.egress.sealed) == before
    assert stats.classes == 0


def test_one_who_talks_to_nobody_is_not_encoded() -> None:
    rig = Rig(1, 0)
    assert not any(rig.ticks(10, 0))
    assert rig.mixer.stats.encodes == 0


def test_spaces_are_apart() -> None:
    rig, other = Rig(1, 1), Rig(1, 1)
    second = rig.mixer.open()
    for member, person in other.pairs.items():
        person.address = (b"other %d" % member).ljust(28, b"!")
        person.server.address = person.address
        second.plan.add_member(member, rig.egress.add(person.server))
    second.add_source(0, 0)
    everybody = [*rig.pairs.values(), *other.pairs.values()]
    for _ in range(5):
        rig.now_ns += TICK_NS
        rig.say(0)
        rig.mixer.receive(second, 0, other.voices[0].packet(), rig.now_ns)
        rig.mixer.tick(rig.timestamp, rig.now_ns)
        got = deliver(rig.egress.seal(), everybody)
    assert set(got) == {rig.pairs[1].address, other.pairs[1].address}
    rig.mixer.close(second)
    rig.now_ns += TICK_NS
    rig.say(0)
    rig.mixer.tick(rig.timestamp, rig.now_ns)
    assert set(deliver(rig.egress.seal(), everybody)) == {rig.pairs[1].address}


def test_sources_conceal_as_well_as_the_library_can(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def note(channels: int, *, complexity: int) -> Decoder:
        made.append(complexity)
        return Decoder(channels, complexity=complexity)

    monkeypatch.setattr(playout, "Decoder", note)
    Source(0)
    assert made == [DEEP_PLC_COMPLEXITY]


def test_an_outage_of_all_speakers_at_once_leaves_a_tick_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noted: list[bool] = []
    conceal = Decoder.conceal

    def note(decoder: Decoder, out: Samples, *, plainly: bool = False) -> int:
        noted.append(plainly)
        return conceal(decoder, out, plainly=plainly)

    monkeypatch.setattr(Decoder, "conceal", note)
    stage = MOST_DEEP_PLC + 3
    rig = Rig(stage, 1)
    rig.ticks(10, *range(stage))
    noted.clear()
    rig.tick()
    assert noted == [False] * MOST_DEEP_PLC + [True] * 3
    noted.clear()
    rig.ticks(5, *range(stage))
    noted.clear()
    rig.ticks(2, *range(1, stage))  # one alone loses something
    assert noted
    assert not any(noted)


# -- what became of their packets -----------------------------------------------------------------


def test_what_became_of_all_packets_is_counted_for_good() -> None:
    rig = Rig(2, 1)
    other = rig.mixer.open()
    other.add_source(0, 0)
    rig.ticks(10, 0, 1)
    rig.mixer.receive(other, 0, UplinkAudio(0, 0, bytes((3,))), rig.now_ns)  # no count of frames
    rig.mixer.receive(rig.mix, 1, rig.voices[1].packet(), rig.now_ns)
    stale = UplinkAudio(0, 0, rig.voices[0].encoder.encode(tone(300, 0)))
    rig.mixer.receive(rig.mix, 0, stale, rig.now_ns)
    there = rig.mixer.counted()
    assert set(there) == set(COUNTED)
    assert (there["accepted"], there["malformed"]) == (21, 1)
    assert there["late"] + there["duplicate"] == 1
    rig.mix.remove_source(0)  # one leaves the stage, one the space, and the other space ends
    rig.mix.remove_source(1)
    rig.mix.remove_member(1)
    rig.mixer.close(other)
    rig.finish()
    assert not rig.mix.sources
    gone = rig.mixer.counted()
    assert all(gone[name] >= there[name] for name in COUNTED)
    assert (gone["accepted"], gone["malformed"]) == (21, 1)
    rig.mixer.close(rig.mix)
    assert rig.mixer.counted() == gone


@pytest.mark.parametrize("stall", [2, 5, 9])
def test_a_stall_of_the_server_changes_nothing_of_what_a_source_says(stall: int) -> None:
    """Packets wait in the socket meanwhile; when they came is known, and so is what tick it is."""
    transits_ns = np.random.default_rng(1).integers(5 * MS, 15 * MS, 200).tolist()
    stalls = range(100, 100 + stall)  # ticks that run when the one after them does

    def heard(hung: range) -> tuple[list[Samples], Source]:
        voice, source = Voice(0, 300), Source(0)
        packets = [(n * TICK_NS + ns, voice.packet()) for n, ns in enumerate(transits_ns)]
        planes = [np.zeros(FRAME_SAMPLES, np.float32) for _ in packets]
        for number, plane in enumerate(planes):
            runs_ns = TICK_NS * (hung.stop if number in hung else number)
            while packets and packets[0][0] <= runs_ns:
                came_ns, packet = packets.pop(0)
                source.receive(packet, came_ns)
            source.fill(plane, number * TICK_NS)
        return planes, source

    (in_time, _), (late, source) = heard(range(0)), heard(stalls)
    assert np.abs(in_time[-1]).max() > 0.01
    assert all(np.array_equal(*frames) for frames in zip(in_time, late, strict=True))
    stats = source.stats
    assert stats.concealed_samples == stats.shortened_samples == stats.lengthened_samples == 0


def test_what_is_counted_are_counters_of_the_jitter_buffer_and_in_the_readme() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (paragraph,) = re.findall(r"^`uplink` in `--stats` .*?\n\n", readme, re.M | re.S)
    for name in COUNTED:
        assert getattr(JitterStats(), name) == 0
        assert f"`{name}`" in paragraph


# -- being muted, taken down or gone --------------------------------------------------------------


def mixed(mix: SpaceMix, now_ns: int) -> dict[tuple[int, ...], Samples]:
    _, classes = mix.mix(now_ns)
    for mix_class, _ in classes:
        mix_class.live = True
    return {tuple(s for s, _ in c.recipe): samples for c, samples in classes}


def test_a_removed_source_fades_within_a_tick() -> None:
    rig = Rig(1, 1)
    for _ in range(10):
        rig.now_ns += TICK_NS
        rig.mix.receive(0, rig.voices[0].packet(), rig.now_ns)
        mixed(rig.mix, rig.now_ns)
    rig.mix.receive(0, rig.voices[0].packet(), rig.now_ns)
    rig.mix.remove_source(0)
    samples = mixed(rig.mix, rig.now_ns + TICK_NS)[0,]
    assert np.abs(samples[:240]).max() > 0.01
    assert not samples[240 + LOOK_AHEAD_SAMPLES :].any()
    assert mixed(rig.mix, rig.now_ns + 2 * TICK_NS) == {}
    assert rig.mix.sources == {}
    assert not rig.mix.waiting()


def test_a_removed_source_is_heard_no_more() -> None:
    rig = Rig(2, 1)
    rig.ticks(10, 0, 1)
    rig.say(0, 1)
    rig.mix.remove_source(0)
    assert not rig.mixer.receive(rig.mix, 0, rig.voices[0].packet(), rig.now_ns)
    assert seats(rig.tick()[2]) == [1]
    for packets in rig.ticks(10, 1):
        assert not rig.mixer.receive(rig.mix, 0, rig.voices[0].packet(), rig.now_ns)
        assert seats(packets[2]) == seats(packets[0]) == [1]
        assert 1 not in packets


def test_the_only_source_removed_ends_the_talkspurt() -> None:
    rig = Rig(1, 1)
    heard = rig.ticks(10, 0)
    rig.mix.remove_source(0)
    heard += rig.finish()
    assert flags(heard, 1).strip(".")[-3:] == "--L"
    assert not any(rig.ticks(10, 0))


def test_what_is_held_at_the_removal_is_never_played() -> None:
    rig = Rig(1, 1)
    rig.say(0)  # still in the jitter buffer
    rig.mix.remove_source(0)
    assert not any(rig.ticks(5))
    assert rig.mix.sources == {}


def test_back_on_stage() -> None:
    rig = Rig(1, 1)
    rig.ticks(5, 0)
    rig.mix.remove_source(0)
    rig.finish()
    rig.voices[0].talking = False
    rig.mix.add_source(0, 9)
    heard = rig.ticks(5, 0)
    assert flags(heard, 1).strip(".").startswith("F-")
    assert seats(heard[-1][1]) == [9]
    assert 0 not in heard[-1]


@pytest.mark.parametrize("pause_ticks", [0, 1, 2])
def test_muted_and_unmuted_at_once(pause_ticks: int) -> None:
    rig = Rig(1, 1)
    rig.ticks(5, 0)
    rig.mix.remove_source(0)
    rig.ticks(pause_ticks)
    rig.mix.add_source(0, 1)
    rig.voices[0].talking = False
    heard = rig.ticks(10, 0)
    rig.say(0, last=True)
    heard += rig.finish()
    assert flags(heard, 1)[-1] == "L"
    assert all(0 not in packets for packets in heard)


def test_muted_and_unmuted_between_two_ticks_is_one_talkspurt() -> None:
    rig = Rig(1, 1)
    heard = rig.ticks(5, 0)
    rig.mix.remove_source(0)
    rig.mix.add_source(0, 7)
    heard += rig.ticks(5, 0)
    assert flags(heard, 1).strip(".") == "F" + "-" * (len(flags(heard, 1).strip(".")) - 1)
    assert seats(heard[-1][1]) == [7]
    assert list(rig.mix.sources) == [0]


def test_a_speaker_who_leaves_while_talking() -> None:
    rig = Rig(2, 1)
    rig.ticks(5, 0, 1)
    rig.mix.remove_source(0)
    rig.mix.plan.remove_member(0)
    heard = rig.ticks(5, 1)
    assert all(0 not in packets for packets in heard)
    assert seats(heard[-1][2]) == [1]
    assert set(rig.mix.sources) == {1}
