"""Janus as a peer: its AudioBridge mixes, and hands the mix out in three ways.

    janus-audiobridge   listeners are participants: each one's mix is encoded for it; plain RTP
    janus-forward       the mix is encoded once and forwarded to each listener; plain RTP
    janus-srtp          the same, sealed for each listener under a key of its own; SRTP

Talkers are participants by plain RTP in all three, and what they hear is sent but not counted, as
it is with the other servers.  A listener among the participants is muted and sends one packet, at
first: Janus wants to hear from somebody before it sends to him.

Streams are told apart by what is in clear in each packet.  All participants of a room have the same
SSRC, so up to 32 of them share a socket of ours and each has a payload type of its own.  Of the
forwarders each has an SSRC of its own.

The room runs at 48 kHz and 32 kbit/s, as this server does, with Janus's own encoder complexity, and
its queue of a talker's packets is as short as it can be: with less than one packet Janus drops them
all.  That changes the delay (the usual six packets are 120 ms), not the cost of a packet.
"""

import base64
import itertools
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.peers import rtp
from bench.peers.heard import PACKET_SAMPLES, Speech, decode
from bench.peers.window import Window, late_p99_ms
from bench.polled import ROUND_NS, Poller, Tally, dropped_by_kernel, rest, udp_socket
from bench.process import Process, ProcessError, cores, pinned
from bench.search import MAX_LOSS
from protocol.opus import OpusError

PACKET_NS = 20_000_000
PACKETS_A_SECOND = 50
HOST = "127.0.0.1"
ROOM = 1
BITRATE = 32_000
PREBUFFERING_PACKETS = 1
FORWARDS_A_SOCKET = 1_024
SETTLING = 10  # seconds at most
SAMPLED = 4  # listeners whose packets are opened and decoded
PIECE = 50  # packets of these which are looked for in the speech at a time

# A Janus whose Unix socket's thread runs before the rest of it is ready closes that socket at once,
# and then ends, for want of a way to be spoken to.  So it may need to be started again.
STARTS = 5
START_S = 2.0
ANSWER_S = 10.0
MESSAGE_BYTES = 1 << 20
PACKET_BYTES = 512  # room for one of Janus's: at 32 kbit/s they hold some 80

BEHIND_TICKS = 2

CONFIGURATION = {
    "janus.jcfg": """\
general: {{
    debug_level = 3
    session_timeout = 0
    interface = "{host}"
}}
plugins: {{ disable = "{plugins}" }}
transports: {{ disable = "{transports}" }}
loggers: {{ disable = "libjanus_jsonlog.so" }}
""",
    "janus.plugin.audiobridge.jcfg": """\
general: {{ local_ip = "{host}" }}
""",
    "janus.transport.pfunix.jcfg": """\
general: {{
    enabled = true
    json = "compact"
    path = "{path}"
}}
""",
}
OTHER_PLUGINS = (
    "duktape", "echotest", "lua", "nosip", "recordplay", "sip", "streaming", "textroom",
    "videocall", "videoroom", "voicemail",
)  # fmt: skip
OTHER_TRANSPORTS = ("http", "mqtt", "nanomsg", "rabbitmq", "websockets")


# -- what Janus is asked ------------------------------------------------------------------------


def room() -> dict[str, Any]:
    """The body that makes the room."""
    return {
        "request": "create",
        "room": ROOM,
        "sampling_rate": 48_000,
        "default_bitrate": BITRATE,
        "default_prebuffering": PREBUFFERING_PACKETS,
        "allow_rtp_participants": True,
    }


def participant(port: int, payload_type: int, *, muted: bool) -> dict[str, Any]:
    """The body by which somebody joins, who listens at our port."""
    return {
        "request": "join",
        "room": ROOM,
        "muted": muted,
        "rtp": {"ip": HOST, "port": port, "payload_type": payload_type},
    }


