"""mumble-server as a peer: it relays every talker's packets to every listener and mixes nothing.

A listener is a TLS connection (who I am, and the keys of the other) and a UDP address.  On UDP a
datagram is four clear bytes and a sealed one of Mumble's packets:

    | nonce, lowest byte | tag, 3 bytes | OCB2-AES128: type, session, sequence, length, Opus |

The lowest byte of a listener's nonce goes up by one a datagram: that is the sequence number which
is counted here, for every listener.  Some listeners' datagrams are opened in full, and what they
hold is compared with what the talkers said.

With several talkers a listener gets several datagrams every 20 ms.  `delivered` and
`cpu_us_per_packet` are of datagrams; what compares a relay with a mixer is
`cpu_us_per_listener_tick`, the server's CPU for 20 ms of everything that one listener hears.

In the server's favour: the control connections lie still while it is measured (no pings, nobody
comes or goes), and its timeout is set so long that it bears it.
"""

import os
import resource
import shutil
import socket
import ssl
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from bench.peers.addresses import Addresses, Batch, free_address, rows
from bench.peers.window import take_turns
from bench.polled import Tally
from bench.process import Process, ProcessError, cores, pinned

TICK_NS = 20_000_000
SAMPLED = 8  # listeners whose datagrams are opened
JOINERS = 8  # threads that connect; the server does their handshakes one after the other
STARTUP_S = 20.0
ANSWER_S = 60.0  # a newcomer is told of everybody who is there
GREETING_S = 20.0  # until every address is known to the server
PATIENCE_S = 0.2  # then those who were not answered ask again

SETTINGS = """\
host=127.0.0.1
port={port}
database={folder}/mumble.sqlite
welcometext=
users=20000
usersperchannel=0
bandwidth=558000
timeout=3600
autobanAttempts=0
logdays=-1
bonjour=false
allowping=false
uname={user}
"""

VERSION, AUTHENTICATE, REJECT, SERVER_SYNC, CRYPT_SETUP = 0, 2, 4, 5, 15  # on TLS
PING, OPUS = 1, 4  # on UDP, in the upper three bits
PREAMBLE = struct.Struct("!HI")  # type, bytes that follow
CLIENT_VERSION = 1 << 16 | 3 << 8 | 4

BLOCK = 16
NONCES = 1 << 128


