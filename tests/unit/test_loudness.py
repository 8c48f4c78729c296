"""Loudness and gain of one speaker: the measure against exact filters, the gain in time."""

import math
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from spaces_client.synth import synthesise_voice
from spaces_server.mixer.loudness import (
    HIGH_PASS,
    MAX_GAIN_DB,
    MAX_SLEW_DB_PER_S,
    SHELF,
    TARGET_LUFS,
    Leveller,
    k_weighted_energy,
    loudness_of,
)
from tests.quality.speech import VOICES, voice

Samples = NDArray[np.float32]
FRAME_SAMPLES = 960
FRAMES_PER_S = 50


def frames(samples: NDArray[np.floating]) -> Samples:
    whole = len(samples) // FRAME_SAMPLES * FRAME_SAMPLES
    return samples[:whole].astype(np.float32).reshape(-1, FRAME_SAMPLES)


def sine(hz: float, seconds: float, level: float = 0.1) -> Samples:
    at = np.arange(round(seconds * 48_000)) / 48_000
    return (level * np.sin(2 * np.pi * hz * at)).astype(np.float32)


def noise(seconds: float, dbfs: float, exponent: float = 0.0) -> Samples:
    """Power falls with 1 / f ** exponent above 40 Hz: 0 is white, 1 pink, 2 brown."""
    rng = np.random.default_rng(7)
    count = round(seconds * 48_000)
    spectrum = np.fft.rfft(rng.standard_normal(count))
    spectrum *= np.maximum(np.fft.rfftfreq(count, 1 / 48_000), 40) ** (-exponent / 2)
    samples = np.fft.irfft(spectrum, count)
    scaled: Samples = (samples * 10 ** (dbfs / 20) / samples.std()).astype(np.float32)
    return scaled


def speech(seconds: float, dbfs: float = -26.0, seed: int = 1) -> Samples:
    scaled: Samples = synthesise_voice(seed, seconds) * np.float32(10 ** ((dbfs + 26) / 20))
    return scaled


def gains_over(
    leveller: Leveller, samples: Samples, frame_samples: int = FRAME_SAMPLES
) -> list[float]:
    """The gain in dB after each frame; `samples` are turned up or down in place, if they can be."""
    gains = []
    for frame in samples.reshape(-1, frame_samples):
        leveller.level(frame)
        gains.append(leveller.gain_db)
    return gains


def loudness(samples: NDArray[np.floating]) -> float:
    """Ungated, by this module's measure."""
    return loudness_of(float(np.mean([k_weighted_energy(frame) for frame in frames(samples)])))


def exact_loudness(samples: NDArray[np.floating]) -> float:
    """The same by the filters of BS.1770-4, sample by sample."""
    signal = pytest.importorskip("scipy.signal", reason="scipy comes with the extra `pesq`")
    weighted = samples.astype(np.float64)
    for above, below in (SHELF, HIGH_PASS):
        weighted = signal.lfilter(above, below, weighted)
    return loudness_of(float(np.mean(np.square(weighted))))


# -- the measure ----------------------------------------------------------------------------------


def test_a_sine_has_the_loudness_that_the_standard_says() -> None:
    """BS.1770-4: 0 dBFS at 997 Hz in one channel is -3.01 LKFS."""
    assert loudness(sine(997, 2, 1.0)) == pytest.approx(-3.01, abs=0.02)
    assert loudness(sine(997, 2, 0.01)) == pytest.approx(-43.01, abs=0.02)


@pytest.mark.parametrize("exponent", [0.0, 1.0])
def test_noise_is_as_loud_as_with_the_exact_filters(exponent: float) -> None:
    samples = noise(10, -30, exponent)
    assert loudness(samples) == pytest.approx(exact_loudness(samples), abs=0.2)


def test_a_made_voice_is_as_loud_as_with_the_exact_filters() -> None:
    samples = speech(10)
    assert loudness(samples) == pytest.approx(exact_loudness(samples), abs=0.1)


@pytest.mark.shared
@pytest.mark.parametrize("name", VOICES)
def test_speech_is_as_loud_as_with_the_exact_filters_in_any_three_seconds(name: str) -> None:
    samples = np.concatenate(voice(name, 30))
    for start in range(0, len(samples) - 144_000, 144_000):
        part = samples[start : start + 144_000]
        assert loudness(part) == pytest.approx(exact_loudness(part), abs=0.1)


# -- DC -------------------------------------------------------------------------------------------


def test_dc_goes_and_nothing_clicks() -> None:
    samples = np.full(50 * FRAME_SAMPLES, 0.01, np.float32)
    samples += sine(300, 1, 0.001)
    gains = gains_over(Leveller(), samples)
    assert gains[-1] == 0.0
    assert abs(samples[-4_800:].mean()) < 1e-5
    assert np.abs(np.diff(samples)).max() < 1e-4


@pytest.mark.parametrize(("hz", "loss_db"), [(60, 0.5), (100, 0.2), (300, 0.05)])
def test_a_low_voice_is_kept(hz: float, loss_db: float) -> None:
    samples = sine(hz, 1, 0.001)
    before = samples[24_000:].std()
    gains_over(Leveller(), samples)
    assert 0 <= 20 * math.log10(before / samples[24_000:].std()) < loss_db


def test_what_the_high_pass_still_gives_goes_into_the_silence_and_no_further() -> None:
    leveller = Leveller()
    gains_over(leveller, np.full(20 * FRAME_SAMPLES, 0.01, np.float32))
    tail = np.zeros(FRAME_SAMPLES, np.float32)
    leveller.end(tail)
    assert tail[0] == pytest.approx(-0.01, rel=0.01)
    assert np.all(np.diff(tail) > 0)
    again = np.zeros(FRAME_SAMPLES, np.float32)
    leveller.level(again)
    assert not again.any()