def forwarder(port: int, ssrc: int, key: bytes | None) -> dict[str, Any]:
    """The body that forwards the mix to our port.  key: SRTP's 30 bytes; None: plain RTP."""
    body = {
        "request": "rtp_forward",
        "room": ROOM,
        "host": HOST,
        "port": port,
        "ssrc": ssrc,
        "codec": "opus",
        "ptype": rtp.DYNAMIC_TYPES[0],
    }
    if key is None:
        return body
    return body | {"srtp_suite": 80, "srtp_crypto": base64.b64encode(key).decode()}


class JanusError(Exception):
    """Janus refuses a request, or does not answer."""


class Control:
    """Janus's API over its Unix socket: a request and its reply, a JSON object a message."""

    def __init__(self, connection: socket.socket) -> None:
        """connection: a connected SOCK_SEQPACKET."""
        self._socket = connection
        self._numbers = itertools.count(1)
        self._session: dict[str, Any] = {}

    def request(self, what: str, **fields: Any) -> dict[str, Any]:
        """-> the reply; where Janus first says that it is at it, what comes of it.
        Raises JanusError."""
        transaction = str(next(self._numbers))
        message = {"janus": what, "transaction": transaction} | self._session | fields
        self._socket.settimeout(ANSWER_S)
        try:
            self._socket.send(json.dumps(message).encode())
            while True:
                reply = self._receive()
                # Other messages are news about the others in the room.
                if reply.get("transaction") == transaction and reply["janus"] != "ack":
                    break
        except OSError as error:
            raise JanusError(f"Janus does not answer '{what}': {error}") from error
        if reply["janus"] == "error":
            raise JanusError(f"Janus refuses '{what}': {reply['error']['reason']}")
        return reply

    def _receive(self) -> dict[str, Any]:
        data = self._socket.recv(MESSAGE_BYTES)
        if not data:
            raise ConnectionResetError("it has closed the connection")
        message: dict[str, Any] = json.loads(data)
        return message

    def begin(self) -> str:
        """Opens the session to which all that is asked from then on belongs; -> Janus's version.
        Raises JanusError."""
        version = str(self.request("info")["version_string"])
        self._session = {"session_id": self.request("create")["data"]["id"]}
        return version

    def handle(self) -> int:
        """A handle of the AudioBridge; each participant needs one.  Raises JanusError."""
        reply = self.request("attach", plugin="janus.plugin.audiobridge")
        return int(reply["data"]["id"])

    def ask(self, handle: int, body: dict[str, Any]) -> dict[str, Any]:
        """-> what the AudioBridge replies.  Raises JanusError."""
        reply = self.request("message", handle_id=handle, body=body)
        data: dict[str, Any] = reply["plugindata"]["data"]
        if "error" in data:
            raise JanusError(f"the AudioBridge refuses '{body['request']}': {data['error']}")
        return data

    def join(self, body: dict[str, Any]) -> tuple[str, int]:
        """A participant; -> where his packets go.  Raises JanusError."""
        return HOST, int(self.ask(self.handle(), body)["rtp"]["port"])

    def skip_news(self) -> int:
        """Takes what has come about others, unread, since Janus stands still when nobody does;
        -> how many messages.  Raises JanusError."""
        self._socket.setblocking(False)
        count = 0
        try:
            while self._socket.recv(MESSAGE_BYTES):
                count += 1
        except BlockingIOError:
            return count
        except OSError as error:
            raise JanusError(f"Janus is gone: {error}") from error
        raise JanusError("Janus has closed the connection")


