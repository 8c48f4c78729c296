"""The delay from mouth to ear that a client shows, beside the one that its sound has."""

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from protocol import frames
from protocol.frames import Settings
from spaces_client.stats import described, stats_of
from spaces_client.synth import synthesise_voice
from tests.sim.network import CLEAN, Path
from tests.sim.world import Person, World

SECONDS = 6
SECOND = 48_000  # samples


def true_delays_ms(said: NDArray[np.float32], begun_ns: int, listener: Person) -> list[float]:
    """By the sound alone, of each second of it: the one that most of that second had.  begun_ns:
    when the first sample was captured."""
    heard = np.concatenate(listener.heard)
    delays_ms = []
    for begin in range(0, len(said), SECOND):
        captured_ns = begun_ns + begin * 62_500 // 3
        first = (captured_ns - listener.heard_since_ns) * 3 // 62_500
        second, later = said[begin : begin + SECOND], heard[max(0, first) :][: 2 * SECOND]
        size = len(second) + len(later)
        likeness = np.fft.irfft(np.fft.rfft(later, size) * np.conj(np.fft.rfft(second, size)), size)
        sample = max(0, first) + int(likeness[:SECOND].argmax())
        heard_ns = listener.heard_since_ns + sample * 62_500 // 3
        delays_ms.append((heard_ns - captured_ns) / 1e6)
    return delays_ms


@pytest.mark.parametrize("path", [CLEAN, Path(latency_ms=60, jitter_ms=8), Path(loss=0.02)])
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("low_delay", [False, True])
def test_the_delay_shown_is_that_of_the_sound(low_delay: bool, seed: int, path: Path) -> None:
    world = World(seed, path)
    world.clocked = True
    host, listener, other = world.gathered([300.0], 2, Settings(low_delay=low_delay))
    samples = host.client.profile.frame_samples
    assert samples == (480 if low_delay else 960)
    said = synthesise_voice(seed, SECONDS)[: SECONDS * 48_000]
    began_ns: list[int] = []

    def script() -> Iterator[NDArray[np.float32]]:
        for block in said.reshape(-1, samples):
            began_ns.append(world.now_ns - samples * 62_500 // 3)
            yield block

    listener.client.clocks.measuring = True
    host.script = script()
    shown_ms = []
    for _ in range(SECONDS * 10):
        world.run(100)
        shown = stats_of(listener.client, output_ms=0)
        [speaker] = shown.speakers
        shown_ms.append(speaker.delay_ms)
    assert speaker.name == "person 0"
    assert speaker.delay_ms is not None
    shown_ms = shown_ms[9::10]  # after each second
    truth_ms = true_delays_ms(said, began_ns[0], listener)
    errors_ms = [abs(ms - true) for ms, true in zip(shown_ms, truth_ms, strict=True) if ms]
    # Where packets are lost the delay grows on the way, while copies are waited for: what is shown
    # is the median of what was played last.
    assert (min(errors_ms) if path.loss else errors_ms[-1]) < 4
    assert stats_of(other.client, output_ms=0).speakers[0].delay_ms is None, "nobody asked"
    assert any("from mouth to ear" in line for line in described(shown))


def test_a_space_of_low_delay_has_less_of_it() -> None:
    delays_ms = []
    for low_delay in (False, True):
        world = World(7, CLEAN)
        world.clocked = True
        host, listener = world.gathered([300.0], 1, Settings(low_delay=low_delay))
        listener.client.clocks.measuring = host.talking = True
        world.run(4_000)
        [speaker] = stats_of(listener.client, output_ms=0).speakers
        assert speaker.delay_ms is not None
        delays_ms.append(speaker.delay_ms)
    assert delays_ms[1] < delays_ms[0] - 15


def test_a_speaker_asks_for_the_clock_only_while_speaking_and_others_not_at_all() -> None:
    world = World(5, CLEAN)
    world.clocked = True
    host, listener = world.gathered([300.0], listeners=1)
    for _ in range(20):
        world.run(1_000)
    assert not host.client.clocks.server.known
    host.talking = True
    world.run(3_000)
    assert host.client.clocks.server.known
    assert not listener.client.clocks.server.known
    answer = world.answer(listener, frames.AskClock)
    assert isinstance(answer, frames.Clocks)
    assert [voice.seat for voice in answer.voices] == [host.me.seat]


def test_what_is_left_out_is_shown_beside_what_is_concealed() -> None:
    world = World(3, CLEAN)
    host, listener = world.gathered([300.0], 1)
    host.talking = True
    world.run(1_000)
    before = stats_of(listener.client, output_ms=0)
    assert (before.concealed_ms, before.skipped_ms) == (0, 0)

    world.network.lose_all(listener.address)
    world.run(500)
    world.network.lose_nothing(listener.address)
    world.run(1_000)
    stats = stats_of(listener.client, output_ms=0)
    assert 190 <= stats.concealed_ms <= 210
    assert 250 <= stats.skipped_ms <= 350  # 500 ms, but for what was concealed
    assert any(line.endswith(f"{stats.skipped_ms:.0f} ms left out") for line in described(stats))
