"""Opus over numpy buffers: libopus is called directly, and nothing is allocated but the packet.

`opuslib` supplies the bindings, to the library that `protocol.libopus` chooses. An encoder's whole
state is one block of bytes which we own; that is what lets a mix class fork it.

One Encoder or Decoder belongs to one thread at a time; different ones may run in parallel, because
ctypes releases the GIL during a call.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from protocol.libopus import OpusError as OpusError  # raised here too
from protocol.libopus import find_library, import_opuslib

SAMPLE_RATE: Final = 48_000
MAX_PACKET_SAMPLES: Final = 5_760  # 120 ms, RFC 6716 section 3.2.5
MAX_PACKET_BYTES: Final = 4_000  # 60 ms at the highest rate are 3 frames of at most 1,275 bytes
GRAIN_SAMPLES: Final = 120  # 2.5 ms: concealment comes in multiples of it
# Of a decoder: from here on a libopus that was built with it (1.5 or newer) conceals by deep PLC:
# 0.5 ms for a frame of 20 ms, as much as for ten decodes. 6 and 7 treat every frame besides (LACE
# and NoLACE, made for low rates), for as much as two decodes more, and gained nothing at 32 kbit/s:
# PESQ-WB over ten traces 3.625 instead of 3.633.
DEEP_PLC_COMPLEXITY: Final = 5
ENCODER_SAMPLES: Final = frozenset({120, 240, 480, 960, 1_920, 2_880})

Samples = NDArray[np.float32]


LIBRARY: Final = find_library()
_opuslib = import_opuslib(LIBRARY)
_libopus = _opuslib.api.libopus
_encoder_binding = _opuslib.api.encoder
_decoder_binding = _opuslib.api.decoder


def _function(name: str, *argtypes: Any) -> Any:
    function = _libopus[name]  # by index: an object of our own, so opuslib's prototypes stay as is
    function.argtypes = argtypes
    function.restype = ctypes.c_int
    return function


_encoder_init = _function(
    "opus_encoder_init",
    _encoder_binding.EncoderPointer,
    ctypes.c_int32,
    ctypes.c_int,
    ctypes.c_int,
)
_decoder_init = _function(
    "opus_decoder_init", _decoder_binding.DecoderPointer, ctypes.c_int32, ctypes.c_int
)
# The ctl functions are variadic. Declaring the fixed part alone makes ctypes describe the rest to
# libffi as variadic arguments; Apple Silicon passes those on the stack, not in registers. The
# variable argument is always passed as an explicit c_int (opus_int32) or a pointer.
_encoder_ctl = _function("opus_encoder_ctl", _encoder_binding.EncoderPointer, ctypes.c_int)
_decoder_ctl = _function("opus_decoder_ctl", _decoder_binding.DecoderPointer, ctypes.c_int)
_encode = _encoder_binding.libopus_encode_float
_decode = _decoder_binding.libopus_decode_float


def _checked(result: int, doing: str) -> int:
    if result < 0:
        reason = _opuslib.api.info.strerror(result).decode("ascii", "replace")
        raise OpusError(f"{doing}: {reason}")
    return result


def _pointer(pcm: Samples, channels: int) -> Any:
    """Where C may read or write `len(pcm)` frames of `channels`; ValueError if it may not."""
    shape = (len(pcm),) if channels == 1 else (len(pcm), channels)
    if pcm.dtype != np.float32 or not pcm.flags.c_contiguous or pcm.shape != shape:
        wanted = "(n,)" if channels == 1 else f"(n, {channels})"
        raise ValueError(
            f"wanted C-contiguous float32 of shape {wanted}, got {pcm.dtype} of shape {pcm.shape}"
        )
    # from_buffer is three times as fast as asking numpy for the address, but refuses read-only
    # arrays, which an encoder may well be given.
    if pcm.flags.writeable:
        return ctypes.byref(ctypes.c_float.from_buffer(pcm.data))
    return ctypes.byref(ctypes.c_float.from_address(pcm.ctypes.data))


def _check_channels(channels: int) -> None:
    if channels not in (1, 2):
        raise ValueError(f"channels must be 1 or 2, not {channels}")


_SIGNALS: Final = {
    "voice": _opuslib.SIGNAL_VOICE,
    "music": _opuslib.SIGNAL_MUSIC,
}


class Encoder:
    """One Opus encoder at 48 kHz.

    `bitrate` in bits/s; `complexity` 0..10; `expected_loss_percent` 0..100 steers how much in-band
    FEC (`fec`) is spent; `dtx` shrinks packets to 1-2 bytes in silence; `signal` says what is
    encoded (voices sound better when it is said: PESQ-WB 4.42 instead of 4.35 at 32 kbit/s).
    `low_delay` looks 2.5 ms ahead instead of 6.5 and never uses SILK, without which voices need
    twice the bits (PESQ-WB 3.1 instead of 4.2 at 32 kbit/s), and FEC does nothing.
    Bitrate, complexity, FEC and loss can be set later as well. OpusError for values that libopus
    refuses.
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        bitrate: int = 32_000,
        complexity: int = 5,
        signal: Literal["voice", "music"] = "voice",
        low_delay: bool = False,
        fec: bool = False,
        expected_loss_percent: int = 0,
        dtx: bool = False,
    ) -> None:
        _check_channels(channels)
        self.channels = channels
        # The state lives in memory of ours, not libopus's: it is freed with this object, no
        # pointer can outlive it, and a fork is one memmove (libopus keeps it free of pointers
        # into itself and says so).
        self._memory = ctypes.create_string_buffer(_encoder_binding.libopus_get_size(channels))
        self._state = ctypes.cast(self._memory, _encoder_binding.EncoderPointer)
        self._packet = ctypes.create_string_buffer(MAX_PACKET_BYTES)
        self._packet_view = memoryview(self._packet)
        application = _opuslib.APPLICATION_TYPES_MAP[
            "restricted_lowdelay" if low_delay else "audio"
        ]
        _checked(_encoder_init(self._state, SAMPLE_RATE, channels, application), "encoder")
        self.bitrate = bitrate
        self.complexity = complexity
        self.fec = fec
        self.expected_loss_percent = expected_loss_percent
        self._set(_opuslib.SET_SIGNAL_REQUEST, _SIGNALS[signal])
        self._set(_opuslib.SET_DTX_REQUEST, dtx)

    def encode(self, pcm: Samples) -> bytes:
        """One packet from float32 samples in -1..1, shape (n,) for mono, (n, 2) for stereo.

        n must be 120, 240, 480, 960, 1920 or 2880 (2.5 to 60 ms), otherwise ValueError: libopus
        reads as many samples as it is told, whether the buffer has them or not.
        """
        samples = len(pcm)
        if samples not in ENCODER_SAMPLES:
            raise ValueError(f"{samples} samples are no Opus frame: {sorted(ENCODER_SAMPLES)}")
        length_bytes = _checked(
            _encode(
                self._state, _pointer(pcm, self.channels), samples, self._packet, MAX_PACKET_BYTES
            ),
            "encode",
        )
        return self._packet_view[:length_bytes].tobytes()

    def fork(self) -> Encoder:
        """A twin that goes on from here: equal input gives equal packets, bit for bit."""
        twin = Encoder(channels=self.channels)
        twin.copy_from(self)
        return twin

    def copy_from(self, other: Encoder) -> None:
        """Become the twin of `other`, settings included. ValueError if channels differ."""
        if self.channels != other.channels:
            raise ValueError(f"cannot copy {other.channels} channels into {self.channels}")
        ctypes.memmove(self._memory, other._memory, len(self._memory))

    def reset(self) -> None:
        """Forget the signal, keep the settings."""
        _checked(_encoder_ctl(self._state, _opuslib.RESET_STATE), "encoder reset")

    def _set(self, request: int, value: int) -> None:
        _checked(
            _encoder_ctl(self._state, request, ctypes.c_int(value)),
            f"encoder setting {request} = {value}",
        )

    def _get(self, request: int) -> int:
        value = ctypes.c_int()
        _checked(
            _encoder_ctl(self._state, request, ctypes.byref(value)), f"encoder setting {request}"
        )
        return value.value

    @property
    def bitrate(self) -> int:
        """Bits per second."""
        return self._get(_opuslib.GET_BITRATE_REQUEST)

    @bitrate.setter
    def bitrate(self, bits_per_second: int) -> None:
        self._set(_opuslib.SET_BITRATE_REQUEST, bits_per_second)

    @property
    def complexity(self) -> int:
        """0 (cheapest) to 10."""
        return self._get(_opuslib.GET_COMPLEXITY_REQUEST)

    @complexity.setter
    def complexity(self, complexity: int) -> None:
        self._set(_opuslib.SET_COMPLEXITY_REQUEST, complexity)

    @property
    def fec(self) -> bool:
        """Whether packets may carry a coarse copy of the frame before (LBRR)."""
        return bool(self._get(_opuslib.GET_INBAND_FEC_REQUEST))

    @fec.setter
    def fec(self, fec: bool) -> None:
        self._set(_opuslib.SET_INBAND_FEC_REQUEST, fec)

    @property
    def lookahead_samples(self) -> int:
        """How far what a packet decodes to lags behind what was encoded into it."""
        return self._get(_opuslib.GET_LOOKAHEAD_REQUEST)

    @property
    def expected_loss_percent(self) -> int:
        """0 to 100; the more, the more bits go into FEC."""
        return self._get(_opuslib.GET_PACKET_LOSS_PERC_REQUEST)

    @expected_loss_percent.setter
    def expected_loss_percent(self, percent: int) -> None:
        self._set(_opuslib.SET_PACKET_LOSS_PERC_REQUEST, percent)


