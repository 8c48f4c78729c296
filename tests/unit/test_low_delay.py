"""Spaces with frames of 10 ms, beside those of 20: half ticks are theirs alone."""

from functools import partial

import numpy as np
import pytest

from protocol import frames
from protocol.connection import MS
from protocol.frames import Settings
from protocol.opus import Decoder, Encoder, packet_samples
from protocol.packets import DownlinkAudio, Kind, UplinkAudio
from protocol.profile import VOICE, Profile
from protocol.redundancy import Remedy
from spaces_server.mixer.crowd import Crowd
from spaces_server.mixer.egress import Egress
from spaces_server.mixer.mixer import Mixer, SpaceMix
from tests.sim.world import SECOND, second_of
from tests.unit.hall import Hall
from tests.unit.test_mixer import deliver, pair

HALF_NS = 10 * MS
LOW_DELAY = Profile(frame_samples=480)
HZ = 440
TONE = np.float32(0.79) * second_of(HZ)  # at -26 LUFS: the mixer leaves it as it is


class Rig:
    """Spaces, each with one who speaks and two who listen; a step is 10 ms."""

    def __init__(self, *profiles: Profile) -> None:
        self.egress = Egress()
        self.mixer = Mixer(self.egress, partial(Encoder, complexity=0), map, Crowd(1, 60))
        self.pairs = [pair(number) for number in range(3 * len(profiles))]
        self.mixes: list[SpaceMix] = []
        for profile in profiles:
            mix = self.mixer.open(profile)
            for member in range(3):
                row = self.egress.add(self.pairs[3 * len(self.mixes) + member].server)
                mix.add_member(member, row, 20)
            mix.add_source(0, 0)
            self.mixes.append(mix)
        self.heard: list[list[tuple[int, DownlinkAudio]]] = [[] for _ in self.pairs]
        self.steps = 0
        self.volume = np.float32(1)  # at which everybody speaks
        self._encoders = [Encoder(complexity=0) for _ in profiles]

    def say(self, space: int, samples: int, end: int) -> None:
        """A frame whose last sample is before `end`."""
        sound = self.volume * np.take(TONE, np.arange(end - samples, end), mode="wrap")
        audio = UplinkAudio(end - samples, 0, self._encoders[space].encode(sound))
        assert self.mixer.receive(self.mixes[space], 0, audio, end * 62_500 // 3 - 3 * MS)

    def step(self, *frame_samples: int) -> None:
        """frame_samples: of what is said in each space."""
        self.steps += 1
        now = self.steps * 480
        for space, samples in enumerate(frame_samples):
            for end in range(now - 360, now + 1, 120):
                if samples and end % samples == 0:
                    self.say(space, samples, end)
        half = bool(self.steps % 2)
        if half and not self.mixer.hurried:
            return
        self.mixer.tick(self.steps * 480, self.steps * HALF_NS, half=half)
        got = deliver(self.egress.seal(), self.pairs)
        for person, heard in zip(self.pairs, self.heard, strict=True):
            for kind, plaintext in got.get(person.address, []):
                assert kind == Kind.AUDIO
                heard.append((self.steps, DownlinkAudio.unpack(plaintext)))


def test_copies_reach_120_ms_back() -> None:
    rig = Rig(LOW_DELAY)
    rig.mixes[0].plan.set_remedy(1, Remedy((4, 8, 12)))
    for _ in range(50):
        rig.step(480)
    _, newest = rig.heard[1][-1]
    assert [copy.back * 2.5 for copy in newest.copies] == [120, 80, 40]
    made = {audio.timestamp: audio.opus for _, audio in rig.heard[2]}
    assert [made[copy.timestamp(newest.timestamp)] for copy in newest.copies] == [
        copy.opus for copy in newest.copies
    ]


@pytest.mark.parametrize("said", [480, 960, 1_920, 120])
def test_each_10_ms_is_mixed_and_sent(said: int) -> None:
    """Whatever the frames are that come."""
    rig = Rig(LOW_DELAY)
    for _ in range(400):
        rig.step(said)
    heard = rig.heard[1][-300:]
    assert [step for step, _ in heard] == list(range(101, 401))
    assert {packet_samples(audio.opus) for _, audio in heard} == {480}
    assert {audio.timestamp - step * 480 for step, audio in heard} == {0}
    decoder, out = Decoder(), np.zeros((len(heard), 480), np.float32)
    for (_, audio), part in zip(heard, out, strict=True):
        decoder.decode(audio.opus, part)
    played = out.ravel()[-SECOND:]
    level = np.sqrt(np.mean(played**2))
    assert level == pytest.approx(np.sqrt(np.mean(TONE**2)), rel=0.15)
    assert np.abs(np.fft.rfft(played)).argmax() == pytest.approx(HZ, abs=10)


def test_a_quiet_speaker_is_turned_up_over_the_same_time_as_with_20_ms() -> None:
    rig = Rig(VOICE, LOW_DELAY)
    rig.volume = np.float32(0.2)
    slow, quick = [], []
    for _ in range(400):
        rig.step(960, 480)
        rig.step(960, 480)
        slow.append(rig.mixes[0]._levellers[0].gain_db)
        quick.append(rig.mixes[1]._levellers[0].gain_db)
    assert slow[-1] == pytest.approx(14, abs=1.5)
    assert max(abs(a - b) for a, b in zip(slow, quick, strict=True)) < 0.7


def test_a_space_of_20_ms_does_not_notice_another_of_10() -> None:
    """The same packets at the same ticks, bit for bit, and the same number of encodes."""
    alone, beside = Rig(VOICE), Rig(VOICE, LOW_DELAY)
    for _ in range(300):
        alone.step(960)
        beside.step(960, 480)
    assert alone.heard[1]
    assert alone.heard == beside.heard[:3]
    assert not any(step % 2 for step, _ in alone.heard[1])
    own = beside.mixer.stats.encodes - alone.mixer.stats.encodes
    assert own == len(beside.heard[4])


def test_half_ticks_end_when_the_space_is_silent() -> None:
    rig = Rig(VOICE, LOW_DELAY)
    assert not rig.mixer.hurried
    for _ in range(20):
        rig.step(960, 480)
    assert rig.mixer.hurried
    for _ in range(60):
        rig.step(960, 0)
    assert not rig.mixer.hurried
    assert rig.mixer.awake


def test_nobody_is_in_a_crowd_where_the_delay_is_to_be_low() -> None:
    rig = Rig(LOW_DELAY)
    plan = rig.mixes[0].plan
    for member in range(3, 60):
        rig.pairs.append(pair(member))
        rig.mixes[0].add_member(member, rig.egress.add(rig.pairs[-1].server), 60)
        rig.heard.append([])
    for _ in range(50):
        rig.step(480)
    assert len({len(heard) for heard in rig.heard[3:]}) == 1
    assert len(rig.heard[-1]) >= 40
    assert rig.mixes[0].datagrams_a_tick == 2 * plan.datagrams_a_tick


def test_the_space_says_what_it_is_and_stays_so() -> None:
    hall = Hall()
    host = hall.person()
    opened = hall.ask(host, frames.Open, settings=Settings(low_delay=True))
    assert isinstance(opened, frames.Joined)
    assert opened.snapshot.settings.low_delay
    assert host.client.profile == LOW_DELAY
    assert isinstance(hall.ask(host, frames.Configure, chat=False), frames.Ok)
    hall.tick(50)
    assert host.client.view.settings == Settings(low_delay=True, chat=False)
    assert host.client.view.agreed is not False
    assert hall.node.stride() == 2
    for _ in range(20):
        host.client.talk(np.random.default_rng(1).uniform(-0.1, 0.1, 480).astype(np.float32))
        hall.tick(1)
    assert hall.node.stride() == 1