def _start(stack: ExitStack, core: int | None) -> tuple[Process, Control, str]:
    """-> a Janus of its own configuration, the way to speak to it, its version.
    Raises ProcessError."""
    for _ in range(STARTS):
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="janus-")))
        path = folder / "api"
        values = {
            "host": HOST,
            "path": path,
            "plugins": ",".join(f"libjanus_{name}.so" for name in OTHER_PLUGINS),
            "transports": ",".join(f"libjanus_{name}.so" for name in OTHER_TRANSPORTS),
        }
        for name, text in CONFIGURATION.items():
            (folder / name).write_text(text.format(**values))
        command = ["janus", "--configs-folder", str(folder)]
        server = Process(stack, command, core=core, ordinary=True)
        connection = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        control = Control(connection)
        until_s = time.monotonic() + START_S
        while time.monotonic() < until_s:
            try:
                connection.connect(str(path))
                return server, control, control.begin()
            except (OSError, JanusError):
                time.sleep(0.02)
        server.stop()
    raise ProcessError(f"janus cannot be spoken to, after {STARTS} starts of {START_S:g} s each")


# -- who speaks, and who listens ------------------------------------------------------------------


@dataclass
class _Talker:
    """A participant who speaks: to where, what, when the next packet is due, when the others
    were sent."""

    address: tuple[str, int]
    packets: Sequence[bytes]
    due_ns: int
    sent_ns: list[int] = field(default_factory=list)

    def next_packet(self, now_ns: int) -> bytes:
        """The packet that is due, and on to the next."""
        number = len(self.sent_ns)
        self.sent_ns.append(now_ns)
        self.due_ns += PACKET_NS
        payload = self.packets[number % len(self.packets)]
        return rtp.pack(
            rtp.DYNAMIC_TYPES[0], number, number * PACKET_SAMPLES, self.address[1], payload
        )


