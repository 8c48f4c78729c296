"""Jamulus as a peer: it mixes for everybody anew, and encodes every mix.

All of it is UDP.  Whoever sends a datagram that is no message is a client from then on; messages
settle what its audio is like, and say who it is:

    | 0, 0 | id, 2 | counter, 1 | length, 2 | data | CRC-16, 2 |     numbers little-endian

and everything else is audio: one frame of the codec and, as was settled, a byte that counts.
By that byte every client's datagrams are counted.  A frame is 128 samples (2.67 ms) of Opus
Custom in 45 bytes, what a mono client gets and sends by default: 375 datagrams a second each way.

Jamulus has no listeners: everybody sends all the time, and so do ours.  What the talkers send is
the same speech as everywhere, coded anew for Jamulus; a listener sends coded silence, as a client
with its microphone muted does.  Everybody gets a mix, the talkers too, so everybody is counted:
`expected` and `delivered` are of listeners and talkers together.  Some listeners' frames are looked
at, whether they are more than coded silence.  (They are not decoded: the libopus of Debian 12 stops
with an assertion when it decodes frames of this length, see xiph/opus pull request 168.  Jamulus
has a copy of its own.)  So how late they are is not told either.

`cpu_us_per_packet` is of frames of 2.67 ms; what compares Jamulus with others is
`cpu_us_per_listener_tick`, the server's CPU for 20 ms of audio to one client.
"""

import binascii
import ctypes
import ctypes.util
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.peers.addresses import Addresses, Batch, free_address, rows
from bench.peers.window import take_turns
from bench.polled import Tally
from bench.process import Process, ProcessError, cores, pinned
from protocol.opus import Decoder

MOST_CLIENTS = 150
FRAME_SAMPLES = 128
FRAME_BYTES = 45
AUDIO_BYTES = FRAME_BYTES + 1  # the counter
SAMPLE_RATE = 48_000
FRAMES_A_SECOND = SAMPLE_RATE // FRAME_SAMPLES
TICKS_A_SECOND = 50
SPEECH_SAMPLES = 960  # of one packet that the talkers are given
SAMPLED = 8  # listeners whose frames are looked at
VOICED = 0.1  # of their frames at least must not be silence; speech has pauses
STARTUP_S = 20.0
ADMISSION_S = 20.0
PATIENCE_S = 0.3  # then what was not acknowledged is said again

ACKNOWLEDGED, TRANSPORT, WHO_I_AM, PING = 1, 20, 25, 1001
OPUS, WITH_COUNTER = 2, 1
HEADER = struct.Struct("<HHBH")  # 0, id, counter, length
CRC = struct.Struct("<H")
TRANSPORT_DATA = struct.Struct("<IHBIHHI")
WHO_DATA = struct.Struct("<HIBHH")

_SET_BITRATE, _SET_VBR, _SET_COMPLEXITY = 4002, 4006, 4010  # opus_defines.h


def pack_message(kind: int, counter: int, data: bytes) -> bytes:
    message = HEADER.pack(0, kind, counter, len(data)) + data
    return message + CRC.pack(_crc(message))


def unpack_message(datagram: bytes) -> tuple[int, int, bytes] | None:
    """-> (id, counter, data), or None if it is no message: audio, then."""
    body, crc = datagram[: -CRC.size], datagram[-CRC.size :]
    if len(body) < HEADER.size or CRC.pack(_crc(body)) != crc:
        return None
    zero, kind, counter, length = HEADER.unpack_from(body)
    if zero or len(body) != HEADER.size + length:
        return None
    return kind, counter, body[HEADER.size :]


def _crc(data: bytes) -> int:
    """CRC-16/GENIBUS."""
    return binascii.crc_hqx(data, 0xFFFF) ^ 0xFFFF


def transport() -> bytes:
    """What our audio is like, in both directions."""
    return TRANSPORT_DATA.pack(AUDIO_BYTES, 1, 1, SAMPLE_RATE, OPUS, WITH_COUNTER, 0)


def who_i_am() -> bytes:
    """No country, instrument, skill, name and city.  Without it the server sends no audio."""
    return WHO_DATA.pack(0, 0, 0, 0, 0)


