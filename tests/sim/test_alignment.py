"""Frames that reach the server just before a tick takes them."""

from collections.abc import Iterator
from itertools import cycle

import numpy as np
import pytest
from numpy.typing import NDArray

from protocol import frames
from protocol.frames import Settings
from spaces_client.stats import stats_of
from spaces_client.synth import synthesise_voice
from tests.sim.network import CLEAN, Path
from tests.sim.world import World

SEEDS = range(3)  # each with another phase of the speaker's frames
SECONDS = 12


def spoken(samples: int) -> Iterator[NDArray[np.float32]]:
    """A voice with pauses, for ever."""
    voice = synthesise_voice(1, 6)
    return cycle(voice[: len(voice) // samples * samples].reshape(-1, samples))


def evening(seed: int, path: Path, *, low_delay: bool, aligned: bool) -> tuple[float, int, int]:
    """-> (delay from mouth to ear in ms, what is still to spare at the server in samples, samples
    concealed there)."""
    world = World(seed, path)
    world.clocked, world.aligned = True, aligned
    host, listener = world.gathered([300.0], 1, Settings(low_delay=low_delay))
    host.script = spoken(host.client.profile.frame_samples)
    listener.client.clocks.measuring = True
    world.run(SECONDS * 1_000)
    [speaker] = stats_of(listener.client, output_ms=0).speakers
    clocks = world.answer(host, frames.AskClock)
    assert isinstance(clocks, frames.Clocks)
    assert speaker.delay_ms is not None
    (room,) = world.node._rooms.values()
    concealed_samples = room.mix.sources[host.me.id].stats.concealed_samples
    return speaker.delay_ms, clocks.spare, concealed_samples


@pytest.mark.parametrize("low_delay", [False, True])
def test_whoever_speaks_is_heard_sooner(low_delay: bool) -> None:
    frame = 480 if low_delay else 960
    before = [evening(seed, CLEAN, low_delay=low_delay, aligned=False) for seed in SEEDS]
    after = [evening(seed, CLEAN, low_delay=low_delay, aligned=True) for seed in SEEDS]
    assert max(spare for _, spare, _ in before) > frame / 2, "they lie anywhere between two ticks"
    assert max(spare for _, spare, _ in after) <= 144, "2 ms are kept, 1 ms is not worth a move"
    gained_ms = np.mean([ms for ms, _, _ in before]) - np.mean([ms for ms, _, _ in after])
    spare = np.mean([spare for _, spare, _ in before]) - np.mean([spare for _, spare, _ in after])
    assert gained_ms == pytest.approx(spare / 48, abs=1.5), "all that was spare"
    assert all(concealed == 0 for _, _, concealed in after)


def test_on_a_path_that_trembles_nothing_is_late_for_it() -> None:
    """What is spare is beyond the margin that the path needs."""
    trembles = Path(latency_ms=40, jitter_ms=10)
    before = [evening(seed, trembles, low_delay=False, aligned=False) for seed in SEEDS]
    after = [evening(seed, trembles, low_delay=False, aligned=True) for seed in SEEDS]
    assert sum(ms for ms, _, _ in after) < sum(ms for ms, _, _ in before)
    late = [sum(concealed for _, _, concealed in rows) for rows in (before, after)]
    assert late[1] <= late[0] + 960, f"{late} samples concealed"
