"""Opus: levels survive, twins agree, lost frames come back, and no input crashes anything."""

from __future__ import annotations

import contextlib
import ctypes
import tracemalloc
import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import opus
from protocol.opus import Decoder, Encoder, OpusError, Samples

ROOT = Path(__file__).resolve().parents[2]
SPEECH = ROOT / ".." / "shared" / "speech" / "en_f.wav"
FRAME = 960


def tone(samples: int, hz: float = 440.0, level: float = 0.3) -> Samples:
    return (level * np.sin(2 * np.pi * hz * np.arange(samples) / 48_000)).astype(np.float32)


def babble(samples: int, seed: int = 1) -> Samples:
    """Harmonics of a gliding pitch under a syllable-like envelope: enough of a voice for SILK."""
    rng = np.random.default_rng(seed)
    t = np.arange(samples) / 48_000
    phase = 2 * np.pi * np.cumsum(140 + 30 * np.sin(2 * np.pi * 0.7 * t)) / 48_000
    voice = sum(np.sin(k * phase) / k for k in range(1, 12))
    envelope = 0.55 + 0.45 * np.sin(2 * np.pi * 3 * t)
    return (0.1 * envelope * voice + 0.002 * rng.standard_normal(samples)).astype(np.float32)


def speech() -> Samples:
    if not SPEECH.is_file():
        pytest.skip("../shared/speech is not there")
    with wave.open(str(SPEECH)) as file:
        quiet = np.frombuffer(file.readframes(16_000 * 8), "<i2").astype(np.float32) / 32_768
    at = np.arange(len(quiet) * 3) / 3
    return np.interp(at, np.arange(len(quiet)), quiet).astype(np.float32)


def frames(pcm: Samples, size: int = FRAME) -> list[Samples]:
    return [pcm[i : i + size] for i in range(0, len(pcm) - size + 1, size)]


def decode_all(packets: list[bytes], channels: int = 1) -> Samples:
    decoder = Decoder(channels)
    shape = (opus.MAX_PACKET_SAMPLES,) if channels == 1 else (opus.MAX_PACKET_SAMPLES, 2)
    out: Samples = np.zeros(shape, np.float32)
    return np.concatenate([out[: decoder.decode(packet, out)].copy() for packet in packets])


def likeness(original: Samples, decoded: Samples) -> float:
    """The best normalized correlation at a codec delay of up to 15 ms."""
    best = 0.0
    for delay in range(720):
        a, b = original[4_800:-4_800], decoded[4_800 + delay :][: len(original) - 9_600]
        best = max(best, float(a @ b / np.sqrt((a @ a) * (b @ b))))
    return best


# -- round trips


@pytest.mark.parametrize("size", sorted(opus.ENCODER_SAMPLES))
def test_a_tone_survives_at_its_level_in_every_frame_size(size: int) -> None:
    pcm = tone(48_000)
    encoder = Encoder(bitrate=64_000)
    packets = [encoder.encode(frame) for frame in frames(pcm, size)]
    decoded = decode_all(packets)
    assert {opus.packet_samples(packet) for packet in packets} == {size}
    assert len(decoded) == len(packets) * size
    assert np.std(decoded[4_800:]) == pytest.approx(np.std(pcm), rel=0.05)
    assert likeness(pcm, decoded) > 0.98


@pytest.mark.shared
def test_speech_keeps_its_level() -> None:
    pcm = speech()
    encoder = Encoder()
    decoded = decode_all([encoder.encode(frame) for frame in frames(pcm)])
    assert np.std(decoded) == pytest.approx(np.std(pcm), rel=0.1)
    assert likeness(pcm[:96_000], decoded) > 0.85


def test_stereo_keeps_the_sides_apart() -> None:
    pcm = np.stack([tone(48_000, 440), tone(48_000, 1_000, 0.05)], axis=1)
    encoder = Encoder(channels=2, bitrate=96_000)
    decoded = decode_all([encoder.encode(frame) for frame in frames(pcm)], channels=2)
    assert np.std(decoded[4_800:, 0]) == pytest.approx(np.std(pcm[:, 0]), rel=0.1)
    assert np.std(decoded[4_800:, 1]) == pytest.approx(np.std(pcm[:, 1]), rel=0.1)


