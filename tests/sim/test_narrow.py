"""Links that are too narrow for what goes over them."""

import numpy as np

from spaces_client.synth import synthesise_voice
from tests.sim.network import CLEAN, MS, Path
from tests.sim.world import Person, World

SECONDS = 60
NARROW_BITS_PER_S = 40_000  # a mix needs some 60,000 while somebody talks, with all headers


def delay_ms(person: Person) -> float:
    return person.client.playout.stats.delay_ns / MS


def rates(world: World) -> list[tuple[int, int]]:
    """Of each mix: bitrate, members."""
    return sorted(
        (mix_class.encoder.bitrate, len(mix_class))
        for mix in world.node.mixer._awake
        for mix_class in mix.plan.classes
    )


def test_a_listener_behind_a_narrow_link_gets_less_and_the_others_do_not() -> None:
    world = World(1, CLEAN)
    host, far, near = world.gathered([300.0], 2)
    host.script = iter(synthesise_voice(1, SECONDS).reshape(-1, 960))
    world.run(4_500)
    assert rates(world) == [(32_000, 2)]
    before_ms = delay_ms(far)

    world.network.narrow(far.address, NARROW_BITS_PER_S)
    most_ms = 0.0
    for _ in range(100):
        world.run(100)
        most_ms = max(most_ms, delay_ms(far))
    assert rates(world) == [(16_000, 1), (32_000, 1)]
    assert 100 < most_ms < 500
    lost, concealed = far.client.received.lost, far.client.playout.stats.concealed_samples
    world.run(2_000)
    assert delay_ms(far) < 150, "the queue is gone"
    assert far.client.received.lost == lost
    assert far.client.playout.stats.concealed_samples == concealed
    assert delay_ms(near) < 30
    assert not near.client.playout.stats.concealed_samples

    world.network.narrow(far.address, None)
    world.run(30_000)
    assert rates(world) in ([(32_000, 2)], [])
    assert delay_ms(far) < before_ms + 20


def test_a_speaker_behind_a_narrow_link_sends_less() -> None:
    world = World(2, CLEAN)
    host, listener = world.gathered([300.0], 1)
    host.script = iter(synthesise_voice(2, SECONDS).reshape(-1, 960))
    sent: list[int] = []
    world.on_send.append(
        lambda source, _, data: sent.append(len(data)) if source == host.address else None
    )
    world.run(4_000)
    wide, sent[:] = np.mean(sent), []
    world.network.narrow(host.address, NARROW_BITS_PER_S)
    world.run(8_000)
    sent.clear()
    concealed = listener.client.playout.stats.concealed_samples
    world.run(3_000)
    assert np.mean(sent) < 0.75 * wide
    assert listener.client.playout.stats.concealed_samples == concealed


def test_jitter_and_loss_alone_take_no_bits_away() -> None:
    world = World(3, Path(jitter_ms=25, loss=0.05, reorder=0.05))
    host, _, _ = world.gathered([300.0], 2)
    host.script = iter(synthesise_voice(3, SECONDS).reshape(-1, 960))
    for _ in range(40):
        world.run(500)
        assert all(bitrate == 32_000 for bitrate, _ in rates(world))
