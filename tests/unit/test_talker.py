"""From a microphone's blocks to packets: talkspurts, silence, timestamps."""

import re

import numpy as np
import pytest
from numpy.typing import NDArray

from protocol.opus import Decoder, packet_has_fec
from protocol.packets import AudioFlag, UplinkAudio
from protocol.playout import Playout
from protocol.redundancy import NO_REMEDY, Remedy
from spaces_client.synth import synthesise_voice
from spaces_client.talker import DTX_BYTES, Talker

FRAME = 960
Samples = NDArray[np.float32]


def tone(frame: int, level: float = 0.2) -> Samples:
    """Swells like syllables: a steady tone is noise to a voice codec."""
    at = np.arange(frame * FRAME, (frame + 1) * FRAME) / 48_000
    swell = 0.55 - 0.45 * np.cos(2 * np.pi * 4 * at)
    return (level * swell * np.sin(2 * np.pi * 440 * at)).astype(np.float32)


def noise(rng: np.random.Generator, level_dbfs: float) -> Samples:
    return (rng.standard_normal(FRAME) * 10 ** (level_dbfs / 20)).astype(np.float32)


def told(packets: list[UplinkAudio | None]) -> str:
    """F, L or - for each packet, . for none."""
    return "".join("." if p is None else "-FL"[p.flags] for p in packets)


def test_digital_silence_is_no_packet() -> None:
    talker = Talker(complexity=0)
    assert told([talker.talk(np.zeros(FRAME, np.float32)) for _ in range(100)]) == "." * 100


def test_a_talkspurt() -> None:
    talker = Talker(complexity=0)
    silence = np.zeros(FRAME, np.float32)
    blocks = [silence] * 3 + [tone(i) for i in range(10)] + [silence] * 5 + [tone(0)] * 2
    assert told([talker.talk(block) for block in blocks]) == "...F---------L....F-"


def test_timestamps_count_silence_too_and_wrap() -> None:
    start = 2**32 - 4 * FRAME
    talker = Talker(complexity=0, timestamp=start)
    silence = np.zeros(FRAME, np.float32)
    blocks = [silence] * 2 + [tone(i) for i in range(5)] + [silence] * 3 + [tone(0)]
    packets = [talker.talk(block) for block in blocks]
    assert sum(p is not None for p in packets) == 7
    for number, packet in enumerate(packets):
        if packet is not None:
            assert packet.timestamp == (start + number * FRAME) % 2**32


def test_what_is_left_out_counts() -> None:
    talker = Talker(complexity=0, timestamp=5)
    assert not talker.talking
    talker.talk(tone(0))
    assert talker.talking
    talker.pause(FRAME)
    talker.leave_out(240)
    packet = talker.talk(tone(0))
    assert packet is not None
    assert packet.timestamp == 5 + 2 * FRAME + 240


def test_a_pause_ends_a_talkspurt_once() -> None:
    talker = Talker(complexity=0)
    assert talker.pause(FRAME) is None
    for frame in range(3):
        talker.talk(tone(frame))
    last = talker.pause(FRAME)
    assert last is not None
    assert (last.flags, last.timestamp) == (AudioFlag.LAST, 4 * FRAME)
    assert talker.pause(FRAME) is None
    again = talker.talk(tone(0))
    assert again is not None
    assert (again.flags, again.timestamp) == (AudioFlag.FIRST, 6 * FRAME)


@pytest.mark.parametrize("level_dbfs", [-60, -70, -80])
def test_steady_noise_is_silence_after_a_while(level_dbfs: float) -> None:
    """A room is never digitally silent; it must not cost a packet every few hundred ms."""
    talker = Talker(complexity=0)
    rng = np.random.default_rng(1)
    packets = [talker.talk(noise(rng, level_dbfs)) for _ in range(500)]
    spurts = told(packets).replace(".", " ").split()
    assert 1 <= len(spurts) <= 3  # libopus may take noise for a voice once in a while
    assert all(re.fullmatch("F-*L", spurt) for spurt in spurts)
    assert sum(p is not None for p in packets) < 50