def test_read_only_samples_can_be_encoded() -> None:
    pcm = babble(FRAME)
    frozen = pcm.copy()
    frozen.flags.writeable = False
    assert Encoder().encode(frozen) == Encoder().encode(pcm)


def test_dtx_yields_tiny_packets_in_silence_and_not_without() -> None:
    silence: Samples = np.zeros(FRAME, np.float32)
    sizes: dict[bool, list[int]] = {}
    for dtx in (False, True):
        encoder = Encoder(dtx=dtx)
        for frame in frames(babble(48_000)):
            encoder.encode(frame)
        sizes[dtx] = [len(encoder.encode(silence)) for _ in range(50)]
    assert sum(size <= 2 for size in sizes[True]) > 30
    assert all(size > 2 for size in sizes[False])


# -- settings


def test_settings_reach_the_encoder() -> None:
    encoder = Encoder(bitrate=24_000, complexity=3, fec=True, expected_loss_percent=7)
    assert encoder.bitrate == 24_000
    assert encoder.complexity == 3
    assert encoder.fec is True
    assert encoder.expected_loss_percent == 7
    encoder.bitrate, encoder.complexity = 48_000, 9
    encoder.fec, encoder.expected_loss_percent = False, 0
    assert (encoder.bitrate, encoder.complexity) == (48_000, 9)
    assert (encoder.fec, encoder.expected_loss_percent) == (False, 0)


def test_a_lower_bitrate_makes_smaller_packets() -> None:
    def total(bitrate: int) -> int:
        encoder = Encoder(bitrate=bitrate)
        return sum(len(encoder.encode(frame)) for frame in frames(babble(48_000)))

    assert total(16_000) < 0.7 * total(48_000)


def test_refused_settings_are_opus_errors() -> None:
    with pytest.raises(OpusError, match="4010"):
        Encoder(complexity=11)
    with pytest.raises(OpusError):
        Encoder().expected_loss_percent = 101
    with pytest.raises(ValueError, match="channels"):
        Encoder(channels=3)
    with pytest.raises(ValueError, match="channels"):
        Decoder(0)


# -- forks


@pytest.mark.parametrize("channels", [1, 2])
def test_a_fork_goes_on_bit_for_bit_and_then_its_own_way(channels: int) -> None:
    def signal(seed: int) -> list[Samples]:
        pcm = babble(48_000, seed)
        return frames(pcm if channels == 1 else np.stack([pcm, pcm[::-1]], axis=1).copy())

    parent = Encoder(channels=channels, fec=True, expected_loss_percent=10, bitrate=40_000)
    for frame in signal(1):
        parent.encode(frame)
    twin = parent.fork()
    cold = Encoder(channels=channels, fec=True, expected_loss_percent=10, bitrate=40_000)
    assert twin.bitrate == 40_000
    common = [(parent.encode(f), twin.encode(f), cold.encode(f)) for f in signal(2)]
    assert all(a == b for a, b, _ in common)
    assert any(a != c for a, _, c in common)  # the state does matter

    # Interleaved, each must do what it would do alone.
    lonely = parent.fork()
    expected = [lonely.encode(f) for f in signal(3)]
    mixed = [(parent.encode(a), twin.encode(b)) for a, b in zip(signal(3), signal(4), strict=True)]
    assert [a for a, _ in mixed] == expected
    assert [a for a, _ in mixed] != [b for _, b in mixed]


def test_a_fork_outlives_its_parent() -> None:
    parent = Encoder()
    for frame in frames(babble(9_600)):
        parent.encode(frame)
    expected = parent.fork().encode(babble(FRAME, 5))
    twin = parent.fork()
    del parent
    assert twin.encode(babble(FRAME, 5)) == expected


def test_copy_from_needs_the_same_channels() -> None:
    with pytest.raises(ValueError, match="channels"):
        Encoder(channels=1).copy_from(Encoder(channels=2))


def test_reset_forgets_the_signal_but_not_the_settings() -> None:
    encoder = Encoder(bitrate=20_000)
    fresh = [encoder.encode(frame) for frame in frames(babble(9_600))]
    encoder.reset()
    assert encoder.bitrate == 20_000
    assert [encoder.encode(frame) for frame in frames(babble(9_600))] == fresh


