"""Playout: packets become exactly the samples asked for, in order, and without a click."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.jitter import Verdict
from protocol.opus import Decoder, Encoder, Samples, packet_has_fec
from protocol.path_delay import MS
from protocol.playout import FADE_SAMPLES, Playout
from tests.unit.voiced import voiced_packets

FRAME = 960
TICK_NS = 20 * MS


def tone(samples: int, hz: float = 250.0, level: float = 0.3) -> Samples:
    return (level * np.sin(2 * np.pi * hz * np.arange(samples) / 48_000)).astype(np.float32)


def packets_of(pcm: Samples, size: int = FRAME) -> list[bytes]:
    channels = 1 if pcm.ndim == 1 else 2
    encoder = Encoder(channels=channels, bitrate=64_000 * channels)
    return [encoder.encode(pcm[i : i + size]) for i in range(0, len(pcm) - size + 1, size)]


def decoded(packets: list[bytes], channels: int = 1) -> Samples:
    out: Samples = np.zeros((5_760,) if channels == 1 else (5_760, 2), np.float32)
    decoder = Decoder(channels)
    return np.concatenate([out[: decoder.decode(packet, out)].copy() for packet in packets])


def play(
    playout: Playout,
    packets: Sequence[bytes | None],
    ticks: int,
    *,
    size: int = FRAME,
    start: int = 0,
) -> Samples:
    """Packets in at their time, 20 ms out a tick, 10 ms behind. None is lost, the last marked."""
    out: Samples = np.zeros(FRAME, np.float32)
    heard = []
    sent = 0
    for tick in range(start, start + ticks):
        while sent < len(packets) and sent * size <= (tick - start) * FRAME:
            packet = packets[sent]
            if packet is not None:
                timestamp = (start * FRAME + sent * size) % 2**32
                arrival_ns = start * TICK_NS + sent * size * 62_500 // 3
                playout.insert(
                    timestamp,
                    packet,
                    arrival_ns,
                    first=sent == 0,
                    last=sent == len(packets) - 1,
                )
            sent += 1
        sounding = playout.pull(out, tick * TICK_NS + 10 * MS)
        assert sounding or not out.any()
        heard.append(out.copy())
    return np.concatenate(heard)


def largest_step(pcm: Samples) -> float:
    return float(np.abs(np.diff(pcm)).max())


# -- exactness


@pytest.fixture
def unstretched(monkeypatch: pytest.MonkeyPatch) -> None:
    """No sound can be stretched unheard, so every sample can be told."""
    monkeypatch.setattr("protocol.playout.shorten", lambda pcm, most_samples: len(pcm))
    monkeypatch.setattr("protocol.playout.lengthen", lambda pcm, size: size)


@pytest.mark.usefixtures("unstretched")
@pytest.mark.parametrize("size", [120, 240, 480, 960, 1_920, 2_880])
def test_what_comes_out_is_what_the_decoder_makes(size: int) -> None:
    packets = packets_of(tone(48_000 - 48_000 % size), size)
    expected = decoded(packets)
    heard = play(Playout(), packets, 60, size=size)
    onset = int(np.flatnonzero(heard)[0]) - int(np.flatnonzero(expected)[0])
    assert 0 <= onset <= 2 * FRAME
    np.testing.assert_array_equal(heard[onset : onset + len(expected)], expected)


@pytest.mark.usefixtures("unstretched")
@pytest.mark.parametrize("pull", [1, 128, 441, 480, 960, 1_024, 4_800])
def test_pulls_of_any_length_join_seamlessly(pull: int) -> None:
    packets = packets_of(tone(19_200))
    expected = decoded(packets)
    playout = Playout()
    parts = []
    sent = 0
    for pulled in range(0, 19_200 + 3 * max(pull, FRAME), pull):
        now_ns = pulled * 62_500 // 3
        while sent < len(packets) and sent * TICK_NS <= now_ns:
            playout.insert(sent * FRAME, packets[sent], sent * TICK_NS, last=sent == 19)
            sent += 1
        out = np.full(pull, 9.0, np.float32)
        assert playout.pull(out, now_ns) or not out.any()
        parts.append(out)
    heard = np.concatenate(parts)
    onset = int(np.flatnonzero(heard)[0]) - int(np.flatnonzero(expected)[0])
    np.testing.assert_array_equal(heard[onset : onset + 19_200], expected)
    assert playout.stats.concealed_samples == playout.stats.dropped == 0


def test_stereo() -> None:
    pcm = np.stack([tone(19_200), tone(19_200, 400, 0.1)], axis=1)
    packets = packets_of(pcm)
    playout = Playout(channels=2)
    out: Samples = np.zeros((FRAME, 2), np.float32)
    heard = []
    for index, packet in enumerate(packets):
        playout.insert(index * FRAME, packet, index * TICK_NS)
        assert playout.pull(out, index * TICK_NS + 10 * MS)
        heard.append(out.copy())
    np.testing.assert_array_equal(np.concatenate(heard), decoded(packets, channels=2))
    for index in range(20, 40):  # the end is lost: conceal, fade, be silent
        playout.pull(out, index * TICK_NS + 10 * MS)
    assert not out.any()


def test_silence_is_zeros_whatever_was_in_the_buffer() -> None:
    out = np.full(FRAME, 5.0, np.float32)
    playout = Playout()
    assert not playout.pull(out, 0)
    assert not out.any()
    assert not playout.sounding


def test_the_timestamp_is_of_the_first_sample_pulled() -> None:
    start = 2**32 - 5 * FRAME
    packets = packets_of(tone(19_200))
    playout = Playout()
    out: Samples = np.zeros(480, np.float32)
    stamps = []
    for index, packet in enumerate(packets):
        playout.insert((start + index * FRAME) % 2**32, packet, index * TICK_NS)
        for half in (0, 1):
            assert playout.pull(out, index * TICK_NS + 10 * MS * (1 + half))
            stamps.append(playout.timestamp)
    assert stamps == [(start + i * 480) % 2**32 for i in range(40)]


def test_sounding_follows_the_talkspurt() -> None:
    playout = Playout()
    packets = packets_of(tone(4_800))
    out: Samples = np.zeros(480, np.float32)
    playout.insert(0, packets[0], 0, first=True)
    assert not playout.sounding  # it is held
    assert playout.pull(out, 10 * MS)
    playout.insert(FRAME, packets[1], 20 * MS, last=True)
    assert playout.pull(out, 20 * MS)
    assert playout.sounding
    assert playout.pull(out, 30 * MS)
    assert playout.sounding  # the second half of the last packet is still to come
    assert playout.pull(out, 40 * MS)
    playout.pull(out, 50 * MS)  # at most a fade
    assert not playout.sounding
    assert not playout.pull(out, 60 * MS)


# -- what goes wrong


def test_a_corrupt_packet_is_concealed_and_counted() -> None:
    packets: list[bytes | None] = list(packets_of(tone(48_000)))
    clean = play(Playout(), packets, 60)
    # Two frames of equal length cannot share an odd number of bytes: a head that looks right.
    packets[25] = bytes([30 << 3 | 1, 1, 2, 3, 4, 5])
    playout = Playout()
    heard = play(playout, packets, 60)
    assert playout.stats.corrupt == 1
    assert playout.stats.malformed == 0
    np.testing.assert_array_equal(heard[: 25 * FRAME], clean[: 25 * FRAME])
    hole = heard[25 * FRAME : 26 * FRAME]
    assert np.std(hole) > 0.3 * np.std(clean[25 * FRAME : 26 * FRAME])
    assert largest_step(heard) < 1.5 * largest_step(clean)


def test_a_lost_packet_is_bridged_without_a_click() -> None:
    packets: list[bytes | None] = list(packets_of(tone(48_000)))
    clean = play(Playout(), packets, 60)
    packets[25] = None
    playout = Playout()
    heard = play(playout, packets, 60)
    assert playout.stats.concealed_samples == FRAME
    assert np.std(heard[25 * FRAME : 26 * FRAME]) > 0.3 * np.std(clean[25 * FRAME : 26 * FRAME])
    assert largest_step(heard) < 1.5 * largest_step(clean)
    np.testing.assert_allclose(
        heard[32 * FRAME : 48 * FRAME], clean[32 * FRAME : 48 * FRAME], atol=0.02
    )


def by_halves(
    packets: list[bytes],
    lost: int | None = None,
    late: int | None = None,
    jitter_ms: int = 0,
) -> tuple[Samples, Playout]:
    """-> what is heard of a stream that is pulled each 10 ms, first 15 ms after the first packet;
    one packet is lost, or 20 ms late."""
    # Of low delay: for one late frame it does not wait longer.
    playout = Playout(low_delay=late is not None)
    out: Samples = np.zeros(FRAME // 2, np.float32)
    parts = []

    def insert(index: int, late_ms: int) -> None:
        when_ns = index * TICK_NS + late_ms * MS
        playout.insert(index * FRAME, packets[index], when_ns, first=index == 0)

    for index in range(len(packets)):
        if late is not None and index == late + 1:
            insert(late, 20)
        if index not in (lost, late):
            insert(index, index * 7 % (jitter_ms + 1))
        for ms in (5, 15):
            playout.pull(out, index * TICK_NS + ms * MS)
            parts.append(out.copy())
    return np.concatenate(parts), playout


def test_half_a_frame_from_fec_joins_the_half_that_was_concealed() -> None:
    packets = voiced_packets(50)
    lost_one = next(i for i in range(20, 40) if packet_has_fec(packets[i + 1]))
    clean, _ = by_halves(packets)
    bridged, playout = by_halves(packets, lost=lost_one)
    assert playout.stats.concealed_samples == FRAME // 2
    assert playout.stats.recovered_fec == 1
    assert largest_step(bridged) < 1.2 * largest_step(clean)
    # 10 ms of silence come first; then the second half of the frame, but for the join.
    half = slice((lost_one + 1) * FRAME + FADE_SAMPLES, (lost_one + 1) * FRAME + FRAME // 2)
    assert np.corrcoef(bridged[half], clean[half])[0, 1] > 0.9


def test_half_a_frame_that_came_late_joins_the_half_that_was_concealed() -> None:
    packets = voiced_packets(450)
    clean, _ = by_halves(packets, jitter_ms=9)
    for late_one in range(420, 440):
        joined, playout = by_halves(packets, late=late_one, jitter_ms=9)
        assert playout.stats.concealed_samples == FRAME // 2
        assert playout.stats.dropped == playout.stats.shortened_samples == 0
        assert largest_step(joined) < 1.2 * largest_step(clean)
        # All that follows is where it would have been, the second half of this frame included.
        rest = slice((late_one + 1) * FRAME + FADE_SAMPLES, None)
        assert np.corrcoef(joined[rest], clean[rest])[0, 1] > 0.98


def test_after_a_gap_too_long_what_fec_has_is_heard() -> None:
    packets = voiced_packets(60)
    after = next(i for i in range(25, 60) if packet_has_fec(packets[i]))

    def heard(lost: range) -> tuple[Samples, Playout]:
        playout = Playout()
        out: Samples = np.zeros(FRAME, np.float32)
        parts = []
        for index, packet in enumerate(packets):
            if index not in lost:
                playout.insert(index * FRAME, packet, index * TICK_NS, first=index == 0)
            playout.pull(out, index * TICK_NS + 15 * MS)
            parts.append(out.copy())
        return np.concatenate(parts), playout

    clean, _ = heard(range(0))
    broken, playout = heard(range(after - 15, after))
    assert playout.stats.recovered_fec == 1
    # It comes 20 ms after its frame would have.
    begins = after * FRAME
    assert not broken[begins - FRAME : begins].any()
    recovered, said = broken[begins : begins + FRAME], clean[begins - FRAME : begins]
    assert np.corrcoef(recovered[FADE_SAMPLES:], said[FADE_SAMPLES:])[0, 1] > 0.5
    # A decoder makes little of its first frame, whose pitch it does not know; it is the next one
    # that sounds as it should.
    following, said = broken[begins + FRAME :][:FRAME], clean[begins:][:FRAME]
    assert np.std(following) > 0.8 * np.std(said)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**32 - 1) | st.integers(0, 30).map(lambda i: i * 480),
            st.binary(max_size=40),
            st.integers(0, 25 * MS),
            st.integers(1, 3_000),
        ),
        max_size=40,
    )
)
def test_nonsense_still_fills_every_buffer(events: list[tuple[int, bytes, int, int]]) -> None:
    playout = Playout()
    now_ns = 0
    for timestamp, payload, step_ns, pull in events:
        now_ns += step_ns
        playout.insert(timestamp, payload, now_ns)
        out = np.full(pull, np.nan, np.float32)
        sounding = playout.pull(out, now_ns)
        assert np.isfinite(out).all()
        assert sounding or not out.any()


# -- joins


def test_a_source_cut_off_in_mid_swing_sinks_instead_of_stepping() -> None:
    pcm = tone(9_600, hz=100)
    packets = packets_of(pcm)
    for length in range(5, 10):  # `last` is set on a packet that ends somewhere in the wave
        playout = Playout()
        heard = play(playout, packets[:length], 20)
        body = decoded(packets[:length])
        end = len(body) + int(np.flatnonzero(heard)[0]) - int(np.flatnonzero(body)[0])
        assert largest_step(heard) < 1.5 * largest_step(body) + 0.01
        assert not heard[end + FADE_SAMPLES :].any()


def test_a_source_that_starts_in_mid_swing_rises_instead_of_stepping() -> None:
    packets = packets_of(tone(96_000, hz=100))
    out: Samples = np.zeros(FRAME, np.float32)
    steps = []
    for skipped in range(13, 33):  # the way back after 200 ms and more of loss
        playout = Playout()
        heard = []
        for tick in range(60):
            if tick < 5 or tick >= 5 + skipped:
                playout.insert(tick * FRAME, packets[tick], tick * TICK_NS)
            playout.pull(out, tick * TICK_NS + 10 * MS)
            heard.append(out.copy())
        assert playout.stats.talkspurts == 2
        steps.append(largest_step(np.concatenate(heard)))
    assert max(steps) < 0.03  # a cut at the crest would be 0.3


def test_a_restarted_sender_does_not_click() -> None:
    pcm = tone(24_000, hz=100)
    playout = Playout()
    first = play(playout, packets_of(pcm)[:12], 12)
    out: Samples = np.zeros(FRAME, np.float32)
    heard = [first]
    for index, packet in enumerate(packets_of(pcm)):
        verdict = playout.insert(3_000_000_000 + index * FRAME, packet, (12 + index) * TICK_NS)
        assert verdict is (Verdict.RESET if index == 0 else Verdict.ACCEPTED)
        playout.pull(out, (12 + index) * TICK_NS + 10 * MS)
        heard.append(out.copy())
    assert largest_step(np.concatenate(heard)) < 0.03


def test_a_clean_start_is_left_alone() -> None:
    """A talkspurt that rises by itself must not lose its first 2.5 ms to a fade."""
    pcm = tone(9_600)
    pcm[:480] = 0
    packets = packets_of(pcm)
    heard = play(Playout(), packets, 10)
    np.testing.assert_array_equal(heard[: 8 * FRAME], decoded(packets)[: 8 * FRAME])


# -- cost


def test_pulls_allocate_no_sample_buffers() -> None:
    packets = packets_of(tone(96_000))
    playout = Playout()
    out: Samples = np.zeros(FRAME, np.float32)
    for index in range(20):
        playout.insert(index * FRAME, packets[index], index * TICK_NS)
        playout.pull(out, index * TICK_NS + 10 * MS)
    tracemalloc.start()
    try:
        peaks_bytes = []
        for index in range(20, 100):
            playout.insert(index * FRAME, packets[index], index * TICK_NS)
            tracemalloc.reset_peak()
            before_bytes = tracemalloc.get_traced_memory()[0]
            assert playout.pull(out, index * TICK_NS + 10 * MS)
            peaks_bytes.append(tracemalloc.get_traced_memory()[1] - before_bytes)
    finally:
        tracemalloc.stop()
    assert max(peaks_bytes) < out.nbytes


# -- stretching


def test_delay_is_taken_back_without_a_step_or_a_change_of_pitch() -> None:
    """A path that gets 100 ms quicker, and a sound that is never soft."""
    sound = tone(10 * 48_000)
    packets = packets_of(sound)
    playout = Playout()
    out: Samples = np.zeros(FRAME, np.float32)
    heard = []
    arrivals = sorted((i * TICK_NS + (100 * MS if i < 50 else 0), i) for i in range(len(packets)))
    for tick in range(500):
        now_ns = tick * TICK_NS + 10 * MS
        while arrivals and arrivals[0][0] <= now_ns:
            arrival_ns, number = arrivals.pop(0)
            playout.insert(number * FRAME, packets[number], arrival_ns, first=number == 0)
        playout.pull(out, now_ns)
        heard.append(out.copy())
    stats = playout.stats
    assert stats.shortened_samples >= 80 * 48
    assert stats.delay_ns <= 10 * MS + 20 * MS  # within 20 ms of the old one
    assert stats.concealed_samples == stats.dropped == stats.late == 0
    steady = np.concatenate(heard[10:])
    assert largest_step(steady) <= 1.05 * largest_step(sound)
    assert np.abs(steady).max() <= 1.05 * np.abs(sound).max()
    crossings = np.count_nonzero(np.diff(np.signbit(steady)))
    expected = np.count_nonzero(np.diff(np.signbit(sound))) / len(sound) * len(steady)
    assert crossings == pytest.approx(expected, rel=0.01)
