"""The limiter: nothing above the limit, no step, and nothing while it is not needed."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from spaces_server.mixer.limiter import (
    DENSE_LIMIT,
    LIMIT,
    LOOK_AHEAD_SAMPLES,
    RELEASE_DB_PER_S,
    STEP_SAMPLES,
    Limiter,
)

FRAME = 960
Samples = NDArray[np.float32]


def limited(limiter: Limiter, samples: Samples) -> Samples:
    """All of `samples`, in frames, and nothing of the delay: as many as went in, and in step."""
    tail = np.zeros((FRAME, *samples.shape[1:]), np.float32)
    out = np.concatenate((samples, tail))
    for start in range(0, len(out), FRAME):
        limiter.limit(out[start : start + FRAME])
    return out[LOOK_AHEAD_SAMPLES : LOOK_AHEAD_SAMPLES + len(samples)]


def sine(hz: float, seconds: float, level: float) -> Samples:
    at = np.arange(round(seconds * 50) * FRAME) / 48_000
    return (level * np.sin(2 * np.pi * hz * at)).astype(np.float32)


def gain_of(level: float, frames: int, limiter: Limiter) -> Samples:
    """What a limiter does to a constant, as a gain."""
    frame = np.empty(FRAME, np.float32)
    gains = []
    for _ in range(frames):
        frame[:] = level
        limiter.limit(frame)
        gains.append(frame / level)
    return np.concatenate(gains)


def test_what_needs_no_limit_comes_out_as_it_went_in() -> None:
    samples = sine(440, 0.2, LIMIT)
    np.testing.assert_array_equal(limited(Limiter(), samples), samples)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0, 40, width=32), min_size=1, max_size=12),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 2]),
)
def test_nothing_ever_exceeds_the_limit(peaks: list[float], seed: int, channels: int) -> None:
    rng = np.random.default_rng(seed)
    limiter = Limiter(channels)
    for peak in peaks:
        shape = (FRAME,) if channels == 1 else (FRAME, channels)
        frame = (rng.uniform(-1, 1, shape) * peak * (rng.random(shape) < 0.01)).astype(np.float32)
        found = limiter.limit(frame)
        assert np.abs(frame).max() <= min(LIMIT * 1.00001, found)


def test_a_dense_mix_ends_lower() -> None:
    assert np.abs(limited(Limiter(), sine(500, 1, 13.0))[4_800:]).max() <= DENSE_LIMIT * 1.00001
    peak = np.abs(limited(Limiter(), sine(500, 1, LIMIT * 2)))[4_800:].max()
    assert peak == pytest.approx(LIMIT / math.sqrt(2), rel=1e-3)  # 6 dB over: 3 dB below


def test_the_gain_is_down_before_the_peak_and_moves_without_a_step() -> None:
    limiter = Limiter()
    gain_of(0.1, 1, limiter)
    quiet = gain_of(0.1, 2, limiter)
    frame = np.full(FRAME, 0.1, np.float32)
    frame[480] = 10.0
    limiter.limit(frame)
    gain = frame / 0.1
    gain[480 + LOOK_AHEAD_SAMPLES] /= 100
    after = gain_of(0.1, 100, limiter)
    curve = np.concatenate((quiet, gain, after))
    down = 1 - curve.min()
    assert down > 0.9
    assert np.abs(np.diff(curve)).max() <= down / LOOK_AHEAD_SAMPLES * 1.01
    at_peak = 2 * FRAME + 480 + LOOK_AHEAD_SAMPLES
    assert curve[at_peak] == curve.min()
    # It is full until as long before the peak as the samples are held back, and a step.
    assert np.flatnonzero(curve < 1)[0] >= at_peak - LOOK_AHEAD_SAMPLES - STEP_SAMPLES
    assert curve[-1] == 1.0


def test_the_gain_comes_back_slowly() -> None:
    limiter = Limiter()
    gain_of(5.0, 2, limiter)
    curve = 20 * np.log10(gain_of(0.1, 120, limiter)[LOOK_AHEAD_SAMPLES:].astype(np.float64))
    back = np.flatnonzero(curve > -0.01)[0] - np.flatnonzero(curve > curve[0] + 0.01)[0]
    assert back / 48_000 == pytest.approx(-curve[0] / RELEASE_DB_PER_S, rel=0.02)
    rises = curve[480:] - curve[:-480]  # in 10 ms
    assert rises.max() <= RELEASE_DB_PER_S / 100 * 1.01


def test_a_steady_overload_is_not_distorted() -> None:
    """The gain stands still between the crests of 100 Hz: what comes out is a sine as well."""
    out = limited(Limiter(), sine(100, 2, 2.0))[48_000:]
    spectrum = np.abs(np.fft.rfft(out)) ** 2
    assert 10 * math.log10((spectrum.sum() - spectrum[100]) / spectrum[100]) < -40


def test_both_channels_have_one_gain() -> None:
    left, right = sine(300, 0.5, 3.0), sine(700, 0.5, 0.1)
    both = limited(Limiter(2), np.stack((left, right), axis=1))
    np.testing.assert_array_equal(both[:, 0], limited(Limiter(), left))
    gain = both[:, 0][left != 0] / left[left != 0]
    np.testing.assert_allclose(both[:, 1][left != 0], right[left != 0] * gain, atol=1e-6)
    assert gain.min() < 0.5


def test_a_fork_goes_on_from_the_same_samples_and_gain_and_is_apart() -> None:
    rng = np.random.default_rng(1)
    noise = rng.uniform(-3, 3, (6, FRAME)).astype(np.float32)
    one = Limiter()
    for frame in noise[:3].copy():
        one.limit(frame)
    two = one.fork()
    outs = []
    for limiter in (one, two):  # one after the other: neither moves the other
        frames = noise[3:].copy()
        for frame in frames:
            limiter.limit(frame)
        outs.append(frames)
    np.testing.assert_array_equal(outs[0], outs[1])


def test_after_a_reset_silence_was_before() -> None:
    limiter = Limiter()
    limiter.limit(np.full(FRAME, 5, np.float32))
    limiter.reset()
    frame = np.full(FRAME, 0.1, np.float32)
    assert limiter.limit(frame) == np.float32(0.1)
    assert not frame[:LOOK_AHEAD_SAMPLES].any()
    assert np.all(frame[LOOK_AHEAD_SAMPLES:] == np.float32(0.1))