class Decoder:
    """One Opus decoder at 48 kHz; mono and stereo packets both come out as `channels`.

    `complexity`: see DEEP_PLC_COMPLEXITY.
    """

    def __init__(self, channels: int = 1, *, complexity: int = 0) -> None:
        _check_channels(channels)
        self.channels = channels
        self._memory = ctypes.create_string_buffer(_decoder_binding.libopus_get_size(channels))
        self._state = ctypes.cast(self._memory, _decoder_binding.DecoderPointer)
        _checked(_decoder_init(self._state, SAMPLE_RATE, channels), "decoder")
        self._complexity = complexity
        self._set_complexity(complexity)
        self._saved = ctypes.create_string_buffer(self._memory.raw, len(self._memory))

    def decode(self, packet: bytes, out: Samples) -> int:
        """Decode into the head of `out`, shape (n,) or (n, 2); return samples per channel.

        OpusError if the packet is malformed or longer than `out`; the decoder stays usable.
        """
        if not packet:
            raise OpusError("decode: empty packet")  # to libopus it would mean a lost one
        return self._run(packet, len(packet), out, fec=False)

    def decode_fec(self, packet: bytes, out: Samples) -> int:
        """Fill `out` with what was lost right BEFORE `packet`, from its FEC; return the length.

        len(out) must be a multiple of 120. The end of it is recovered as far as the packet's first
        frame reaches back; the rest, or all where the packet has no FEC, is concealed.
        """
        if not packet:
            raise OpusError("decode_fec: empty packet")
        self._check_grain(out)
        return self._run(packet, len(packet), out, fec=True)

    def conceal(self, out: Samples, *, plainly: bool = False) -> int:
        """Fill `out` (a multiple of 120 long, up to 5760) by concealment; return the length.
        plainly: without deep PLC, which takes ten times as long."""
        self._check_grain(out)
        if not plainly:
            return self._run(None, 0, out, fec=False)
        self._set_complexity(0)
        try:
            return self._run(None, 0, out, fec=False)
        finally:
            self._set_complexity(self._complexity)

    def reset(self) -> None:
        """Forget the signal."""
        _checked(_decoder_ctl(self._state, _opuslib.RESET_STATE), "decoder reset")

    def save(self) -> None:
        """Keep the state, for `restore`.  (A state is one block of memory, and may be copied.)"""
        ctypes.memmove(self._saved, self._memory, len(self._memory))

    def restore(self) -> None:
        """Go back to what was kept last: forget what was decoded and concealed since."""
        ctypes.memmove(self._memory, self._saved, len(self._memory))

    def _set_complexity(self, complexity: int) -> None:
        result = _decoder_ctl(
            self._state, _opuslib.SET_COMPLEXITY_REQUEST, ctypes.c_int(complexity)
        )
        if result != _opuslib.UNIMPLEMENTED:  # older ones have no such setting
            _checked(result, f"decoder complexity = {complexity}")

    def _check_grain(self, out: Samples) -> None:
        if not 0 < len(out) <= MAX_PACKET_SAMPLES or len(out) % GRAIN_SAMPLES:
            raise ValueError(f"cannot conceal {len(out)} samples: multiples of 120 up to 5760")

    def _run(self, packet: bytes | None, length_bytes: int, out: Samples, *, fec: bool) -> int:
        if not out.flags.writeable:
            raise ValueError("out is read-only")
        return _checked(
            int(
                _decode(
                    self._state, packet, length_bytes, _pointer(out, self.channels), len(out), fec
                )
            ),
            "decode",
        )