# -- loss


def test_fec_brings_a_lost_frame_back_where_concealment_cannot() -> None:
    pcm = babble(96_000)
    encoder = Encoder(fec=True, expected_loss_percent=20)
    packets = [encoder.encode(frame) for frame in frames(pcm)]
    whole = frames(decode_all(packets))
    fec_error = plc_error = fec_energy = energy = 0.0
    recovered: Samples = np.zeros(FRAME, np.float32)
    scratch: Samples = np.zeros(FRAME, np.float32)
    carried = 0
    for lost in range(10, len(packets) - 1, 5):
        if not opus.packet_has_fec(packets[lost + 1]):
            continue
        carried += 1
        for fec in (True, False):
            decoder = Decoder()
            for packet in packets[:lost]:
                decoder.decode(packet, scratch)
            if fec:
                assert decoder.decode_fec(packets[lost + 1], recovered) == FRAME
                fec_error += float(np.sum((recovered - whole[lost]) ** 2))
                fec_energy += float(np.sum(recovered**2))
            else:
                assert decoder.conceal(recovered) == FRAME
                plc_error += float(np.sum((recovered - whole[lost]) ** 2))
        energy += float(np.sum(whole[lost] ** 2))
    assert carried > 10
    assert fec_energy == pytest.approx(energy, rel=0.25)
    assert fec_error < 0.5 * plc_error


@pytest.mark.parametrize("channels", [1, 2])
def test_a_decoder_that_goes_back_has_forgotten_what_came_since(channels: int) -> None:
    pcm = babble(48_000)
    if channels == 2:
        pcm = np.stack([pcm, babble(48_000, 2)], axis=1).copy()
    encoder = Encoder(channels=channels)
    packets = [encoder.encode(frame) for frame in frames(pcm)]
    decoder = Decoder(channels)
    out: Samples = np.zeros((FRAME,) if channels == 1 else (FRAME, 2), np.float32)
    for packet in packets[:20]:
        decoder.decode(packet, out)
    decoder.save()
    decoder.decode(packets[20], out)
    expected = out.copy()
    decoder.conceal(out)
    decoder.restore()
    decoder.decode(packets[20], out)
    assert np.array_equal(out, expected)


def test_no_fec_is_sent_unless_asked_for() -> None:
    encoder = Encoder()
    assert not any(opus.packet_has_fec(encoder.encode(f)) for f in frames(babble(48_000)))


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(opus.LIBRARY.path), "opus_packet_has_lbrr"),
    reason="libopus before 1.5 cannot be asked",
)
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("size", [480, 960, 1_920, 2_880])
@pytest.mark.parametrize("bitrate", [16_000, 36_000])
def test_the_fec_flag_is_what_libopus_says(channels: int, size: int, bitrate: int) -> None:
    has_lbrr = ctypes.CDLL(opus.LIBRARY.path).opus_packet_has_lbrr
    has_lbrr.argtypes = (ctypes.c_char_p, ctypes.c_int32)
    encoder = Encoder(channels=channels, bitrate=bitrate, fec=True, expected_loss_percent=25)
    pcm = babble(96_000)
    if channels == 2:
        pcm = np.stack([pcm, babble(96_000, 2)], axis=1).copy()
    for frame in frames(pcm, size):
        packet = encoder.encode(frame)
        assert opus.packet_has_fec(packet) == (has_lbrr(packet, len(packet)) == 1)


def test_concealment_fades() -> None:
    decoder = Decoder()
    out: Samples = np.zeros(FRAME, np.float32)
    encoder = Encoder()
    for frame in frames(babble(48_000)):
        decoder.decode(encoder.encode(frame), out)
    levels = []
    for _ in range(12):
        decoder.conceal(out)
        levels.append(float(np.std(out)))
    assert levels[0] > 0.01
    assert levels[-1] < 0.4 * levels[0]  # what stays is comfort noise


# -- what C must never see


@pytest.mark.parametrize("samples", [0, 1, 119, 121, 959, 961, 1_000, 3_840, 5_760])
def test_lengths_that_are_no_frame_are_rejected(samples: int) -> None:
    with pytest.raises(ValueError, match="no Opus frame"):
        Encoder().encode(np.zeros(samples, np.float32))


