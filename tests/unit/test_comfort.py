"""Comfort noise: quiet, only in silences after sound, and without a step."""

import numpy as np
import pytest

from protocol.profile import VOICE, Profile
from spaces_client.audio import AudioOutput, Pull, Samples
from spaces_client.comfort import FADE_IN_SAMPLES, LEVEL_DBFS, ComfortNoise

BLOCK = 480
SECOND = 100  # blocks


class Sink(AudioOutput):
    """Takes what is played, block by block."""

    def __init__(self) -> None:
        self.pull: Pull | None = None
        self.profile = VOICE

    @property
    def delay_ms(self) -> float:
        return 7.0

    def start(self, pull: Pull, profile: Profile = VOICE) -> None:
        self.pull = pull
        self.profile = profile

    def stop(self) -> None:
        self.pull = None


class Rig:
    def __init__(self) -> None:
        self.sink = Sink()
        self.output = ComfortNoise(self.sink)
        self.level = 0.0
        self.output.start(self._pull)

    def _pull(self, out: Samples, now_ns: int) -> None:
        out[:] = self.level

    def play(self, blocks: int, level: float = 0.0) -> Samples:
        self.level = level
        assert self.sink.pull is not None
        played = np.full((blocks, BLOCK), 7, np.float32)  # whatever was there before
        for number, block in enumerate(played):
            self.sink.pull(block, number)
        return played.ravel()


def dbfs(samples: Samples) -> float:
    return float(20 * np.log10(samples.std()))


def test_before_anything_was_heard_there_is_nothing() -> None:
    assert not Rig().play(3 * SECOND).any()


def test_after_sound_a_very_quiet_noise_fades_in_and_stays() -> None:
    rig = Rig()
    rig.play(5, 0.1)
    noise = rig.play(10 * SECOND)
    assert dbfs(noise[FADE_IN_SAMPLES:]) == pytest.approx(LEVEL_DBFS, abs=0.3)
    assert dbfs(noise[: FADE_IN_SAMPLES // 10]) < LEVEL_DBFS - 15
    assert np.abs(noise).max() < 10 ** (-58 / 20)
    assert np.abs(np.diff(noise)).max() < 10 ** (-58 / 20)  # nor where the loop begins again


def test_sound_is_left_as_it_is() -> None:
    rig = Rig()
    assert np.all(rig.play(5, 0.1) == np.float32(0.1))
    rig.play(SECOND)
    sound = rig.play(SECOND, 0.1)
    assert np.abs(sound[: 2 * BLOCK] - 0.1).max() > 0  # fading out, not cut off
    assert np.all(sound[2 * BLOCK :] == np.float32(0.1))


def test_stopped_and_started_again_it_waits_for_sound_again() -> None:
    rig = Rig()
    rig.play(5, 0.1)
    assert rig.play(5).any()
    rig.output.stop()
    assert rig.sink.pull is None
    rig.output.start(rig._pull)
    assert not rig.play(SECOND).any()


def test_the_pauses_of_music_stay_silent() -> None:
    sink = Sink()

    def pull(out: Samples, now_ns: int) -> None:
        out[:] = 0.1 if not now_ns else 0

    ComfortNoise(sink).start(pull, Profile(music=True))
    assert sink.profile.music
    assert sink.pull is not None
    out = np.full((SECOND, BLOCK, 2), 7, np.float32)
    for number, block in enumerate(out):
        sink.pull(block, number)
    assert np.all(out[0] == np.float32(0.1))
    assert not out[1:].any()


def test_the_device_tells_what_it_holds() -> None:
    assert ComfortNoise(Sink()).delay_ms == 7
