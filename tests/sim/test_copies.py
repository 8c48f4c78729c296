"""Copies on the way up: a speaker's client that is told of losses sends earlier frames again, and
the server plays them."""

import pytest

from protocol.frames import Settings
from protocol.jitter import JitterStats
from protocol.redundancy import NO_REMEDY, Repeater
from spaces_client.synth import synthesise_voice
from tests.sim.network import CLEAN, Path
from tests.sim.world import Person, World

LOSSY = Path(jitter_ms=2, loss=0.08, burst_packets=2)
LEARNING_MS = 5_000  # until reports have told how it is, and the server waits for copies
LOSSY_MS = 20_000
SEEDS = range(40, 50)  # one run makes up so few frames that chance would decide


def spoken(seed: int, *, low_delay: bool) -> tuple[World, Person]:
    """A host who speaks for long, over paths that are clean still."""
    world = World(seed, CLEAN)
    host, _ = world.gathered([300.0], 1, Settings(low_delay=low_delay))
    voice = synthesise_voice(1, 60).reshape(-1, 480 if low_delay else 960)
    host.script = iter(voice)
    world.run(3_000)
    return world, host


def source_stats(world: World, host: Person) -> JitterStats:
    """Of what the server hears of the host."""
    (mix,) = world.node.mixer._mixes
    return mix.sources[host.me.id].stats


def heard_in_losses(world: World, host: Person) -> tuple[int, int]:
    """-> (frames that the server had from a copy, samples that it had to make up)."""
    world.network.path = LOSSY
    world.run(LEARNING_MS)
    stats = source_stats(world, host)
    recovered, concealed = stats.recovered_copy, stats.concealed_samples
    world.run(LOSSY_MS)
    return stats.recovered_copy - recovered, stats.concealed_samples - concealed


@pytest.mark.parametrize("low_delay", [False, True])
def test_a_speaker_whose_packets_are_lost_sends_copies_and_they_are_played(
    low_delay: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    concealed = without_copies = 0
    for seed in SEEDS:
        world, host = spoken(seed, low_delay=low_delay)
        assert host.client._repeater.redundancy.remedy == NO_REMEDY
        assert source_stats(world, host).recovered_copy == 0
        recovered, made_up = heard_in_losses(world, host)
        assert len(host.client._repeater.redundancy.remedy.copies) >= 2
        assert recovered > 30
        concealed += made_up

    monkeypatch.setattr(Repeater, "repeat", lambda _self, audio: audio)
    for seed in SEEDS:
        none, made_up = heard_in_losses(*spoken(seed, low_delay=low_delay))
        assert none == 0
        without_copies += made_up
    assert concealed < without_copies / 3