class Ocb2:
    """OCB2 with AES-128: P. Rogaway, "Efficient Instantiations of Tweakable Blockciphers and
    Refinements to Modes OCB and PMAC", 2004; draft-krovetz-ocb-00 without associated data.

    (It has been broken since: A. Inoue et al., "Cryptanalysis of OCB2", 2019.  Mumble speaks it.)
    """

    def __init__(self, key: bytes) -> None:
        cipher = Cipher(algorithms.AES(key), modes.ECB())
        self._encrypt = cipher.encryptor().update
        self._decrypt = cipher.decryptor().update

    def seal(self, nonce: bytes, plain: bytes) -> tuple[bytes, bytes]:
        """-> (as many bytes sealed, the tag of 16 bytes)."""
        whole, offsets, last = self._offsets(nonce, len(plain))
        sealed = _xor(self._encrypt(_xor(plain[:whole], offsets)), offsets)
        pad = self._pad(last, len(plain) - whole)
        rest = plain[whole:]
        return sealed + _xor(rest, pad), self._tag(last, plain[:whole], rest + pad[len(rest) :])

    def open(self, nonce: bytes, sealed: bytes) -> tuple[bytes, bytes]:
        """-> (the plaintext, the tag it should have had)."""
        whole, offsets, last = self._offsets(nonce, len(sealed))
        plain = _xor(self._decrypt(_xor(sealed[:whole], offsets)), offsets)
        pad = self._pad(last, len(sealed) - whole)
        rest = _xor(sealed[whole:], pad)
        return plain + rest, self._tag(last, plain, rest + pad[len(rest) :])

    def _offsets(self, nonce: bytes, length: int) -> tuple[int, bytes, int]:
        """-> (bytes in blocks before the last one, their offsets, the last block's offset)."""
        whole = max(0, length - 1) // BLOCK * BLOCK
        offset = _double(int.from_bytes(self._encrypt(nonce)))
        offsets = bytearray()
        for _ in range(whole // BLOCK):
            offsets += offset.to_bytes(BLOCK)
            offset = _double(offset)
        return whole, bytes(offsets), offset

    def _pad(self, offset: int, length: int) -> bytes:
        return self._encrypt((offset ^ length * 8).to_bytes(BLOCK))

    def _tag(self, offset: int, whole: bytes, padded: bytes) -> bytes:
        checksum = int.from_bytes(padded) ^ offset ^ _double(offset)
        for at in range(0, len(whole), BLOCK):
            checksum ^= int.from_bytes(whole[at : at + BLOCK])
        return self._encrypt(checksum.to_bytes(BLOCK))


def _double(block: int) -> int:
    """Times two in GF(2^128)."""
    return (block << 1) % NONCES ^ (0x87 if block >> 127 else 0)


def _xor(one: bytes, other: bytes) -> bytes:
    """As long as `one`, which must not be the longer."""
    length = len(one)
    return (int.from_bytes(one) ^ int.from_bytes(other[:length])).to_bytes(length)


class Seal:
    """Both directions of one user's UDP; a nonce is a little-endian counter."""

    def __init__(self, key: bytes, sending: bytes, receiving: bytes) -> None:
        self._ocb = Ocb2(key)
        self._sending = int.from_bytes(sending, "little")
        self._receiving = int.from_bytes(receiving, "little")

    def seal(self, packet: bytes) -> bytes:
        self._sending = (self._sending + 1) % NONCES
        nonce = self._sending.to_bytes(BLOCK, "little")
        sealed, tag = self._ocb.seal(nonce, packet)
        return nonce[:1] + tag[:3] + sealed

    def open(self, datagram: bytes) -> bytes | None:
        """The packet, or None if it is not genuine.  Datagrams come in order, fewer than 256 of
        them missing in a row: one that does not is not genuine either."""
        if len(datagram) < 4:
            return None
        ahead = (datagram[0] - self._receiving) % 256
        nonce = (self._receiving + ahead) % NONCES
        plain, tag = self._ocb.open(nonce.to_bytes(BLOCK, "little"), datagram[4:])
        if not ahead or tag[:3] != datagram[1:4]:
            return None
        self._receiving = nonce
        return plain


def pack_number(value: int) -> bytes:
    """Mumble's own variable-length integer on UDP, up to 32 bits: the ones the first byte begins
    with say how many bytes follow."""
    if value < 0x80:
        return value.to_bytes(1)
    for extra, prefix in ((1, 0x80), (2, 0xC0), (3, 0xE0)):
        if value < 1 << 7 * (extra + 1):
            return (value | prefix << 8 * extra).to_bytes(extra + 1)
    return b"\xf0" + value.to_bytes(4)


def unpack_number(data: bytes, at: int) -> tuple[int, int]:
    """-> (the value, where the next field begins).  Raises ValueError."""
    if at < len(data):
        first = data[at]
        extra = next((n for n, prefix in enumerate((0x80, 0xC0, 0xE0, 0xF0)) if first < prefix), 4)
        end = at + 1 + extra
        if first < 0xF4 and end <= len(data):
            own = 0 if extra == 4 else first & 0x7F >> extra
            return own << 8 * extra | int.from_bytes(data[at + 1 : end]), end
    raise ValueError("not a number of a Mumble packet, or not the whole of it")


def voice(sequence: int, frame: bytes) -> bytes:
    """A talker's packet.  sequence: time in units of 10 ms."""
    return bytes([OPUS << 5]) + pack_number(sequence) + pack_number(len(frame)) + frame


def heard(packet: bytes) -> tuple[int, int, bytes]:
    """What a listener gets of it -> (the talker's session, sequence, frame).  Raises ValueError."""
    if packet[:1] != bytes([OPUS << 5]):
        raise ValueError("not a packet of Opus")
    session, at = unpack_number(packet, 1)
    sequence, at = unpack_number(packet, at)
    length, at = unpack_number(packet, at)
    if len(packet) - at != length:
        raise ValueError("a packet that is shorter or longer than it says")
    return session, sequence, packet[at:]


def pack_fields(*fields: tuple[int, int | bytes]) -> bytes:
    """A protobuf message of (number, value) fields: varints and bytes."""
    message = bytearray()
    for number, value in fields:
        if isinstance(value, bytes):
            message += _varint(number << 3 | 2) + _varint(len(value)) + value
        else:
            message += _varint(number << 3) + _varint(value)
    return bytes(message)


def unpack_fields(message: bytes) -> dict[int, int | bytes]:
    """A protobuf message's fields by number, of repeated ones the last.  Raises ValueError."""
    fields: dict[int, int | bytes] = {}
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        match key & 7:
            case 0:
                fields[key >> 3], at = _read_varint(message, at)
                continue
            case 1:
                length = 8
            case 2:
                length, at = _read_varint(message, at)
            case 5:
                length = 4
            case kind:
                raise ValueError(f"a protobuf field of kind {kind}, which there is not")
        if at + length > len(message):
            raise ValueError("a protobuf field that ends after its message")
        fields[key >> 3] = message[at : at + length]
        at += length
    return fields


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 64:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        shift += 7
        at += 1
        if byte < 0x80:
            return value, at
    raise ValueError("a protobuf number that does not end")


@dataclass(slots=True)
class User:
    """Somebody who has joined: the control connection, and what UDP needs."""

    control: ssl.SSLSocket
    session: int
    seal: Seal


def join(server: tuple[str, int], address: str, name: str, tls: ssl.SSLContext) -> User:
    """Connects from a loopback address and waits until the server has told everything.
    Raises OSError, or ProcessError if the server refuses or does not keep to its protocol."""
    plain = socket.create_connection(server, ANSWER_S, (address, 0))
    control = tls.wrap_socket(plain)
    said = pack_fields((1, CLIENT_VERSION))
    who = pack_fields((1, name.encode()), (5, 1))  # 5: speaks Opus
    control.sendall(PREAMBLE.pack(VERSION, len(said)) + said)
    control.sendall(PREAMBLE.pack(AUTHENTICATE, len(who)) + who)
    seal: Seal | None = None
    for kind, message in _messages(control):
        if kind == CRYPT_SETUP:
            match unpack_fields(message):
                case {1: bytes(key), 2: bytes(client_nonce), 3: bytes(server_nonce)}:
                    seal = Seal(key, client_nonce, server_nonce)
        elif kind == REJECT:
            raise ProcessError(f"mumble-server refuses {name}: {unpack_fields(message).get(2)!r}")
        elif kind == SERVER_SYNC and seal is not None:
            session = unpack_fields(message).get(1)
            assert isinstance(session, int)
            return User(control, session, seal)
    raise ProcessError(f"mumble-server ended the connection of {name} before it had joined")


def _messages(control: ssl.SSLSocket) -> Iterator[tuple[int, bytes]]:
    """What the server says on a control connection, until it ends it."""
    waiting = bytearray()
    while received := control.recv(1 << 16):
        waiting += received
        at = 0
        while len(waiting) - at >= PREAMBLE.size:
            kind, length = PREAMBLE.unpack_from(waiting, at)
            end = at + PREAMBLE.size + length
            if end > len(waiting):
                break
            yield kind, bytes(waiting[at + PREAMBLE.size : end])
            at = end
        del waiting[:at]


def _find_program() -> str | None:
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/local/sbin"
    return shutil.which("murmurd", path=path) or shutil.which("mumble-server", path=path)


def _version(program: str) -> str:
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    last = (done.stdout + done.stderr).strip().splitlines()[-1:]
    return last[0].split()[-1] if last and last[0].split() else "unknown"


class Mumble:
    """mumble-server (Debian: mumble-server), which relays."""

    name = "mumble"

    def missing(self) -> str | None:
        """Why it cannot be measured here; None if it can."""
        if _find_program() is None:
            return "mumble-server is not installed (Debian: apt install mumble-server)"
        return None

    def measure(
        self, listeners: int, talkers: int, seconds: float, speech: Sequence[Sequence[bytes]]
    ) -> dict[str, Any]:
        """One run.  speech: for each talker its Opus packets of 20 ms, said again and again.
        Raises ProcessError, OSError."""
        program = _find_program()
        if program is None:
            raise ProcessError(str(self.missing()))
        if listeners < 1 or not 0 < talkers <= len(speech):
            raise ValueError("somebody must listen, and somebody speak whose speech there is")
        with ExitStack() as stack:
            room = _Room(stack, program, listeners, talkers)
            return {
                "peer": self.name,
                "version": _version(program),
                "encrypted": True,
                "mixes": False,
                "listeners": listeners,
                "talkers": talkers,
                **room.measure(max(1, round(seconds * 50)), speech),
            }


class _Room:
    """A server, and everybody who has joined."""

    def __init__(self, stack: ExitStack, program: str, listeners: int, talkers: int) -> None:
        core, own = cores()
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="spaces-bench-"))
        self._server = free_address(socket.SOCK_STREAM)
        # Without a name it would give up root for a user who may not read the folder.
        user = "root" if os.geteuid() == 0 else ""
        settings = Path(folder, "mumble.ini")
        settings.write_text(SETTINGS.format(port=self._server[1], folder=folder, user=user))
        # A connection is a file, here and in the server, which inherits the limit.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        stack.enter_context(pinned(own))
        command = [program, "-fg", "-ini", str(settings)]
        self._process = Process(stack, command, core=core, cwd=Path(folder), ordinary=True)
        self._await_server()
        self._addresses = Addresses(stack, listeners + talkers)
        self._join(stack, listeners, talkers)
        stack.callback(self._process.stop)  # before its users go, of each of whom it would tell all
        self._greet()

    def _await_server(self) -> None:
        give_up = time.monotonic() + STARTUP_S
        while True:
            self._process.rss_bytes()  # or the reason why it has ended
            try:
                socket.create_connection(self._server, 1.0).close()
                return
            except OSError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.05)

    def _join(self, stack: ExitStack, listeners: int, talkers: int) -> None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE  # it signed its certificate itself a moment ago

        def one(number: int) -> User:
            user = join(self._server, self._addresses.address(number), f"user{number}", tls)
            stack.callback(user.control.close)
            return user

        with ThreadPoolExecutor(JOINERS) as pool:
            self._users = list(pool.map(one, range(listeners + talkers)))
        self._listeners, self._talkers = listeners, talkers

    def _greet(self) -> None:
        """Everybody pings, so that the server learns the address, and is answered."""
        ping = bytes([PING << 5]) + pack_number(1)
        # Asked again is with the same datagram: of a nonce that skips one before anything has come
        # the server believes once in 256 times that it was there already, and then for ever.
        silent = {number: user.seal.seal(ping) for number, user in enumerate(self._users)}
        give_up = time.monotonic() + GREETING_S
        while silent:
            if time.monotonic() > give_up:
                raise ProcessError(f"mumble-server does not answer {len(silent)} of its users")
            for number, datagram in silent.items():
                self._addresses.send(number, datagram, self._server)
            ask_again = time.monotonic() + PATIENCE_S
            while silent and time.monotonic() < ask_again:
                for number, answer in rows(self._addresses.receive()):
                    if self._users[number].seal.open(answer) == ping:
                        silent.pop(number, None)

    def measure(self, ticks: int, speech: Sequence[Sequence[bytes]]) -> dict[str, Any]:
        listeners, talkers = self._listeners, self._talkers
        tally = Tally(listeners)
        sample: list[tuple[int, int, bytes]] = []  # when (ns), listener, datagram
        sent_ns: list[int] = []

        def say(turn: int, now_ns: int) -> None:
            step, who = divmod(turn, talkers)
            sent_ns.append(now_ns)
            number = listeners + who
            packet = voice(2 * step, _said(speech, who, step))
            self._addresses.send(number, self._users[number].seal.seal(packet), self._server)

        def hear(batch: Batch, now_ns: int) -> None:
            if talkers > 1:  # who hear each other, and are not counted
                batch = _only(batch[2] < listeners, batch)
            data, _, numbers = batch
            tally.count(numbers, data[:, 0].astype(np.int64), bits=8)
            few = rows(_only(numbers < SAMPLED, batch))
            sample.extend((now_ns, number, datagram) for number, datagram in few)

        window = take_turns(
            self._process,
            self._addresses,
            ticks * TICK_NS / 1e9,
            TICK_NS / talkers,  # they take turns within the 20 ms
            begin=tally.begin,
            say=say,
            hear=hear,
        )
        delays_ms, wrong = self._open(sample, sent_ns, speech)
        return window.figures(
            listeners * talkers * ticks,
            tally.delivered,
            listeners * ticks,
            float(np.median(delays_ms)) if delays_ms else None,
            (wrong > 0, f"{wrong} of {len(sample)} datagrams opened are not what was said"),
            (not tally.delivered_by_stream.all(), "some listeners heard nothing"),
        )

    def _open(
        self,
        sample: Sequence[tuple[int, int, bytes]],
        sent_ns: Sequence[int],
        speech: Sequence[Sequence[bytes]],
    ) -> tuple[list[float], int]:
        """-> (ms from a talker's packet to the first of the sampled listeners who got it, how many
        datagrams did not hold what their talker said at that time)."""
        sessions = {user.session: who for who, user in enumerate(self._users[self._listeners :])}
        delays_ms: dict[int, float] = {}
        wrong = 0
        for when_ns, number, datagram in sample:
            packet = self._users[number].seal.open(datagram)
            try:
                session, sequence, frame = heard(packet or b"")
                who, step = sessions[session], sequence // 2
            except (ValueError, KeyError):
                wrong += 1
                continue
            wrong += frame != _said(speech, who, step)
            turn = step * self._talkers + who
            delays_ms.setdefault(turn, (when_ns - sent_ns[turn]) / 1e6)
        return list(delays_ms.values()), wrong


def _only(these: NDArray[np.bool_], batch: Batch) -> Batch:
    data, lengths, numbers = batch
    return data[these], lengths[these], numbers[these]


def _said(speech: Sequence[Sequence[bytes]], who: int, step: int) -> bytes:
    return speech[who][step % len(speech[who])]