def _frame_samples(toc: int) -> int:
    """Duration of one frame by the TOC byte's configuration number (RFC 6716, table 2)."""
    configuration = toc >> 3
    if configuration < 12:  # SILK
        return (480, 960, 1_920, 2_880)[configuration & 3]
    if configuration < 16:  # hybrid
        return (480, 960)[configuration & 1]
    return 120 << (configuration & 3)  # CELT


def packet_samples(packet: bytes) -> int:
    """Samples at 48 kHz in a packet, from its head alone (RFC 6716 sections 3.1 and 3.2).

    OpusError if it is empty, has no or too many frames. Frame lengths are left for the decoder.
    """
    if not packet:
        raise OpusError("empty packet")
    code = packet[0] & 3
    if code == 3 and len(packet) < 2:
        raise OpusError("packet ends before its frame count")
    frames = packet[1] & 0x3F if code == 3 else (1, 2, 2)[code]
    samples = frames * _frame_samples(packet[0])
    if not 0 < samples <= MAX_PACKET_SAMPLES:
        raise OpusError(f"packet of {samples} samples")
    return samples


def packet_frame_samples(packet: bytes) -> int:
    """Samples at 48 kHz in one frame of a packet: as far back as its FEC can reach."""
    if not packet:
        raise OpusError("empty packet")
    return _frame_samples(packet[0])