def test_speech_after_noise_begins_at_once() -> None:
    """Wherever in the rhythm of Opus's refreshes it begins: at most one block is lost."""
    late = []
    for quiet in range(40, 62):
        talker = Talker(complexity=0)
        rng = np.random.default_rng(1)
        for _ in range(quiet):
            talker.talk(noise(rng, -70))
        packets = [talker.talk(tone(10 + i) + noise(rng, -70)) for i in range(10)]
        late.append(told(packets).index("F"))
        assert "." not in told(packets)[late[-1] :]
    assert max(late) <= 1
    assert sum(late) <= 2


def test_every_talkspurt_starts_cold() -> None:
    """Its packets depend on nothing before FIRST, as those who reset their decoders expect."""
    warm, fresh = Talker(complexity=0), Talker(complexity=0)
    for frame in range(30):
        warm.talk(tone(frame))
    warm.pause(FRAME)
    for frame in range(20):
        later, first = warm.talk(tone(frame)), fresh.talk(tone(frame))
        assert later is not None
        assert first is not None
        assert (later.opus, later.flags) == (first.opus, first.flags)


def test_a_voice_comes_through_with_its_pauses() -> None:
    """Speech with pauses, through a playout: nothing that is loud is cut."""
    voice = synthesise_voice(3, 6.0)
    rng = np.random.default_rng(2)
    talker = Talker(complexity=0)
    playout = Playout()
    heard, said, sent = [], [], 0
    for frame in range(len(voice) // FRAME):
        now_ns = frame * 20_000_000
        block = voice[frame * FRAME : (frame + 1) * FRAME] + noise(rng, -75)
        packet = talker.talk(block)
        if packet is not None:
            sent += 1
            first, last = (bool(packet.flags & f) for f in (AudioFlag.FIRST, AudioFlag.LAST))
            playout.insert(packet.timestamp, packet.opus, now_ns, first=first, last=last)
        out = np.zeros(FRAME, np.float32)
        playout.pull(out, now_ns)
        said.append(float(np.sqrt(np.mean(block**2))))
        heard.append(float(np.sqrt(np.mean(out**2))))
    assert playout.stats.concealed_samples == 0
    assert 0 < sent <= len(said)
    for frame, level in enumerate(said[:-3]):
        if level > 0.05:
            assert max(heard[frame : frame + 4]) > level / 3, f"frame {frame} is missing"


def test_the_last_packet_can_be_decoded() -> None:
    talker = Talker(complexity=0)
    decoder = Decoder()
    out = np.zeros(FRAME, np.float32)
    packets = [talker.talk(tone(frame)) for frame in range(5)] + [talker.pause(FRAME)]
    for packet in packets:
        assert packet is not None
        assert len(packet.opus) > DTX_BYTES or packet.flags & AudioFlag.LAST
        assert decoder.decode(packet.opus, out) == FRAME


def test_fec_comes_with_losses_and_goes_with_them() -> None:
    talker = Talker()
    voice = synthesise_voice(1, 3.0).reshape(-1, FRAME)

    def with_fec(blocks: Samples) -> int:
        packets = [talker.talk(block) for block in blocks]
        return sum(p is not None and packet_has_fec(p.opus) for p in packets)

    assert with_fec(voice[:50]) == 0
    talker.follow(Remedy(expected_loss_percent=10))
    assert with_fec(voice[50:100]) > 10
    talker.follow(NO_REMEDY)
    talker.talk(voice[100])  # what was said before is in this one still
    assert with_fec(voice[101:]) == 0


def test_half_the_rate_while_the_way_is_too_narrow() -> None:
    talker = Talker(bitrate=32_000)
    voice = synthesise_voice(1, 3.0).reshape(-1, FRAME)

    def sent_bytes(blocks: Samples) -> int:
        return sum(len(p.opus) for p in map(talker.talk, blocks) if p is not None)

    before = sent_bytes(voice[:50])
    talker.follow(Remedy(half_rate=True))
    assert sent_bytes(voice[:50]) < 0.6 * before
    talker.follow(NO_REMEDY)
    assert sent_bytes(voice[:50]) > 0.9 * before
