"""Spaces for music: stereo from one end to the other, and mono where somebody has no more."""

import wave
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from protocol.connection import MS
from protocol.frames import Leave, Settings, Sound
from protocol.opus import Decoder, Encoder, Samples
from protocol.packets import AudioFlag, DownlinkAudio, UplinkAudio
from protocol.profile import VOICE, Profile, profile_of
from spaces_client.audio import cut, with_channels
from spaces_client.devices import Ring
from spaces_client.talker import Talker
from spaces_client.wav import read_blocks, to_pcm16
from spaces_server.mixer.egress import Egress
from spaces_server.mixer.limiter import LIMIT, Limiter
from spaces_server.mixer.mixer import Mixer
from spaces_server.mixer.source import level_dbov
from tests.sim.network import CLEAN
from tests.sim.world import World
from tests.unit.test_mixer import deliver, pair

MUSIC = profile_of(Settings(sound=Sound.MUSIC))
BLOCK = 960


def tones(left_hz: float, right_hz: float, seconds: float = 1.0, level: float = 0.2) -> Samples:
    """(n, 2)"""
    at = np.arange(round(seconds * 48_000)) / 48_000
    sides = [level * np.sin(2 * np.pi * hz * at) if hz else 0 * at for hz in (left_hz, right_hz)]
    return np.stack(sides, axis=1).astype(np.float32)


