"""A voice from nothing: speech-like sound for demos where there is no recording and no microphone.

Each pulse of the vocal folds excites the formants of the vocal tract, and a formant answers a pulse
with a damped sinusoid; a voice is the sum of those answers (X. Rodet, "Time-domain
formant-wave-function synthesis", 1984). Which vowel, how high and how loud comes from a score of
phrases and syllables drawn at random. It says nothing, but has speech's pitch, rhythm and pauses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from spaces_client.audio import SAMPLE_RATE_HZ, Samples

_ACTIVE_LEVEL_DBFS: Final = -26.0  # RMS while speaking, as in ITU-T P.56
_PEAK: Final = 0.49

# F1..F4 in Hz of a man's vowels, rounded: G. Peterson and H. Barney, "Control methods used in a
# study of the vowels", 1952.
_VOWELS_HZ: Final = np.array(
    [
        (270, 2290, 3010, 3700),  # i
        (530, 1840, 2480, 3600),  # e
        (730, 1090, 2440, 3500),  # a
        (570, 840, 2410, 3400),  # o
        (300, 870, 2240, 3300),  # u
        (500, 1500, 2500, 3500),  # the neutral one
    ],
    np.float64,
)
_BANDWIDTHS_HZ: Final = np.array([70.0, 100.0, 140.0, 220.0])
_FORMANT_GAINS: Final = np.array([1.0, 0.5, 0.22, 0.12])
_RING_SAMPLES: Final = 960  # after 20 ms the narrowest formant has fallen by 38 dB

_FRAME_SAMPLES: Final = 48  # the score is drawn in steps of 1 ms
_FRAMES_PER_S: Final = SAMPLE_RATE_HZ // _FRAME_SAMPLES

# Consonants: the noise's centre and width in Hz, its length in ms, and whether a closure goes
# before it (a plosive) or not (a fricative).
_CONSONANTS: Final = (
    (6500.0, 2500.0, 90, False),
    (3500.0, 1500.0, 80, False),
    (2200.0, 2500.0, 25, True),
    (4200.0, 2000.0, 20, True),
    (1000.0, 900.0, 20, True),
)


@dataclass
class _Score:
    """What is spoken, one entry a millisecond, and the consonants with the frame they begin at."""

    pitch_hz: NDArray[np.float64]
    formants_hz: NDArray[np.float64]  # (frames, 4)
    loudness: NDArray[np.float64]
    consonants: list[tuple[int, int]] = field(default_factory=list)


def synthesise_voice(seed: int, seconds: float) -> Samples:
    """A voice of its own for each seed: float32 (n,) at 48 kHz, always the same for the same seed.

    Peaks stay below 0.5; the level while speaking is about -26 dBFS. Raises ValueError unless
    `seconds` is positive.
    """
    samples = round(seconds * SAMPLE_RATE_HZ)
    if samples <= 0:
        raise ValueError("a voice needs a positive length")
    rng = np.random.default_rng([seed, 0x5EAC])
    # Steps of the golden ratio keep the pitches of neighbouring seeds apart: 85 to 230 Hz.
    height = (seed * 0.6180339887 + 0.2) % 1.0
    score = _compose(rng, -(-samples // _FRAME_SAMPLES), height)
    sound = _sing(rng, score, samples)
    _add_consonants(rng, score, sound)
    return _level(sound)


def _compose(rng: np.random.Generator, frames: int, height: float) -> _Score:
    base_hz = 85.0 * (230.0 / 85.0) ** height
    # A higher voice mostly has a shorter vocal tract, hence higher formants.
    tract = 0.95 + 0.22 * height + rng.uniform(-0.04, 0.04)
    syllable_ms = rng.uniform(170, 230)
    score = _Score(
        pitch_hz=np.full(frames, base_hz),
        formants_hz=np.tile(_VOWELS_HZ[-1] * tract, (frames, 1)),
        loudness=np.zeros(frames),
    )
    frame = int(rng.integers(20, 150))
    while frame < frames:
        syllables = int(rng.integers(4, 11))
        melody = np.linspace(1.15, 0.88, syllables) * rng.uniform(0.93, 1.07, syllables)
        for syllable in range(syllables):
            if rng.random() < 0.8:
                kind = int(rng.integers(len(_CONSONANTS)))
                *_, length_ms, closed = _CONSONANTS[kind]
                frame += 50 if closed else 0
                if frame + length_ms < frames:
                    score.consonants.append((frame, kind))
                frame += length_ms
            length = int(syllable_ms * rng.uniform(0.5, 1.0))
            if syllable == syllables - 1:
                length = int(length * 1.5)  # a phrase slows down at its end
            vowel = slice(frame, frame + length)
            score.loudness[vowel] = rng.uniform(0.6, 1.0)
            score.pitch_hz[vowel] = base_hz * melody[syllable]
            # The tongue is on its way early and stays after the sound.
            score.formants_hz[max(0, frame - 60) : frame + length + 20] = (
                _VOWELS_HZ[int(rng.integers(len(_VOWELS_HZ)))] * tract
            )
            frame += length
        frame += int(rng.integers(300, 900))
    score.loudness = _smooth(score.loudness, 40)
    score.pitch_hz = _smooth(score.pitch_hz, 120)
    for formant in range(4):
        score.formants_hz[:, formant] = _smooth(score.formants_hz[:, formant], 70)
    # No voice holds a pitch exactly: a slow unsteadiness of about 1%.
    score.pitch_hz *= 1 + 0.25 * _smooth(rng.standard_normal(frames), 400)
    return score


def _smooth(track: NDArray[np.float64], width_frames: int) -> NDArray[np.float64]:
    window = np.hanning(width_frames + 2)[1:-1]
    padded = np.pad(track, (width_frames // 2, width_frames - 1 - width_frames // 2), "edge")
    smooth: NDArray[np.float64] = np.convolve(padded, window / window.sum(), "valid")
    return smooth


def _sing(rng: np.random.Generator, score: _Score, samples: int) -> NDArray[np.float64]:
    """One damped sinusoid per formant and pulse, wherever the score is voiced."""
    frame_of_sample = np.arange(samples) / _FRAME_SAMPLES
    pitch_hz = np.interp(frame_of_sample, np.arange(len(score.pitch_hz)), score.pitch_hz)
    phase = np.cumsum(pitch_hz / SAMPLE_RATE_HZ)
    pulses = np.searchsorted(phase, np.arange(1, int(phase[-1]) + 1))
    pulses = pulses[pulses < samples]
    late = (phase[pulses] % 1.0) * SAMPLE_RATE_HZ / pitch_hz[pulses]  # by so much of a sample
    frames = pulses // _FRAME_SAMPLES
    # Jitter of loudness from pulse to pulse (shimmer) takes the machine out of the voice.
    loudness = score.loudness[frames] * (1 + 0.06 * rng.standard_normal(len(pulses)))

    ring = np.arange(_RING_SAMPLES) / SAMPLE_RATE_HZ
    # A pulse does not begin at once: a rise of 0.8 ms gives the spectrum its slope.
    rise = np.minimum(1.0, ring / 0.0008)
    rise = 0.5 - 0.5 * np.cos(np.pi * rise)
    decay = np.exp(-np.pi * _BANDWIDTHS_HZ[:, None] * ring) * (_FORMANT_GAINS[:, None] * rise)
    sound = np.zeros(samples + _RING_SAMPLES)
    for index in np.flatnonzero(score.loudness[frames] > 1e-3):
        time_s = ring + late[index] / SAMPLE_RATE_HZ
        formants_hz = score.formants_hz[frames[index]][:, None]
        answer = (decay * np.sin(2 * np.pi * formants_hz * time_s)).sum(axis=0)
        start = pulses[index]
        sound[start : start + _RING_SAMPLES] += loudness[index] * answer
    return sound[:samples]


def _add_consonants(rng: np.random.Generator, score: _Score, sound: NDArray[np.float64]) -> None:
    for frame, kind in score.consonants:
        centre_hz, width_hz, length_ms, closed = _CONSONANTS[kind]
        length = length_ms * _FRAME_SAMPLES
        spectrum = np.fft.rfft(rng.standard_normal(length))
        hz = np.fft.rfftfreq(length, 1 / SAMPLE_RATE_HZ)
        spectrum *= np.exp(-(((hz - centre_hz) / width_hz) ** 2))
        noise = np.fft.irfft(spectrum, length)
        noise *= 0.12 / np.sqrt(np.mean(noise**2))
        shape = np.exp(-4 * np.arange(length) / length) if closed else np.hanning(length)
        start = frame * _FRAME_SAMPLES
        here = sound[start : start + length]
        here += (noise * shape)[: len(here)]


def _level(sound: NDArray[np.float64]) -> Samples:
    power = sound[: len(sound) // 960 * 960].reshape(-1, 960)
    power = np.mean(power**2, axis=1) if len(power) else np.array([np.mean(sound**2)])
    active = power[power > power.max() * 1e-4]  # 40 dB below the loudest 20 ms is a pause
    if power.max() > 0:
        sound *= 10 ** (_ACTIVE_LEVEL_DBFS / 20) / np.sqrt(active.mean())
        sound *= min(1.0, _PEAK / np.abs(sound).max())
    return sound.astype(np.float32)