def packet_has_fec(packet: bytes) -> bool:
    """Whether a packet carries a copy (LBRR) of the frame before it; False for malformed ones.

    The first frame's SILK layer opens with a voice activity flag for each 20 ms and one LBRR flag,
    for the middle and then for the side channel (RFC 6716 section 4.2.3). All have even odds, so
    the range coder leaves them as the plain leading bits.
    """
    if not packet or packet[0] & 0x80:  # CELT has no such layer
        return False
    try:
        start, frame_bytes = _first_frame(packet)
        if frame_bytes <= 1:  # discontinuous transmission: nothing in it
            return False
        flags = packet[start]
    except IndexError:
        return False
    silk_frames = max(1, _frame_samples(packet[0]) // 960)
    middle = flags >> (7 - silk_frames) & 1
    stereo = packet[0] & 4
    side = flags >> (6 - 2 * silk_frames) & 1 if stereo else 0
    return bool(middle or side)


def _first_frame(packet: bytes) -> tuple[int, int]:
    """Where the first frame starts and how long it is (RFC 6716 section 3.2). IndexError if cut."""
    code = packet[0] & 3
    if code == 0:
        return 1, len(packet) - 1
    if code == 1:
        return 1, (len(packet) - 1) // 2
    if code == 2:
        frame_bytes, width = _frame_length(packet, 1)
        return 1 + width, frame_bytes
    frames, variable, padded = packet[1] & 0x3F, packet[1] & 0x80, packet[1] & 0x40
    at = 2
    padding_bytes = 0
    while padded:
        padding_bytes += min(packet[at], 254)
        padded = packet[at] == 255
        at += 1
    if not variable:
        return at, (len(packet) - at - padding_bytes) // max(1, frames)
    first_bytes = len(packet) - at - padding_bytes
    for index in range(frames - 1):
        frame_bytes, width = _frame_length(packet, at)
        at += width
        if index == 0:
            first_bytes = frame_bytes
    return at, first_bytes


def _frame_length(packet: bytes, at: int) -> tuple[int, int]:
    """A frame length of one or two bytes, and which (RFC 6716 section 3.2.1)."""
    if packet[at] < 252:
        return packet[at], 1
    return packet[at + 1] * 4 + packet[at], 2