def mixed(profile: Profile, *voices: tuple[Encoder, Samples]) -> Samples:
    """What a listener decodes, in stereo, of these on stage, each with an encoder of their own."""
    egress = Egress()
    mixer = Mixer(egress, partial(Encoder, complexity=5), map)
    mix = mixer.open(profile)
    *speakers, listener = people = [pair(number) for number in range(len(voices) + 1)]
    for member, person in enumerate(people):
        mix.add_member(member, egress.add(person.server))
    for member, _ in enumerate(speakers):
        mix.add_source(member, member)
    decoder, out = Decoder(2), np.zeros((BLOCK, 2), np.float32)
    heard: list[Samples] = []
    for number in range(len(voices[0][1]) // BLOCK):
        now_ns = number * 20 * MS
        for member, (encoder, sound) in enumerate(voices):
            flags = AudioFlag.FIRST if not number else 0
            opus = encoder.encode(sound[number * BLOCK : (number + 1) * BLOCK])
            audio = UplinkAudio(number * BLOCK, flags, opus)
            assert mixer.receive(mix, member, audio, now_ns)
        mixer.tick(number * BLOCK, now_ns + 12 * MS)
        for _, plaintext in deliver(egress.seal(), people).get(listener.address, []):
            decoder.decode(DownlinkAudio.unpack(plaintext).opus, out)
            heard.append(out.copy())
    return np.concatenate(heard)[-19_200:]


def share(sound: Samples, hz: int) -> float:
    """Of the power of (n,), what lies at this tone."""
    power = np.square(np.abs(np.fft.rfft(sound * np.hanning(len(sound)))))
    at = round(hz * len(sound) / 48_000)
    return float(power[max(0, at - 4) : at + 5].sum() / (power.sum() + 1e-12))


def test_the_sides_stay_apart_through_server_and_codecs() -> None:
    encoder = Encoder(complexity=5, **MUSIC.encoding)
    heard = mixed(MUSIC, (encoder, tones(440, 1_100)))
    assert share(heard[:, 0], 440) > 0.98
    assert share(heard[:, 1], 1_100) > 0.98
    level = float(np.sqrt(np.mean(heard**2)))
    assert level == pytest.approx(0.2 / np.sqrt(2), rel=0.1)


@pytest.mark.parametrize("low_delay", [False, True])
@pytest.mark.parametrize("sound", [Sound.VOICE, Sound.MUSIC])
def test_a_profile_knows_how_far_its_codec_looks_ahead(sound: Sound, low_delay: bool) -> None:
    """A click that goes through it comes out so much later."""
    profile = profile_of(Settings(sound=sound, low_delay=low_delay))
    size = profile.frame_samples
    encoder, decoder = Encoder(**profile.encoding), Decoder(profile.channels)
    assert encoder.lookahead_samples == profile.lookahead_samples
    click: Samples = np.zeros(profile.shape(20 * size), np.float32)
    click[10 * size] = 0.9
    out = np.zeros_like(click)
    for begin in range(0, len(click), size):
        decoder.decode(encoder.encode(click[begin : begin + size]), out[begin : begin + size])
    loudest = int(np.abs(out).reshape(len(out), -1).max(axis=1).argmax())
    assert abs(loudest - 10 * size - profile.lookahead_samples) <= 24


def test_a_packet_in_mono_is_heard_on_both_sides_of_music() -> None:
    mono = with_channels(tones(440, 440), 1)
    stereo = Encoder(complexity=5, **MUSIC.encoding)
    heard = mixed(MUSIC, (Encoder(complexity=5), mono), (stereo, tones(0, 1_100)))
    assert share(heard[:, 0], 440) > 0.95
    assert 0.3 < share(heard[:, 1], 440) < 0.7
    assert share(heard[:, 1], 1_100) > 0.3


def test_a_packet_in_stereo_is_both_its_sides_among_voices() -> None:
    stereo = Encoder(complexity=5, **MUSIC.encoding)
    heard = mixed(VOICE, (stereo, tones(440, 1_100)))
    assert (heard[:, 0] == heard[:, 1]).all()
    assert share(heard[:, 0], 440) > 0.2
    assert share(heard[:, 0], 1_100) > 0.2


def test_a_mix_in_stereo_is_limited_and_levels_are_of_both_sides() -> None:
    loud = 5 * tones(440, 0, 0.02, level=1.0)
    assert Limiter(2).limit(loud) > 4.9
    assert np.abs(loud).max() <= LIMIT
    long, short = 3 * tones(440, 550), 3 * tones(440, 550)
    whole, halves = Limiter(2), Limiter(2)
    for frame in long.reshape(-1, 960, 2):
        whole.limit(frame)
    for frame in short.reshape(-1, 480, 2):
        halves.limit(frame)
    np.testing.assert_allclose(short, long, atol=1e-5)
    one, both = tones(440, 0), tones(440, 440)
    assert level_dbov(one) == level_dbov(both) + 3


def test_loud_music_of_many_stays_below_full_scale() -> None:
    voices = [
        (Encoder(complexity=5, **MUSIC.encoding), tones(hz, 2 * hz, 3, level=0.9))
        for hz in (330, 440, 550)
    ]
    heard = mixed(MUSIC, *voices)
    assert 0.2 < np.abs(heard).max() < 1


@pytest.mark.parametrize("level", [0.01, 0.5])
def test_music_stays_as_loud_as_it_is(level: float) -> None:
    """Voices would be led to the same loudness by now."""
    heard = mixed(MUSIC, (Encoder(complexity=5, **MUSIC.encoding), tones(440, 660, 6, level=level)))
    assert np.sqrt(np.mean(heard**2)) == pytest.approx(level / np.sqrt(2), rel=0.05)


def test_music_is_not_left_out_where_it_is_quiet() -> None:
    """DTX is for voices: a soft noise is a part of the music."""
    noise = (1e-4 * np.random.default_rng(1).standard_normal((100 * BLOCK, 2))).astype(np.float32)
    noise[: 30 * BLOCK] += tones(200, 200, 0.6)
    music = Talker(profile=MUSIC)
    sent = [music.talk(block) for block in noise.reshape(-1, BLOCK, 2)]
    assert None not in sent
    voice = Talker()
    assert None in [voice.talk(block) for block in noise[:, 0].reshape(-1, BLOCK).copy()]
    last = music.talk(np.zeros((BLOCK, 2), np.float32))
    assert last is not None
    assert last.flags & AudioFlag.LAST
    assert music.talk(np.zeros((BLOCK, 2), np.float32)) is None


def test_a_stereo_packet_has_about_128_kbit_s() -> None:
    rng = np.random.default_rng(2)
    talker = Talker(profile=MUSIC, bitrate=24_000)
    blocks = (0.1 * rng.standard_normal((50, BLOCK, 2))).astype(np.float32)
    packets = [talker.talk(block) for block in blocks]
    size = sum(len(packet.opus) for packet in packets if packet is not None)
    assert 96_000 < 8 * size < 160_000


def test_channels_are_made_of_each_other() -> None:
    mono = np.array([1, 2, 3], np.float32)
    assert with_channels(mono, 1) is mono
    assert with_channels(mono, 2).tolist() == [[1, 1], [2, 2], [3, 3]]
    assert with_channels(np.array([[0, 1], [2, 4]], np.float32), 1).tolist() == [0.5, 3]
    halves = list(cut([np.zeros((BLOCK, 2), np.float32)], 480))
    assert [half.shape for half in halves] == [(480, 2), (480, 2)]


def test_a_ring_in_stereo_keeps_the_sides_together() -> None:
    ring = Ring(100, 2)
    sound = np.arange(300, dtype=np.float32).reshape(150, 2)
    ring.write(sound[:80])
    out = np.zeros((60, 2), np.float32)
    ring.read(out)
    assert (out == sound[:60]).all()
    ring.write(sound[80:])  # round the end
    out = np.zeros((100, 2), np.float32)
    ring.read(out)
    assert (out[:90] == sound[60:]).all()
    assert not out[90:].any()
    assert (ring.underrun_samples, ring.overrun_samples) == (10, 0)


@pytest.mark.parametrize("rate_hz", [48_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_file_gives_its_first_two_channels(tmp_path: Path, channels: int, rate_hz: int) -> None:
    path = tmp_path / "sound.wav"
    at = np.arange(rate_hz) / rate_hz
    sides = [0.2 * np.sin(2 * np.pi * hz * at) for hz in (500, 900, 1_300)[:channels]]
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(to_pcm16(np.stack(sides, axis=1).astype(np.float32)).tobytes())
    sound = np.concatenate(list(read_blocks(path, channels=2)))
    assert sound.shape == (48_000, 2)
    assert share(sound[:, 0], 500) > 0.95
    assert share(sound[:, 1], 500 if channels == 1 else 900) > 0.95


def test_mono_ends_in_a_space_for_music() -> None:
    """People whose blocks are mono, and whose loudspeaker is."""
    world = World(3, CLEAN)
    host, listener = world.gathered([440.0], 1, Settings(sound=Sound.MUSIC, low_delay=True))
    assert host.client.profile == Profile(frame_samples=480, music=True)
    host.talking = True
    world.run(3_000)
    heard = np.concatenate(listener.heard[-100:])
    assert heard.ndim == 1
    assert np.sqrt(np.mean(heard**2)) > 0.05
    out = np.zeros((480, 2), np.float32)
    assert listener.client.play(out, world.now_ns)
    world.answer(listener, Leave)
    listener.client.play(np.zeros(480, np.float32), world.now_ns)
