"""What the work of a tick takes on this machine: measured before the server serves, with the parts
that will do it, in well under GAUGE_NS."""

import os
import socket
import time
from collections.abc import Callable, Iterable
from itertools import cycle, islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from protocol.connection import MS, Connection
from protocol.opus import DEEP_PLC_COMPLEXITY, SAMPLE_RATE, Decoder, Encoder
from protocol.packets import Kind
from protocol.sealing import SessionKeys
from spaces_server.governor import Costs, ladder
from spaces_server.mixer.egress import Egress
from spaces_server.mixer.source import FRAME_SAMPLES
from spaces_server.net.transport import open_transport, pack_address

GAUGE_NS = 300 * MS
WARM_UP, TIMES = 3, 12  # runs, the first of which do not count
LISTENERS = 256
PACKET_BYTES = 90  # of a mix at 32 kbit/s, with its head

T = TypeVar("T")


def _time_ns(work: Callable[[T], object], on: Iterable[T], until_ns: int) -> int:
    """How long `work` takes on one of `on`, used in turn, where nobody disturbs it: the longest of
    the shortest quarter of the runs.  Fewer runs when it is late."""
    took_ns = []
    for item in islice(cycle(on), WARM_UP + TIMES):
        begin_ns = time.monotonic_ns()
        work(item)
        end_ns = time.monotonic_ns()
        took_ns.append(end_ns - begin_ns)
        if end_ns > until_ns:
            break
    counted = sorted(took_ns[WARM_UP:] or took_ns)
    return counted[len(counted) // 4]


def _voice() -> list[NDArray[np.float32]]:
    """Something with harmonics, noise and syllables: silence or a tone would be too easy."""
    seconds = np.arange(FRAME_SAMPLES * (WARM_UP + TIMES)) / SAMPLE_RATE
    tones = sum(np.sin(2 * np.pi * 140 * n * seconds) / n for n in range(1, 20))
    noise = np.random.default_rng(1).standard_normal(len(seconds))
    voice = (0.1 * tones + 0.01 * noise) * (1.2 + np.sin(2 * np.pi * 4 * seconds)) / 2
    return np.split(voice.astype(np.float32), WARM_UP + TIMES)


async def _datagram_ns(until_ns: int) -> int:
    """Sealed under keys of their own, and sent to a socket of ours."""
    egress = Egress()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.bind(("127.0.0.1", 0))
        sink.setblocking(False)
        host, port = sink.getsockname()
        address = pack_address(host, port, socket.AF_INET)
        rows = []
        for index in range(LISTENERS):
            keys = SessionKeys.derive(send=os.urandom(32), receive=os.urandom(32))
            connection = Connection(
                keys,
                remote_index=index,
                address=address,
                now_ns=time.monotonic_ns(),
                entropy=os.urandom,
                keep_alive=False,
            )
            rows.append(egress.add(connection))
            if time.monotonic_ns() > until_ns:
                break
        transport = await open_transport("127.0.0.1", 0, lambda _: None, ipv6=False)

        def tick(plaintext: bytes) -> None:
            egress.put(Kind.AUDIO, plaintext, rows)
            for batch in egress.seal():
                transport.send_batch(batch.arena, batch.lengths, batch.addresses)

        try:
            return _time_ns(tick, [os.urandom(PACKET_BYTES)], until_ns) // len(rows)
        finally:
            transport.close()


async def gauge(complexity: int, bitrate: int) -> Costs:
    """complexity, bitrate: of the mix's encoders.  Raises TransportError where there is no
    loopback."""
    until_ns = time.monotonic_ns() + GAUGE_NS
    voice = _voice()
    encode_ns = {}
    for step in ladder(complexity):
        encoder = Encoder(bitrate=bitrate, complexity=step)
        encode_ns[step] = _time_ns(encoder.encode, voice, until_ns)
    encoder = Encoder(bitrate=bitrate, complexity=complexity)
    decoder = Decoder(complexity=DEEP_PLC_COMPLEXITY)  # as sources have it
    packets = [encoder.encode(samples) for samples in voice]
    out = np.zeros(FRAME_SAMPLES, np.float32)
    decode_ns = _time_ns(lambda packet: decoder.decode(packet, out), packets, until_ns)
    return Costs(encode_ns, decode_ns, await _datagram_ns(until_ns))
