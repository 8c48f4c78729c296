"""What the machine itself asks for: a datagram sent, sealed; a frame encoded, decoded.

A server of this kind does little else, so these are the floor that its figures stand on.  Sending
is measured as if it were all that a server does: a process on the server's core hands the kernel
one prebuilt table of datagrams each 20 ms, for a receiver on the generator's core that polls and
counts them.  It is charged what the operating system says it took.

    python -m bench.floor ROWS BYTES BURSTS PORT...     the sending process
"""

import os
import platform
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from cryptography import __version__ as cryptography_version

from bench.polled import ROUND_NS, Poller, Tally, dropped_by_kernel, headers, rest, udp_socket
from bench.process import Process, cores, pinned
from bench.show import json_option, show
from bench.speech import BITRATE, encode_speech
from protocol.opus import LIBRARY, Decoder, Encoder
from protocol.packets import HEADER_BYTES, MAX_DATAGRAM_BYTES, TAG_BYTES, Kind
from spaces_client.audio import BLOCK_SAMPLES
from spaces_client.synth import synthesise_voice
from spaces_server.mixer.egress import BATCH_ROWS
from spaces_server.mixer.seals import best_seals
from spaces_server.net.mmsg import ADDRESS_BYTES, MMSGHDR, SEND_ROWS, pointers, sendmmsg, table
from spaces_server.net.transport import pack_address

TICK_NS = 20_000_000
SOCKETS = 8
STRIDE_STEP_BYTES = 64  # rows of the table begin where cache lines do, as the server's
STARTUP_S = 20.0
WARM_UP_S = 0.3
COMPLEXITIES = (0, 5, 8, 10)
TIMED = 7  # of timed operations, of which the median counts
TIMED_NS = 30_000_000  # each


def measure(listeners: int, datagram_bytes: int, seconds: float) -> dict[str, Any]:
    """-> the figures of `spaces-bench floor`; keys are stable."""
    server_core, generator_core = cores()
    with pinned(generator_core):
        blocks = synthesise_voice(0, 1.0).reshape(-1, BLOCK_SAMPLES)
        (packets,) = encode_speech(1)
        pcm = np.zeros(BLOCK_SAMPLES, np.float32)
        decoder = Decoder()

        def encode_us(complexity: int) -> float:
            encoder = Encoder(bitrate=BITRATE, complexity=complexity)
            return _cost_us(lambda n: encoder.encode(blocks[n % len(blocks)]))

        return {
            "listeners": listeners,
            "datagram_bytes": datagram_bytes,
            "seconds": seconds,
            **_sending(measure_sending(listeners, datagram_bytes, seconds, server_core)),
            "seal_us": _seal_us(datagram_bytes),
            "encode_us": {f"complexity_{c}": encode_us(c) for c in COMPLEXITIES},
            "decode_us": _cost_us(lambda n: decoder.decode(packets[n % len(packets)], pcm)),
            "machine": machine(),
        }


def _cost_us(operation: Callable[[int], object]) -> float:
    """What one call takes; it is given 0, 1, 2 and so on."""
    costs = []
    for _ in range(TIMED):
        number = 0
        start_ns = time.perf_counter_ns()
        while (now_ns := time.perf_counter_ns()) - start_ns < TIMED_NS:
            for _ in range(10):
                operation(number)
                number += 1
        costs.append((now_ns - start_ns) / number / 1e3)
    return round(float(np.median(costs)), 3)


def _seal_us(datagram_bytes: int) -> float:
    """One datagram of a batch, each under a key of its own."""
    seals = best_seals()
    seals.grow(BATCH_ROWS)
    for row in range(BATCH_ROWS):
        seals.set(row, os.urandom(16))
    rows = np.arange(BATCH_ROWS)
    arena = np.zeros((BATCH_ROWS, datagram_bytes), np.uint8)
    plaintext = os.urandom(datagram_bytes - HEADER_BYTES - TAG_BYTES)
    return round(_cost_us(lambda _: seals.seal(rows, plaintext, arena)) / BATCH_ROWS, 3)


@dataclass(frozen=True, slots=True)
class Sending:
    """What came, what was sent of it, what that took, and what the receiver's sockets dropped."""

    delivered: int
    expected: int
    cpu_s: float
    dropped: int

    def __add__(self, other: "Sending") -> "Sending":
        return Sending(
            self.delivered + other.delivered,
            self.expected + other.expected,
            self.cpu_s + other.cpu_s,
            self.dropped + other.dropped,
        )

    @property
    def each_us(self) -> float:
        """CPU time for each that came."""
        return self.cpu_s * 1e6 / max(1, self.delivered)


def _sending(sending: Sending) -> dict[str, Any]:
    return {
        "sendmmsg_us": round(sending.each_us, 3),
        "floor_loss": round(1 - sending.delivered / max(1, sending.expected), 5),
        "floor_valid": sending.dropped == 0,
    }