def test_wrong_shapes_and_types_are_rejected() -> None:
    with pytest.raises(ValueError, match="float32"):
        Encoder().encode(np.zeros(FRAME, np.float64))
    with pytest.raises(ValueError, match="shape"):
        Encoder(channels=2).encode(np.zeros(FRAME, np.float32))
    with pytest.raises(ValueError, match="shape"):
        Encoder().encode(np.zeros((FRAME, 2), np.float32))
    with pytest.raises(ValueError, match="contiguous"):
        Encoder().encode(np.zeros(2 * FRAME, np.float32)[::2])
    frozen: Samples = np.zeros(FRAME, np.float32)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        Decoder().decode(Encoder().encode(tone(FRAME)), frozen)
    for samples in (0, 100, 5_880):
        with pytest.raises(ValueError, match="conceal"):
            Decoder().conceal(np.zeros(samples, np.float32))


def test_a_packet_that_does_not_fit_is_an_error_and_does_no_harm() -> None:
    packet = Encoder().encode(tone(FRAME))
    decoder = Decoder()
    guard = np.full(2 * FRAME, 7.0, np.float32)
    with pytest.raises(OpusError):
        decoder.decode(packet, guard[:480])
    assert np.all(guard[480:] == 7.0)
    assert decoder.decode(packet, guard) == FRAME
    assert np.all(guard[FRAME:] == 7.0)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80), st.sampled_from([1, 2]))
def test_garbage_is_decoded_or_refused_but_never_crashes(packet: bytes, channels: int) -> None:
    shape = (opus.MAX_PACKET_SAMPLES,) if channels == 1 else (opus.MAX_PACKET_SAMPLES, 2)
    out: Samples = np.zeros(shape, np.float32)
    decoder = Decoder(channels)
    opus.packet_has_fec(packet)
    try:
        samples = decoder.decode(packet, out)
    except OpusError:
        pass
    else:
        assert samples == opus.packet_samples(packet)
    with contextlib.suppress(OpusError):
        decoder.decode_fec(packet, out[:FRAME])
    good = Encoder().encode(tone(FRAME))
    assert decoder.decode(good, out) == FRAME


def test_empty_packets_are_no_concealment() -> None:
    out: Samples = np.zeros(FRAME, np.float32)
    with pytest.raises(OpusError):
        Decoder().decode(b"", out)
    with pytest.raises(OpusError):
        Decoder().decode_fec(b"", out)


@pytest.mark.parametrize(
    ("packet", "samples"),
    [
        (bytes([0 << 3]), 480),  # SILK narrowband 10 ms
        (bytes([3 << 3]), 2_880),
        (bytes([11 << 3 | 1]), 5_760),  # two of 60 ms
        (bytes([12 << 3]), 480),  # hybrid
        (bytes([15 << 3]), 960),
        (bytes([16 << 3]), 120),  # CELT 2.5 ms
        (bytes([31 << 3 | 2]), 1_920),
        (bytes([16 << 3 | 3, 48]), 5_760),
        (bytes([31 << 3 | 3, 6 | 0xC0]), 5_760),
    ],
)
def test_durations_follow_the_table(packet: bytes, samples: int) -> None:
    assert opus.packet_samples(packet) == samples


@pytest.mark.parametrize(
    "packet",
    [b"", bytes([3]), bytes([3, 0]), bytes([16 << 3 | 3, 49]), bytes([3 << 3 | 3, 3])],
    ids=["empty", "no count", "no frames", "122.5 ms", "180 ms"],
)
def test_malformed_heads_have_no_duration(packet: bytes) -> None:
    with pytest.raises(OpusError):
        opus.packet_samples(packet)


def test_nothing_grows_over_a_thousand_frames() -> None:
    encoder, decoder = Encoder(), Decoder()
    out: Samples = np.zeros(FRAME, np.float32)
    pcm = babble(FRAME)

    def run(rounds: int) -> None:
        for _ in range(rounds):
            decoder.decode(encoder.encode(pcm), out)

    run(50)
    tracemalloc.start()
    try:
        before_bytes = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        run(1_000)
        after_bytes, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after_bytes - before_bytes < 4_000
    assert peak_bytes - before_bytes < 10_000  # no frame-sized buffer made on the way
