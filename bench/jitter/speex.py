"""libspeexdsp's jitter buffer, by ctypes, where the library is installed."""

import ctypes
import ctypes.util
from functools import cache
from typing import Any

from bench.jitter.receivers import Framewise, Samples
from bench.jitter.traces import Sent, Trace
from protocol.packets import UplinkAudio
from spaces_client.audio import BLOCK_SAMPLES


class _SpeexPacket(ctypes.Structure):
    """JitterBufferPacket of speex/speex_jitter.h."""

    _fields_ = (
        ("data", ctypes.c_char_p),
        ("len", ctypes.c_uint32),
        ("timestamp", ctypes.c_uint32),
        ("span", ctypes.c_uint32),
        ("sequence", ctypes.c_uint16),
        ("user_data", ctypes.c_uint32),
    )


@cache
def speexdsp() -> Any:
    """The library, or None where it is not installed."""
    name = ctypes.util.find_library("speexdsp")
    if name is None:
        return None
    library = ctypes.CDLL(name)
    library.jitter_buffer_init.restype = ctypes.c_void_p
    library.jitter_buffer_init.argtypes = [ctypes.c_int]
    for function in (library.jitter_buffer_tick, library.jitter_buffer_destroy):
        function.argtypes = [ctypes.c_void_p]
    packet = ctypes.POINTER(_SpeexPacket)
    library.jitter_buffer_put.argtypes = [ctypes.c_void_p, packet]
    library.jitter_buffer_get.argtypes = [
        *(ctypes.c_void_p, packet, ctypes.c_int32, ctypes.POINTER(ctypes.c_int32)),
    ]
    return library


class Speex(Framewise):
    """libspeexdsp's jitter buffer."""

    _OK = 0

    def __init__(self, trace: Trace) -> None:
        super().__init__(trace)
        self._library = speexdsp()
        self._buffer = self._library.jitter_buffer_init(BLOCK_SAMPLES)
        self._room = ctypes.create_string_buffer(2_000)
        self._next = trace.packets[0].number  # that should play
        self._sent = {p.number for p in trace.packets}

    def __del__(self) -> None:
        self._library.jitter_buffer_destroy(self._buffer)

    def receive(self, packet: Sent, audio: UplinkAudio, now_ms: float) -> None:
        self._payloads[packet.number] = packet, audio.opus
        self.heard.late += packet.number < self._next
        one = _SpeexPacket(b"x", 1, packet.number * BLOCK_SAMPLES, BLOCK_SAMPLES, 0, 0)
        self._library.jitter_buffer_put(self._buffer, ctypes.byref(one))

    def pull(self, out: Samples, now_ms: float) -> None:
        one = _SpeexPacket(ctypes.cast(self._room, ctypes.c_char_p), len(self._room))
        offset = ctypes.c_int32()
        code = self._library.jitter_buffer_get(
            self._buffer, ctypes.byref(one), BLOCK_SAMPLES, ctypes.byref(offset)
        )
        number = one.timestamp // BLOCK_SAMPLES
        self._library.jitter_buffer_tick(self._buffer)
        if code == self._OK and number in self._payloads:
            self._play(number, None, out, now_ms)
            self._next = number + 1
        else:
            # Where it inserts a frame to grow its delay, it says so, and nothing is missing.
            self._play(None, self._next if self._next in self._sent else None, out, now_ms)
            if number == self._next:
                self._next += 1