# -- the gain -------------------------------------------------------------------------------------


def test_a_good_level_is_left_alone() -> None:
    gains = gains_over(Leveller(), speech(20))
    assert max(map(abs, gains)) < 2.5


@pytest.mark.parametrize("louder_dbfs", [-10.0, -20.0, -26.0])
def test_two_who_are_20_db_apart_are_together_within_5_s(louder_dbfs: float) -> None:
    loud, quiet = speech(15, louder_dbfs, seed=2), speech(15, louder_dbfs - 20, seed=2)
    for samples in (loud, quiet):
        gains_over(Leveller(), samples)
    after = slice(5 * 48_000, None)
    assert abs(loudness(loud[after]) - loudness(quiet[after])) < 3
    assert loudness(loud[after]) == pytest.approx(TARGET_LUFS, abs=3)


@pytest.mark.shared
@pytest.mark.parametrize("name", VOICES)
def test_recorded_speech_20_db_apart_is_together_within_5_s(name: str) -> None:
    blocks = np.concatenate(voice(name, 15))
    loud, quiet = blocks.copy(), blocks / np.float32(10)
    for samples in (loud, quiet):
        gains_over(Leveller(), samples)
    after = slice(5 * 48_000, None)
    assert abs(loudness(loud[after]) - loudness(quiet[after])) < 3


def test_the_gain_is_bounded_and_slow() -> None:
    for dbfs in (-60.0, 0.0):
        samples = speech(20, dbfs)
        gains = gains_over(Leveller(), samples)
        assert max(map(abs, gains)) <= MAX_GAIN_DB
        steps = [abs(after - before) for before, after in pairwise([0.0, *gains])]
        assert max(steps) <= MAX_SLEW_DB_PER_S / FRAMES_PER_S * 1.0001
    assert gains[-1] < -15


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("dbfs", [-60.0, -50.0, -40.0])
def test_noise_is_never_turned_up(exponent: float, dbfs: float) -> None:
    samples = noise(20, dbfs, exponent)
    assert set(gains_over(Leveller(), samples)) == {0.0}


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("dbfs", [-60.0, -50.0, -40.0])
def test_nor_is_it_in_frames_of_10_ms(exponent: float, dbfs: float) -> None:
    samples = noise(20, dbfs, exponent)
    assert set(gains_over(Leveller(480), samples, 480)) == {0.0}


@pytest.mark.parametrize("dbfs", [-45.0, -36.0, -26.0, -10.0])
def test_in_frames_of_10_ms_the_gain_is_the_same_over_time(dbfs: float) -> None:
    whole, half = speech(15, dbfs), speech(15, dbfs)
    gains = gains_over(Leveller(), whole)
    halves = gains_over(Leveller(480), half, 480)
    assert max(abs(a - b) for a, b in zip(gains, halves[1::2], strict=True)) < 1
    assert loudness(half[-480_000:]) == pytest.approx(loudness(whole[-480_000:]), abs=0.5)
    steps = [abs(after - before) for before, after in pairwise([0.0, *halves])]
    assert max(steps) <= MAX_SLEW_DB_PER_S / FRAMES_PER_S / 2 * 1.0001


def test_noise_in_short_talkspurts_is_not_turned_up() -> None:
    leveller = Leveller()
    silence = np.zeros(FRAME_SAMPLES, np.float32)
    for part in frames(noise(20, -50)).reshape(-1, 10, FRAME_SAMPLES):
        part[0] *= np.linspace(0, 1, FRAME_SAMPLES)
        gains_over(leveller, part)
        leveller.end(silence.copy())
    assert leveller.gain_db == 0.0


@pytest.mark.parametrize("snr_db", [30, 20, 15])
def test_the_gain_rests_while_a_speaker_pauses_in_a_noisy_room(snr_db: float) -> None:
    leveller = Leveller()
    room = noise(30, -36 - snr_db, 1.0)
    talking = speech(10, -36) + room[:480_000]
    (*_, led) = gains_over(leveller, talking)
    assert 7 < led < 13
    gains = gains_over(leveller, room[480_000:])
    assert max(abs(gain - led) for gain in gains) < 0.5


def test_what_is_loud_goes_down_even_if_it_is_steady() -> None:
    gains = gains_over(Leveller(), sine(300, 6, 0.5))
    assert gains[-1] == pytest.approx(TARGET_LUFS - loudness(sine(300, 1, 0.5)), abs=1)


def test_silences_between_talkspurts_do_not_count() -> None:
    """What is never given to the leveller is nobody's pause: the gain is where it was."""
    leveller = Leveller()
    gains_over(leveller, speech(6, -36))
    before = leveller.gain_db
    leveller.end(np.zeros(FRAME_SAMPLES, np.float32))
    (first, *_) = gains_over(leveller, speech(1, -36))
    assert first == pytest.approx(before, abs=MAX_SLEW_DB_PER_S / FRAMES_PER_S)


def test_the_gain_moves_without_a_step_in_the_sound() -> None:
    """What is done to the samples is a line from the last gain to the next, in every frame."""
    leveller, plain = Leveller(), Leveller()
    samples = speech(4, -40)
    ends = [1.0]
    for frame in frames(samples):
        without = frame.copy()
        plain._remove_dc(without)
        leveller.level(frame)
        strong = np.abs(without) > 1e-4
        gain = frame[strong] / without[strong]
        line = np.linspace(ends[-1], 10 ** (leveller.gain_db / 20), FRAME_SAMPLES + 1)[1:]
        np.testing.assert_allclose(gain, line[strong], rtol=1e-4)
        ends.append(float(line[-1]))
    assert ends[-1] > 3