class _People:
    """Talkers who speak and listeners whose packets are counted, in one loop."""

    def __init__(
        self, stack: ExitStack, control: Control, listeners: int, a_socket: int, *, by_ssrc: bool
    ) -> None:
        """by_ssrc: listener n has SSRC n + 1, otherwise the payload type tells who on a socket it
        is."""
        self._control = control
        self._a_socket = a_socket
        self._by_ssrc = by_ssrc
        self._sockets = [
            stack.enter_context(udp_socket()) for _ in range(-(-listeners // a_socket))
        ]
        self._speaking = stack.enter_context(udp_socket())  # what talkers hear comes here
        self.talkers: list[_Talker] = []
        self.tally = Tally(listeners)
        # when each packet of the first listeners came (ns), and the packet
        self.sample: list[list[tuple[int, bytes]]] = [[] for _ in range(min(listeners, SAMPLED))]
        self._lateness_ns: list[int] = []
        self._busy_ns = 0
        self._news = 0
        self._inbox: list[tuple[int, int, NDArray[np.uint8], NDArray[np.intp]]] = []
        self._poller = Poller([*self._sockets, self._speaking], room_bytes=PACKET_BYTES)

    def socket_of(self, listener: int) -> socket.socket:
        """Where this listener listens."""
        return self._sockets[listener // self._a_socket]

    def port_of(self, listener: int) -> int:
        return int(self.socket_of(listener).getsockname()[1])

    def talk(self, addresses: Sequence[tuple[str, int]], speech: Sequence[Sequence[bytes]]) -> None:
        """From now on these talkers speak, evenly spread over the 20 ms."""
        now_ns = time.monotonic_ns()
        self.talkers = [
            _Talker(address, packets, now_ns + n * PACKET_NS // len(addresses))
            for n, (address, packets) in enumerate(zip(addresses, speech, strict=True))
        ]

    @property
    def speaking_port(self) -> int:
        """Where all talkers speak from, and are sent to."""
        return int(self._speaking.getsockname()[1])

    def settle(self) -> None:
        """Lets time pass until Janus has told everybody of everybody, or it takes too long."""
        for _ in range(SETTLING):
            news = self._news
            self.run(1.0)
            if self._news == news:
                return

    def measure(self, server: Process, seconds: float) -> Window:
        """Counts for this long."""
        dropped = dropped_by_kernel(self._sockets)
        self.tally.begin()
        self.sample = [[] for _ in self.sample]
        self._lateness_ns = []
        self._busy_ns = 0
        start_ns, cpu_s = time.monotonic_ns(), server.cpu_s()
        self.run(seconds)
        took_s = (time.monotonic_ns() - start_ns) / 1e9
        return Window(
            seconds=took_s,
            cpu_s=server.cpu_s() - cpu_s,
            busy=self._busy_ns / 1e9 / took_s,
            late_ms=late_p99_ms(self._lateness_ns),
            dropped=dropped_by_kernel(self._sockets) - dropped,
        )

    def run(self, seconds: float) -> None:
        """Lets time pass."""
        start_ns = now_ns = time.monotonic_ns()
        count_ns = start_ns + PACKET_NS
        while now_ns < start_ns + int(seconds * 1e9):
            self._speak(now_ns)
            self._listen()
            if now_ns >= count_ns:
                count_ns += PACKET_NS
                self._count()
                self._news += self._control.skip_news()
            self._busy_ns += time.monotonic_ns() - now_ns
            due_ns = min((talker.due_ns for talker in self.talkers), default=count_ns)
            rest(min(due_ns, now_ns + ROUND_NS))
            now_ns = time.monotonic_ns()
        self._count()

    def _speak(self, now_ns: int) -> None:
        due = [talker for talker in self.talkers if talker.due_ns <= now_ns]
        for talker in due:
            self._lateness_ns.append(now_ns - talker.due_ns)
            self._speaking.sendto(talker.next_packet(now_ns), talker.address)

    def _listen(self) -> None:
        """Asks every socket."""
        for _ in range(len(self._sockets) + 1):
            batch = self._poller.poll()
            if batch is None:
                continue
            which, data, lengths = batch
            if which < len(self._sockets):
                self._inbox.append((time.monotonic_ns(), which, data.copy(), lengths))

    def _count(self) -> None:
        """Looks at what has come: all of a tick at once, since Janus's packets come one by one."""
        if not self._inbox:
            return
        times, sockets, datas, lengths = zip(*self._inbox, strict=True)
        self._inbox.clear()
        data, rows = np.concatenate(datas), [len(part) for part in datas]
        headers = rtp.columns(data)
        if self._by_ssrc:
            streams = headers.ssrcs - 1
        else:
            first = np.repeat(sockets, rows) * self._a_socket
            streams = first + headers.payload_types - rtp.DYNAMIC_TYPES[0]
        self.tally.count(streams, headers.sequences, rtp.SEQUENCE_BITS)
        length, time_ns = np.concatenate(lengths), np.repeat(times, rows)
        for row in np.flatnonzero(streams < SAMPLED):
            packet = data[row, : length[row]].tobytes()
            self.sample[streams[row]].append((int(time_ns[row]), packet))


# -- the three of them ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Janus:
    """One way in which Janus hands out a mix."""

    name: str
    forwards: bool
    encrypted: bool

    def missing(self) -> str | None:
        """Why it cannot be measured here; None if it can."""
        if shutil.which("janus") is None:
            return "the program janus is not installed (Debian: apt install janus)"
        return None

    def measure(
        self, listeners: int, talkers: int, seconds: float, speech: Sequence[Sequence[bytes]]
    ) -> dict[str, Any]:
        """One run.  speech: each talker's Opus packets of 20 ms, said again and again.
        Raises ProcessError and JanusError."""
        if listeners < 1 or not 0 < talkers <= len(speech):
            raise ValueError("there must be listeners, and talkers with speech for each")
        with ExitStack() as stack:
            servers, ours = cores()
            stack.enter_context(pinned(ours))
            server, control, version = _start(stack, servers)
            a_socket = FORWARDS_A_SOCKET if self.forwards else len(rtp.DYNAMIC_TYPES)
            people = _People(stack, control, listeners, a_socket, by_ssrc=self.forwards)
            organiser = control.handle()
            control.ask(organiser, room())
            keys = [
                os.urandom(rtp.SRTP_KEY_BYTES + rtp.SRTP_SALT_BYTES) if self.encrypted else None
                for _ in range(listeners)
            ]
            if self.forwards:
                for n, key in enumerate(keys):
                    control.ask(organiser, forwarder(people.port_of(n), n + 1, key))
            else:
                _join_listeners(control, people, listeners)
            talking = participant(people.speaking_port, rtp.DYNAMIC_TYPES[0], muted=False)
            people.talk([control.join(talking) for _ in range(talkers)], speech[:talkers])
            people.settle()
            window = people.measure(server, seconds)
        return {
            "peer": self.name,
            "version": version,
            "encrypted": self.encrypted,
            "mixes": True,
            "listeners": listeners,
            "talkers": talkers,
            **_judge(people, window, listeners, keys, speech[0]),
        }


def _join_listeners(control: Control, people: _People, listeners: int) -> None:
    """First all of them join, and then they greet: from then on Janus has work."""
    types = [rtp.DYNAMIC_TYPES[n % len(rtp.DYNAMIC_TYPES)] for n in range(listeners)]
    addresses = []
    for n, payload_type in enumerate(types):
        body = participant(people.port_of(n), payload_type, muted=True)
        addresses.append(control.join(body))
    for n, (payload_type, address) in enumerate(zip(types, addresses, strict=True)):
        people.socket_of(n).sendto(rtp.pack(payload_type, 0, 0, n + 1, b""), address)


def _judge(
    people: _People,
    window: Window,
    listeners: int,
    keys: Sequence[bytes | None],
    speech: Sequence[bytes],
) -> dict[str, Any]:
    """The figures of a row.

    Expected is what the server numbered, or what the time asked for if that is more: a mixer that
    falls behind leaves no gap in its numbers.  Of the ticks in the window one may fall to either
    side of its edges.
    """
    ticks = window.seconds * PACKETS_A_SECOND
    delivered = people.tally.delivered
    expected = max(people.tally.expected, listeners * max(int(ticks) - 1, 0))
    delay_ms, unheard = _open_sample(people, keys, speech)
    carried = delivered > expected * (1 - MAX_LOSS)  # who loses more need not be understood
    return window.figures(
        expected,
        delivered,
        listeners * ticks,
        delay_ms,
        (
            delivered > listeners * (ticks + BEHIND_TICKS),
            "Janus was still sending what had been due before",
        ),
        (bool(unheard) and carried, unheard),
    )


def _open_sample(
    people: _People, keys: Sequence[bytes | None], speech: Sequence[bytes]
) -> tuple[float | None, str]:
    """-> (ms from the first talker's packets to the first listener's that carry them, what is
    wrong with what the sampled listeners hear)."""
    said = Speech(speech)
    sent_ns = people.talkers[0].sent_ns
    delays_ms: list[float] = []
    for n, packets in enumerate(people.sample):
        key = keys[n]
        try:
            opened = rtp.Srtp(key).open if key is not None else rtp.payload
            heard = decode([opened(packet) for _, packet in packets])
        except (rtp.SrtpError, OpusError) as error:
            return None, f"listener {n} cannot hear: {error}"
        understood = False
        # In pieces: where Janus leaves a packet out, or waits for one, what follows has moved.
        for first in range(0, max(1, len(packets) - PIECE + 1), PIECE):
            match = said.find(heard[first * PACKET_SAMPLES :][: PIECE * PACKET_SAMPLES])
            if match.found:
                understood = True
                if n == 0:
                    came_ns = packets[first][0]
                    sent = [at for at in sent_ns[match.packet :: len(speech)] if at < came_ns]
                    delays_ms += [(came_ns - at) / 1e6 for at in sent[-1:]]
        if not understood:
            return None, f"listener {n} does not hear what the first talker says"
    return float(np.median(delays_ms)) if delays_ms else None, ""


PEERS = (
    Janus("janus-audiobridge", forwards=False, encrypted=False),
    Janus("janus-forward", forwards=True, encrypted=False),
    Janus("janus-srtp", forwards=True, encrypted=True),
)