def measure_sending(
    rows: int, datagram_bytes: int, seconds: float, core: int | None, bursts: int = 1
) -> Sending:
    """Sends `rows` datagrams again and again for this long, in `bursts` parts that follow each
    other by 20 ms; core: the sender's."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(udp_socket()) for _ in range(SOCKETS)]
        ports = [str(one.getsockname()[1]) for one in sockets]
        sender = Process(
            stack,
            [
                *(sys.executable, "-m", "bench.floor"),
                *(str(rows), str(datagram_bytes), str(bursts), *ports),
            ],
            core=core,
        )
        poller, tally = Poller(sockets, room_bytes=MAX_DATAGRAM_BYTES), Tally(rows)

        def receive(seconds: float) -> None:
            until_ns = time.monotonic_ns() + int(seconds * 1e9)
            while (now_ns := time.monotonic_ns()) < until_ns:
                batch = poller.poll_all()
                if batch is not None:
                    _, counters, indices = headers(batch[0])
                    tally.count(indices, counters)
                rest(now_ns + ROUND_NS)

        sender.line(STARTUP_S)
        receive(WARM_UP_S)
        tally.begin()
        before_s = sender.cpu_s()
        receive(seconds)
        cpu_s = sender.cpu_s() - before_s
        return Sending(tally.delivered, tally.expected, cpu_s, dropped_by_kernel(sockets))


def _send(rows: int, datagram_bytes: int, bursts: int, ports: list[int]) -> None:
    """Sends for as long as it lives."""
    one = udp_socket()
    names = np.zeros((rows, ADDRESS_BYTES), np.uint8)
    for number, port in enumerate(ports):
        address = pack_address("127.0.0.1", port, socket.AF_INET)
        names[number :: len(ports)] = np.frombuffer(address, np.uint8)
    stride_bytes = -(-datagram_bytes // STRIDE_STEP_BYTES) * STRIDE_STEP_BYTES
    arena = np.zeros((rows, stride_bytes), np.uint8)
    words = arena[:, :8].view(">u8")[:, 0]  # kind and counter
    arena[:, 8:HEADER_BYTES] = np.arange(rows, dtype=">u4").view(np.uint8).reshape(-1, 4)
    arena[:, HEADER_BYTES:] = np.frombuffer(os.urandom(stride_bytes - HEADER_BYTES), np.uint8)
    messages, vectors = table(rows)
    messages["hdr"]["name"] = pointers(names.ctypes.data, rows, ADDRESS_BYTES)
    messages["hdr"]["namelen"] = 16  # of a sockaddr_in
    vectors["base"] = pointers(arena.ctypes.data, rows, stride_bytes)
    vectors["len"] = datagram_bytes
    edges = [rows * burst // bursts for burst in range(bursts + 1)]
    print("ready", flush=True)
    tick, start_ns = 0, time.monotonic_ns()
    while True:
        first, end = edges[tick % bursts], edges[tick % bursts + 1]
        words[first:end] = Kind.AUDIO << 56 | tick // bursts
        while first < end:
            at = messages.ctypes.data + first * MMSGHDR.itemsize
            sent = sendmmsg(one.fileno(), at, min(SEND_ROWS, end - first), 0)
            if sent <= 0:
                break  # what the kernel does not take is not tried again, as in the server
            first += sent
        tick += 1
        time.sleep(max(0, start_ns + tick * TICK_NS - time.monotonic_ns()) / 1e9)


def machine() -> dict[str, Any]:
    """What was measured on."""
    info = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (info.read_text().splitlines() if info.exists() else ())
        if line.startswith("model name")
    ]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "libopus": str(LIBRARY),
        "cryptography": cryptography_version,
        "seals": best_seals().name,
    }


@click.command("floor")
@click.option("--listeners", default=3_000, show_default=True, type=click.IntRange(1, 100_000))
@click.option(
    "--bytes",
    "datagram_bytes",
    default=128,
    show_default=True,
    type=click.IntRange(HEADER_BYTES + TAG_BYTES, MAX_DATAGRAM_BYTES),
    help="Size of a datagram.",
)
@click.option("--seconds", default=2.0, show_default=True, type=click.FloatRange(0.5, 600))
@json_option
def command(listeners: int, datagram_bytes: int, seconds: float, as_json: bool) -> None:
    """What sending, sealing, encoding and decoding cost on this machine.

    \b
    spaces-bench floor --listeners 3000
    """
    show("The floor", measure(listeners, datagram_bytes, seconds), as_json)


if __name__ == "__main__":
    _rows, _bytes, _bursts, *_ports = (int(text) for text in sys.argv[1:])
    with pinned(None):
        _send(_rows, _bytes, _bursts, _ports)