def code(samples: NDArray[np.float32]) -> list[bytes]:
    """Mono sound (n,) -> frames of Opus Custom at a constant FRAME_BYTES and the least effort, as
    Jamulus codes; what is left after the last whole one is left out.  Raises LookupError."""
    library = _custom_library()
    error = ctypes.c_int()
    mode = library.opus_custom_mode_create(SAMPLE_RATE, FRAME_SAMPLES, ctypes.byref(error))
    encoder = library.opus_custom_encoder_create(mode, 1, ctypes.byref(error))
    try:
        for setting, value in (
            (_SET_VBR, 0),
            (_SET_COMPLEXITY, 1),
            (_SET_BITRATE, FRAME_BYTES * 8 * FRAMES_A_SECOND),
        ):
            library.opus_custom_encoder_ctl(
                ctypes.c_void_p(encoder), ctypes.c_int(setting), ctypes.c_int(value)
            )
        whole = np.ascontiguousarray(samples[: len(samples) // FRAME_SAMPLES * FRAME_SAMPLES])
        coded = []
        for frame in whole.reshape(-1, FRAME_SAMPLES):
            out = ctypes.create_string_buffer(FRAME_BYTES)
            length = library.opus_custom_encode_float(
                encoder, frame.ctypes.data, FRAME_SAMPLES, out, FRAME_BYTES
            )
            assert length == FRAME_BYTES, f"libopus says {length}"
            coded.append(out.raw)
        return coded
    finally:
        library.opus_custom_encoder_destroy(encoder)
        library.opus_custom_mode_destroy(mode)


def _custom_library() -> Any:
    """The system's libopus.  (The one that comes with our packages is built without this.)"""
    name = ctypes.util.find_library("opus")
    library = ctypes.CDLL(name) if name else None
    if library is None or not hasattr(library, "opus_custom_mode_create"):
        raise LookupError("the system has no libopus with Opus Custom (Debian: libopus0)")
    pointer, number = ctypes.c_void_p, ctypes.c_int
    for what, result, *arguments in (
        ("mode_create", pointer, number, number, pointer),
        ("encoder_create", pointer, pointer, number, pointer),
        ("encode_float", number, pointer, pointer, number, pointer, number),
        ("encoder_destroy", None, pointer),
        ("mode_destroy", None, pointer),
    ):
        function = getattr(library, f"opus_custom_{what}")
        function.restype, function.argtypes = result, arguments
    return library


def code_anew(packets: Sequence[bytes]) -> list[bytes]:
    """Opus packets of 20 ms -> the same sound in Jamulus's frames."""
    decoder = Decoder()
    heard = np.zeros(len(packets) * SPEECH_SAMPLES, np.float32)
    for number, packet in enumerate(packets):
        at = number * SPEECH_SAMPLES
        decoder.decode(packet, heard[at : at + SPEECH_SAMPLES])
    return code(heard)


def coded_silence() -> bytes:
    return code(np.zeros(FRAME_SAMPLES, np.float32))[0]


class Jamulus:
    """jamulus --server (Debian: jamulus), which mixes and encodes for each."""

    name = "jamulus"

    def missing(self) -> str | None:
        """Why it cannot be measured here; None if it can."""
        if _find_program() is None:
            return "jamulus is not installed (Debian: apt install jamulus)"
        try:
            _custom_library()
        except LookupError as error:
            return str(error)
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
        if listeners + talkers > MOST_CLIENTS:
            raise ValueError(f"Jamulus has room for {MOST_CLIENTS} clients")
        said = [[coded_silence()]] * listeners + [
            code_anew(packets) for packets in speech[:talkers]
        ]
        with ExitStack() as stack:
            session = _Session(stack, program, said)
            return {
                "peer": self.name,
                "version": _version(program),
                "encrypted": False,
                "mixes": True,
                "listeners": listeners,
                "talkers": talkers,
                **session.measure(seconds, listeners),
            }


def _find_program() -> str | None:
    return shutil.which("Jamulus") or shutil.which("jamulus")


def _environment(folder: str) -> dict[str, str]:
    return os.environ | {"QT_QPA_PLATFORM": "offscreen", "HOME": folder}


def _version(program: str) -> str:
    done = subprocess.run(
        [program, "--version"],
        capture_output=True,
        text=True,
        check=False,
        env=_environment(tempfile.gettempdir()),
    )
    _, found, after = (done.stdout + done.stderr).partition("Version ")
    return after.split()[0] if found else "unknown"


@dataclass(slots=True)
class _Client:
    said: list[bytes]  # its audio, frame by frame, said again and again
    frames: int = 0  # sent so far
    unacknowledged: dict[tuple[int, int], bytes] = field(
        default_factory=lambda: {
            (TRANSPORT, 0): pack_message(TRANSPORT, 0, transport()),
            (WHO_I_AM, 1): pack_message(WHO_I_AM, 1, who_i_am()),
        }
    )

    def audio(self) -> bytes:
        frame = self.said[self.frames % len(self.said)]
        self.frames += 1
        return frame + (self.frames % 256).to_bytes(1)


class _Session:
    """A server, and everybody who is there."""

    def __init__(self, stack: ExitStack, program: str, said: Sequence[list[bytes]]) -> None:
        core, own = cores()
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="spaces-bench-"))
        self._server = free_address(socket.SOCK_DGRAM)
        command = [program, "--server", "--nogui", "--serverbindip", self._server[0]]
        command += ["--port", str(self._server[1]), "--numchannels", str(MOST_CLIENTS)]
        stack.enter_context(pinned(own))
        self._process = Process(
            stack,
            command,
            core=core,
            cwd=Path(folder),
            env=_environment(folder),
            ordinary=True,
        )
        self._clients = [_Client(one) for one in said]
        self._addresses = Addresses(stack, len(said))
        self._await_server()
        self._admit()

    def _await_server(self) -> None:
        """It answers a ping as soon as it runs."""
        ping = pack_message(PING, 0, bytes(4))
        give_up = time.monotonic() + STARTUP_S
        while time.monotonic() < give_up:
            self._process.rss_bytes()  # or the reason why it has ended
            self._addresses.send(0, ping, self._server)
            ask_again = time.monotonic() + PATIENCE_S
            while time.monotonic() < ask_again:
                if rows(self._addresses.receive()):
                    return
        raise ProcessError(f"Jamulus says nothing for {STARTUP_S:g} s")

    def _admit(self) -> None:
        """Everybody sends audio, says what it is like and who it is from, until all are heard."""
        give_up = time.monotonic() + ADMISSION_S
        while any(client.unacknowledged for client in self._clients):
            if time.monotonic() > give_up:
                left = sum(1 for client in self._clients if client.unacknowledged)
                raise ProcessError(f"Jamulus does not let in {left} of {len(self._clients)}")
            for number, client in enumerate(self._clients):
                for datagram in (client.audio(), *client.unacknowledged.values()):
                    self._addresses.send(number, datagram, self._server)
            say_again = time.monotonic() + PATIENCE_S
            while time.monotonic() < say_again:
                for number, datagram in rows(self._addresses.receive()):
                    self._answer(number, datagram)

    def _answer(self, number: int, datagram: bytes) -> None:
        """A message is acknowledged; an acknowledgement is taken note of."""
        message = unpack_message(datagram)
        if message is None:
            return
        kind, counter, data = message
        if kind == ACKNOWLEDGED and len(data) == 2:
            acknowledged = int.from_bytes(data, "little"), counter
            self._clients[number].unacknowledged.pop(acknowledged, None)
        elif kind < 1000:  # those above are not of a connection, and nobody waits for an answer
            reply = pack_message(ACKNOWLEDGED, counter, kind.to_bytes(2, "little"))
            self._addresses.send(number, reply, self._server)

    def measure(self, seconds: float, listeners: int) -> dict[str, Any]:
        clients = len(self._clients)
        frames = max(1, round(seconds * FRAMES_A_SECOND))
        tally = Tally(clients)
        sample: list[tuple[int, bytes]] = []  # listener, datagram

        def begin() -> None:
            tally.begin()
            sample.clear()

        def say(turn: int, now_ns: int) -> None:
            number = turn % clients
            self._addresses.send(number, self._clients[number].audio(), self._server)

        def hear(batch: Batch, now_ns: int) -> None:
            data, lengths, numbers = batch
            audio = lengths == AUDIO_BYTES
            if not audio.all():
                for number, message in rows((data[~audio], lengths[~audio], numbers[~audio])):
                    self._answer(number, message)
            tally.count(numbers[audio], data[audio, FRAME_BYTES].astype(np.int64), bits=8)
            few = audio & (numbers < min(SAMPLED, listeners))
            sample.extend(rows((data[few], lengths[few], numbers[few])))

        window = take_turns(
            self._process,
            self._addresses,
            frames / FRAMES_A_SECOND,
            1e9 / FRAMES_A_SECOND / clients,  # they take turns within a frame
            begin=begin,
            say=say,
            hear=hear,
        )
        return window.figures(
            clients * frames,
            tally.delivered,
            clients * window.seconds * TICKS_A_SECOND,
            None,
            (_voiced(sample) < VOICED, "nobody speaks in what listeners get"),
            (not tally.delivered_by_stream.all(), "some clients heard nothing"),
        )


def _voiced(sample: Sequence[tuple[int, bytes]]) -> float:
    """How many of a listener's frames are more than silence: the least share of all sampled."""
    silence = coded_silence()
    streams: dict[int, list[bool]] = {}
    for number, datagram in sample:
        streams.setdefault(number, []).append(datagram[:FRAME_BYTES] != silence)
    return min((sum(one) / len(one) for one in streams.values()), default=0.0)
