"""The tables of SPEC.md, written from the declarations in the code, so that the two cannot differ.

    python -m protocol.tables            write them
    python -m protocol.tables --check    say which are out of date (exit code 1)

A table stands between `<!-- table: NAME -->` and `<!-- end -->`.  Enumerations, frames, errors and
permissions say themselves what they mean; what has a name and a value only is explained here.
The worked example is no text either: it is made by the code, with fixed keys.
"""

import argparse
import hmac
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum, StrEnum
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import msgpack
import msgspec

from protocol import (
    connection,
    evidence,
    frames,
    jitter,
    link,
    notes,
    opus,
    packets,
    path_delay,
    reception,
    reliable,
    replay,
    sealing,
    text,
)
from protocol.connection import Chunk, CloseCode
from protocol.noise import Handshake, public_key
from protocol.packets import (
    Audible,
    AudioFlag,
    DownlinkAudio,
    Hello,
    Kind,
    Refusal,
    UplinkAudio,
    Welcome,
    key_id,
)
from protocol.roles import PERMISSIONS, SELF, SERVER_PERMISSIONS, Role, ServerRole
from protocol.sealing import Sealer, SessionKeys
from protocol.state_hash import StateHash

SPEC: Final = Path(__file__).with_name("SPEC.md")
LINE_BYTES: Final = 32  # of hexadecimal in the worked example

KINDS: Final = {
    Kind.HELLO: ("client to server", "begins a handshake"),
    Kind.WELCOME: ("server to client", "completes it"),
    Kind.COOKIE: ("server to client", "asks for the HELLO again, with proof of the address"),
    Kind.REFUSED: ("server to client", "turns the HELLO away, with a code"),
    Kind.CONTROL: ("both ways", "sealed: chunks"),
    Kind.AUDIO: ("both ways", "sealed: a voice (to the server), a mix (from the server)"),
    Kind.FEED: ("server to client", "sealed: updates of the space"),
    Kind.CROWD: ("server to client", "sealed: up to three packets of a mix"),
}

REFUSALS: Final = {
    Refusal.VERSION: "the server does not speak this version; the header says which it does",
    Refusal.WRONG_KEY: "the server has another key than the one the HELLO is for: an old link",
    Refusal.FULL: "the server takes no more sessions now",
}

CHUNKS: Final = {
    Chunk.PAD: "any number of bytes, zero when sent, not looked at when received",
    Chunk.DATA: "a segment of a message: section 8",
    Chunk.ACK: "what has arrived: section 8",
    Chunk.PING: "`token` 8 bytes",
    Chunk.PONG: "`token` 8 bytes, `status` u32",
    Chunk.CLOSE: "`code` u16, `text` UTF-8",
    Chunk.REPORT: "`expected` u16, `lost` u16, `bursts` u16, `queue` u16",
}

# Every constant a peer has to know, module by module, in the order of declaration.
LIMITS: Final[dict[ModuleType, dict[str, str]]] = {
    link: {
        "DEFAULT_PORT": "UDP port where a link names none",
    },
    packets: {
        "VERSION": "version byte",
        "MAX_DATAGRAM_BYTES": "longest datagram (UDP payload) of any kind",
        "HEADER_BYTES": "clear header of a sealed datagram",
        "TAG_BYTES": "AEAD tag",
        "MAX_PLAINTEXT_BYTES": "longest plaintext of a sealed datagram",
        "HELLO_BYTES": "length of every HELLO, and of the longest WELCOME",
        "HELLO_PAYLOAD_BYTES": "length of the padded greeting in a HELLO",
        "COOKIE_BYTES": "a cookie",
        "KEY_ID_BYTES": "a key id",
        "INDEX_BYTES": "an index",
        "COUNTER_LIMIT": "what fits into the counter field",
        "CAPTURE_UNIT_SAMPLES": "unit of `capture` in a mix (2.5 ms)",
        "MAX_AUDIBLE": "speakers listed in one packet of a mix",
        "MAX_COPIES": "earlier frames in one audio packet",
        "MAX_CROWD_PACKETS": "packets of a mix in one CROWD datagram",
    },
    replay: {
        "WINDOW_COUNTERS": "a counter older than the newest by more than this is refused",
        "COUNTER_LIMIT": "counters from here on are refused: a new handshake is needed before",
    },
    sealing: {
        "EPOCH_BITS": "epoch of a packet: its counter, shifted right by this",
        "EPOCH_PACKETS": "packets sealed under one key",
    },
    reliable: {
        "MAX_SEGMENT_BYTES": "message bytes in one DATA chunk",
        "MAX_MESSAGE_BYTES": "a message of the reliable channel; longer ones end the session",
        "MAX_QUEUED_BYTES": "messages queued and not acknowledged, at the sender",
        "MAX_QUEUED_MESSAGES": "the same, counted",
        "RECEIVE_WINDOW_SEGMENTS": "segments from the first missing one that a receiver takes",
        "MAX_ACK_RANGES": "ranges in one ACK",
        "MAX_ATTEMPTS": "timeouts in a row, with nothing new acknowledged, that end the session",
        "INITIAL_CONGESTION_SEGMENTS": "congestion window at first",
        "MIN_CONGESTION_SEGMENTS": "congestion window at least",
        "MAX_CONGESTION_SEGMENTS": "congestion window at most",
        "FAST_RETRANSMIT_SEGMENTS": "later segments acknowledged that tell of a loss",
        "INITIAL_RTO_NS": "RTO before the first measurement",
        "MIN_RTO_NS": "RTO at least",
        "MAX_RTO_NS": "RTO at most",
        "ACK_DELAY_NS": "longest delay of an acknowledgement",
        "ACK_EVERY_SEGMENTS": "segments received that make an acknowledgement due at once",
        "FIRST": "flag of DATA: first segment of its message",
        "LAST": "flag of DATA: last segment of its message",
        "MAX_DATA_BODY_BYTES": "body of a DATA chunk",
        "MAX_ACK_BODY_BYTES": "body of an ACK chunk",
    },
    connection: {
        "KEEPALIVE_NS": "a client pings when its last PING is this old",
        "QUIET_NS": "a client pings when it has heard and pinged nothing for this long",
        "KEEPALIVE_REPEAT_NS": "time from a keep-alive PING to the next, while there is no PONG",
        "KEEPALIVE_BYTES": "size to which the datagram of a keep-alive PING is padded",
        "IDLE_TIMEOUT_NS": "a session is lost when nothing authentic has come for this long",
        "CHALLENGE_REPEAT_NS": "repetition of the PING to an address not yet proven",
        "CHALLENGE_BYTES": "credit that is needed for that repetition",
        "CLOSE_REPEAT_NS": "repetition of CLOSE",
        "CLOSE_REPEATS": "how often CLOSE is sent while no answer comes",
        "DRAIN_NS": "how long a closed session still answers",
        "TOKEN_BYTES": "token of PING and PONG",
        "MAX_CLOSE_TEXT_BYTES": "text of a CLOSE",
        "MAX_QUEUED_PONGS": "unanswered PINGs that are remembered; the oldest is forgotten",
    },
    reception: {
        "WINDOW": "how far datagrams may overtake each other and do not count as lost",
        "MAX_GAP": "so many missing in a row are an interruption, and no loss",
        "REPORT_NS": "between two REPORTs; the first one comes when a loss is known",
        "REPORTS_AFTER_LOSS": "REPORTs after the last one that told of a loss or a queue",
        "QUEUE_MS": "a queue that is worth a REPORT",
    },
    frames: {
        "MAX_FRAME_BYTES": "an encoded frame",
        "MAX_NAME_CHARS": "a person's name, in Unicode code points",
        "MAX_TITLE_CHARS": "a space's title, in Unicode code points",
        "MAX_HANDLE_CHARS": "a handle, as it is sent",
        "MAX_POST_CHARS": "a post",
        "MAX_MESSAGE_CHARS": "a direct message",
        "MAX_CHAT_CHARS": "a line of chat",
        "MAX_CHAT_BYTES": "the same, in UTF-8",
        "MAX_REPORT_CHARS": "the note of a report, a reason",
        "MAX_LABEL_CHARS": "a device's label",
        "MAX_PAGE": "members, people or accounts in one page, at most",
        "MAX_TEXTS_PAGE": "spaces, messages, posts, reports or people who wait, in one page",
        "MAX_CHUNK_BYTES": "a part of a voice note or of evidence",
        "MAX_FEED_CATCH_UP": "updates that a server keeps for `catch_up`",
    },
    text: {
        "MAX_HANDLE_CHARS": "a handle, normalised",
        "MAX_MARKS": "combining marks in a row, in texts",
        "MAX_HANDLE_MARKS": "the same, in handles",
    },
    notes: {
        "MAX_NOTE_MS": "a voice note",
        "MAX_NOTE_BYTES": "the same, with the lengths of its packets",
    },
    evidence: {
        "MAX_RECORDING_BYTES": "what is sealed with a report, before sealing",
    },
    opus: {
        "SAMPLE_RATE": "samples a second in all timestamps",
        "MAX_PACKET_SAMPLES": "longest Opus packet (120 ms)",
    },
    jitter: {
        "MAX_PACKETS": "packets held by a jitter buffer",
        "MAX_SPAN_SAMPLES": "time line held by a jitter buffer (2 s)",
        "MAX_JUMP_NS": "change of transit time that starts a jitter buffer anew",
        "STEP_SAMPLES": "concealed at a time (20 ms)",
        "MAX_CONCEALED_SAMPLES": "concealed in a row before silence (200 ms)",
        "REMEMBERED": "timestamps of frames that have come",
        "STRETCH_INTERVAL_NS": "least time between two frames shortened or stretched",
        "URGENT_NS": "surplus above which every frame is shortened",
        "PATIENCE_NS": "for how long a soft part of the sound is waited for",
        "MAX_SURPLUS_NS": "surplus that is cut at once",
    },
    path_delay: {
        "MAX_MARGIN_MS": "greatest delay above the path's minimum that is weighed",
        "FIRST_MARGIN_MS": "delay above the path's minimum to begin with",
        "FIRST_FRAMES": "frames after which it is weighed",
        "PRIOR_FRAMES": "as many frames count as seen before the first one",
        "PRIOR_SHARE": "of which this share was late",
        "PRIOR_MS": "by so much on average",
        "RARE_MS": "delay that one frame in 4,000 too late is worth, and each doubling of that",
        "GUARD_MS": "delay kept beyond the latest frame that was seen",
        "WORTH_MS": "what a change of delay must save at least",
        "MOST_DRIFT_NS": "change of the minimum that is a clock's drift",
        "QUICK_FRAMES": "remembered to see what is over",
        "RARE_FRAMES": "remembered to see what is rare",
    },
}

_UNITS: Final = {
    "BYTES": "bytes",
    "SAMPLES": "samples",
    "SEGMENTS": "segments",
    "CHARS": "characters",
    "PACKETS": "packets",
    "COUNTERS": "counters",
    "BITS": "bits",
    "MS": "ms",
    "RATE": "Hz",
}


# -- how a table looks ----------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _remarks(kind: type[IntEnum]) -> dict[str, str]:
    """Member -> the comment beside it in the source."""
    found = re.findall(r"^    (\w+) = [^#\n]*#\s*(.+)$", inspect.getsource(kind), re.MULTILINE)
    return dict(found)


def quantity(name: str, value: int) -> str:
    """A constant's value with the unit that its name ends in."""
    if name.endswith("_NS"):
        return f"{value // 1_000_000:,} ms"
    if value >= 2**32:
        low = value & -value
        power = value.bit_length()
        if value == low:
            return f"2^{power - 1}"
        assert value + low == 1 << power, "a power of two, or one less another"
        return f"2^{power} - 2^{low.bit_length() - 1}"
    if name.endswith("_PORT"):
        return str(value)
    unit = _UNITS.get(name.rpartition("_")[2], "")
    return f"{value:,} {unit}".strip()


# -- frames ---------------------------------------------------------------------------------------


# Types with a meaning of their own, which the document explains once.
_PATTERNS: Final = {
    r"^[A-Za-z0-9_-]{1,32}\Z": "space id",
    r"^[A-Za-z0-9_-]{0,32}\Z": "space id or empty",
    r"^[A-Za-z0-9_-]{1,64}\Z": "token",
    r"^[A-Za-z0-9_-]{0,64}\Z": "token or empty",
}


def _type_words(kind: msgspec.inspect.Type) -> str:
    match kind:
        case msgspec.inspect.IntType(ge=0, le=255):
            return "u8"
        case msgspec.inspect.IntType(ge=0, le=0xFFFF_FFFF):
            return "u32"
        case msgspec.inspect.IntType(ge=1, le=0xFFFF_FFFF):
            return "u32, not 0"
        case msgspec.inspect.IntType(ge=int(low), le=int(high)) if high < 255:
            return f"u8, {low} to {high}"
        case msgspec.inspect.BytesType(min_length=int(low), max_length=high) if low == high:
            return f"binary, {low} bytes"
        case msgspec.inspect.BytesType(max_length=int(high)):
            return f"binary, at most {high:,} bytes"
        case msgspec.inspect.StrType(pattern=str(pattern)):
            return _PATTERNS[pattern]
        case msgspec.inspect.StrType(min_length=low, max_length=frames.MAX_HANDLE_CHARS):
            return "handle" if low else "handle or empty"
        case msgspec.inspect.StrType(min_length=low, max_length=int(high)):
            return f"string, {low or 0} to {high:,} characters"
        case msgspec.inspect.StrType():
            return "string"
        case msgspec.inspect.BoolType():
            return "boolean"
        case msgspec.inspect.EnumType(cls=cls):
            return "one of " + ", ".join(f'"{member.value}"' for member in cls)
        case msgspec.inspect.ListType(item_type=item):
            return f"array of {_type_words(item)}"
        case msgspec.inspect.StructType(cls=cls):
            return cls.__name__
        case msgspec.inspect.DictType(value_type=msgspec.inspect.IntType()):
            return "map, string to u32"
        case msgspec.inspect.DictType():
            return "map (an update)"
    raise TypeError(f"no words for {kind}")


def _default_words(default: object) -> str:
    match default:
        case bool():
            return str(default).lower()
        case str():
            return f'"{default}"'
        case msgspec.Struct():
            return "its defaults"
    return str(default)


def times(kind: type[msgspec.Struct]) -> set[str]:
    """The fields that are points in time: to msgspec, they are numbers like others."""
    return set(re.findall(r"^    (\w+): Time\b", inspect.getsource(kind), re.MULTILINE))


def _fields(kind: type[msgspec.Struct]) -> str:
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    cells = []
    for field in info.fields:
        words = "time" if field.name in times(kind) else _type_words(field.type)
        if not field.required:
            words += ", optional"
            if field.default is not msgspec.NODEFAULT:
                words += f" (else {_default_words(field.default)})"
        cells.append(f"`{field.encode_name}`: {words}")
    return "<br>".join(cells)


def _frame_table(kinds: Sequence[type[msgspec.Struct]], *, replies: bool = False) -> str:
    rows = []
    for kind in kinds:
        text = _one_line(kind.__doc__)
        reply = re.search(r" ?Reply: (`\w+`)\.", text)
        row = [f"`{frames.tag(kind)}`", _fields(kind)]
        if replies:
            assert reply, f"{kind.__name__} does not say what its reply is"
            text = text.replace(reply[0], "").strip()
            row.append(reply[1])
        rows.append([*row, text])
    head = ["`type`", "fields", "reply", "meaning"] if replies else ["`type`", "fields", "meaning"]
    return _table(head, rows)


STRUCTURES: Final = (
    frames.Member, frames.Settings, frames.Snapshot, frames.VoiceClock, frames.Reaction,
    frames.FeedBatch,
    frames.Account, frames.Person, frames.Device, frames.Waiting, frames.SpaceInfo,
    frames.InviteInfo, frames.MessageInfo, frames.PostInfo, frames.ReportInfo,
    frames.Greeting,
)  # fmt: skip


def _structures() -> str:
    return _table(
        ["map", "fields", "meaning"],
        ([kind.__name__, _fields(kind), _one_line(kind.__doc__)] for kind in STRUCTURES),
    )


# -- everything else ------------------------------------------------------------------------------


def _kinds() -> str:
    rows = ([f"0x{k:02x}", k.name, *KINDS[k]] for k in Kind)
    return _table(["first byte", "kind", "direction", "purpose"], rows)


def _refusals() -> str:
    return _table(
        ["code", "name", "meaning"], ([str(int(r)), r.name, REFUSALS[r]] for r in Refusal)
    )


def _chunks() -> str:
    return _table(["kind", "name", "body"], ([f"0x{c:02x}", c.name, CHUNKS[c]] for c in Chunk))


def _close_codes() -> str:
    remarks = _remarks(CloseCode)
    return _table(
        ["code", "name", "meaning"], ([str(int(c)), c.name, remarks[c.name]] for c in CloseCode)
    )


def _flags() -> str:
    remarks = _remarks(AudioFlag)
    return _table(
        ["bit", "name", "meaning"],
        ([f"0x{int(f):02x}", str(f.name), remarks[str(f.name)]] for f in AudioFlag),
    )


def _errors() -> str:
    return _table(
        ["code", "meaning"],
        ([f"`{code.value}`", frames.ERROR_TEXTS[code]] for code in frames.ErrorCode),
    )


def _permission_table(table: Any, roles: type[StrEnum]) -> str:
    order = [SELF, *roles]

    def cell(targets: frozenset[str]) -> str:
        return ", ".join(target for target in order if target in targets) or "-"

    rows = (
        [f"`{action.value}`", *(cell(by_role[role]) for role in roles)]
        for action, by_role in table.items()
    )
    return _table(["action", *(role.value for role in roles)], rows)


def _limits() -> str:
    rows = (
        [
            f"`{module.__name__.rpartition('.')[2]}.{name}`",
            quantity(name, getattr(module, name)),
            text,
        ]
        for module, entries in LIMITS.items()
        for name, text in entries.items()
    )
    return _table(["constant", "value", "meaning"], rows)


# -- the worked example ---------------------------------------------------------------------------


def example() -> dict[str, bytes]:
    """Name -> value of everything in SPEC.md's example, in the order in which it comes about."""
    client_static, server_static = bytes(range(0x20)), bytes(range(0x20, 0x40))
    client_ephemeral, server_ephemeral = bytes(range(0x40, 0x60)), bytes(range(0x60, 0x80))
    client_index, server_index = 0x0A0B0C0D, 0x1A1B1C1D
    server_key = public_key(server_static)
    name = key_id(server_key)

    bare = Hello(packets.VERSION, client_index, name, packets.NO_COOKIE, b"")
    client = Handshake(
        initiator=True,
        prologue=bare.prologue,
        entropy=lambda _: client_ephemeral,
        static=client_static,
        remote_static=server_key,
    )
    server = Handshake(
        initiator=False,
        prologue=bare.prologue,
        entropy=lambda _: server_ephemeral,
        static=server_static,
    )
    greeting = frames.encode_greeting("example client", packets.HELLO_PAYLOAD_BYTES)
    answer = server_index.to_bytes(packets.INDEX_BYTES) + frames.encode_greeting("example server")
    hello = Hello(packets.VERSION, client_index, name, packets.NO_COOKIE, client.write(greeting))
    server.read(hello.noise)
    welcome = Welcome(client_index, server.write(answer))
    client.read(welcome.noise)
    to_server, to_client = client.split()
    keys = SessionKeys.derive(send=to_server.key, receive=to_client.key)

    join = frames.encode(frames.Join(id=1, space="lobby", name="Ada", packet_ms=60))
    channel = reliable.ReliableChannel()
    channel.send(join)
    data = channel.poll_data(0, reliable.MAX_DATA_BODY_BYTES)
    assert data is not None, "an open channel gives its first segment at once"
    ping = bytes(range(0x80, 0x80 + connection.TOKEN_BYTES))
    control = _chunk(Chunk.PING, ping) + _chunk(Chunk.DATA, data)
    silence = bytes.fromhex("f8fffe")  # 20 ms of silence, CELT, mono
    voice = UplinkAudio(0xFFFFFE20, AudioFlag.FIRST, silence).pack()
    mix = DownlinkAudio(0x000F4240, AudioFlag.FIRST, (Audible(3, 42, 0x1234),), silence).pack()
    last = DownlinkAudio(0x000F4600, AudioFlag.LAST, (), silence).pack()
    [(_, crowd)] = packets.gather([mix, last])
    member = frames.Member(id=7, name="Ada", handle="ada", role=Role.SPEAKER, seat=3)
    updates = [frames.encode_update(u) for u in (
        frames.MemberUpdate(member=member), frames.ListenersUpdate(count=12)
    )]  # fmt: skip
    entries = {
        "space": ("space", "Example", "public", "invited", False, True, 0),
        "listeners": ("listeners", 12),
        "member": ("member", 7, "Ada", "ada", "speaker", 3, False, False, 0),
    }
    state = frames.Snapshot(
        number=6, title="Example", settings=frames.Settings(), members=[member], listeners=12
    )
    state_hash = StateHash.of(state).value
    feed = frames.encode(
        frames.FeedBatch(space="4LyR-2n6u9v0", first=5, updates=updates, hash=state_hash)
    )

    downlink = Sealer(keys.receive_media, client_index)
    return {
        "client static private": client_static,
        "client static public": public_key(client_static),
        "server static private": server_static,
        "server static public": server_key,
        "client ephemeral private": client_ephemeral,
        "server ephemeral private": server_ephemeral,
        "client index": client_index.to_bytes(4),
        "server index": server_index.to_bytes(4),
        "key id": name,
        "prologue": bare.prologue,
        "client greeting": greeting,
        "HELLO": hello.pack(),
        "server payload": answer,
        "WELCOME": welcome.pack(),
        "handshake hash": client.hash,
        "split: client to server": to_server.key,
        "split: server to client": to_client.key,
        "client to server, control secret": keys.send_control,
        "client to server, media secret": keys.send_media,
        "server to client, control secret": keys.receive_control,
        "server to client, media secret": keys.receive_media,
        **_epochs("client to server, control", keys.send_control),
        **_epochs("client to server, media", keys.send_media),
        **_epochs("server to client, media", keys.receive_media),
        "join frame": join,
        "CONTROL plaintext": control,
        "CONTROL, client to server, counter 0": Sealer(keys.send_control, server_index).seal(
            Kind.CONTROL, control
        ),
        "AUDIO plaintext, client to server": voice,
        "AUDIO, client to server, counter 0": Sealer(keys.send_media, server_index).seal(
            Kind.AUDIO, voice
        ),
        "AUDIO plaintext, server to client": mix,
        "AUDIO, server to client, counter 0": downlink.seal(Kind.AUDIO, mix),
        "FEED plaintext": feed,
        "FEED, server to client, counter 1": downlink.seal(Kind.FEED, feed),
        "CROWD plaintext": crowd,
        "CROWD, server to client, counter 2": downlink.seal(Kind.CROWD, crowd),
        **{f"state hash, entry {name}": msgpack.packb(entry) for name, entry in entries.items()},
        "state hash": state_hash.to_bytes(4),
        **_evidence(public_key(client_static), silence),
    }


def _evidence(device: bytes, silence: bytes) -> dict[str, bytes]:
    """A recording of two packets, sealed for one device."""
    recording = [(0xFFFFFE20, silence), (0x000001E0, silence)]
    drawn = [bytes(range(0xA0, 0xC0)), bytes(range(0xC0, 0xE0))]
    content_key, sender_private = drawn
    sealed = evidence.seal(recording, [device], lambda _: drawn.pop(0))
    return {
        "evidence, recording": evidence.pack(recording),
        "evidence, content key": content_key,
        "evidence, sender private": sender_private,
        "evidence, sender_key": sealed.keys[device].sender_key,
        "evidence, sealed_key": sealed.keys[device].sealed_key,
        "evidence, data": sealed.data,
    }


def _chunk(kind: Chunk, body: bytes) -> bytes:
    return bytes([kind]) + len(body).to_bytes(2) + body


def _epochs(chain: str, secret: bytes) -> dict[str, bytes]:
    """The keys of a chain's first two epochs, by the labels of the key schedule."""
    return {
        f"{chain} key, epoch 0": _expand(secret, b"key")[:16],
        f"{chain} key, epoch 1": _expand(_expand(secret, b"next"), b"key")[:16],
    }


def _expand(secret: bytes, label: bytes) -> bytes:
    """HKDF-Expand of at most 32 bytes, as SPEC.md words it; the tests hold it against sealing."""
    return hmac.digest(secret, b"spaces 1 " + label + b"\x01", "sha256")


def _example() -> str:
    lines = ["```text"]
    for name, value in example().items():
        lines.append(f"{name} ({len(value)} bytes)")
        text = value.hex()
        step = 2 * LINE_BYTES
        lines += ["    " + text[at : at + step] for at in range(0, len(text), step)]
    return "\n".join([*lines, "```"])


def parse_example(text: str) -> dict[str, bytes]:
    """The inverse: name -> value, from the text of SPEC.md."""
    found = re.findall(r"^(\S.*) \((\d+) bytes\)\n((?:    [0-9a-f]+\n)+)", text, re.MULTILINE)
    values = {name: bytes.fromhex(digits) for name, _, digits in found}
    for name, size, _ in found:
        if len(values[name]) != int(size):
            raise ValueError(f"{name} has {len(values[name])} bytes, not {size}")
    return values


# -- into the document ----------------------------------------------------------------------------

TABLES: Final[dict[str, Callable[[], str]]] = {
    "kinds": _kinds,
    "refusals": _refusals,
    "chunks": _chunks,
    "close codes": _close_codes,
    "requests in a space": lambda: _frame_table(frames.SPACE_REQUESTS, replies=True),
    "requests of people": lambda: _frame_table(frames.PEOPLE_REQUESTS, replies=True),
    "requests of finding": lambda: _frame_table(frames.FINDING_REQUESTS, replies=True),
    "requests of safety": lambda: _frame_table(frames.SAFETY_REQUESTS, replies=True),
    "replies": lambda: _frame_table(frames.REPLIES),
    "notices": lambda: _frame_table(frames.NOTICES),
    "updates": lambda: _frame_table(frames.UPDATES),
    "structures": _structures,
    "errors": _errors,
    "permissions": lambda: _permission_table(PERMISSIONS, Role),
    "server permissions": lambda: _permission_table(SERVER_PERMISSIONS, ServerRole),
    "flags": _flags,
    "limits": _limits,
    "example": _example,
}

_MARKED = re.compile(r"(<!-- table: ([\w ]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def fill(text: str) -> tuple[str, list[str]]:
    """-> (the document with every table as it must be, the names of those that were not).
    Raises ValueError for a table that the document lacks, has twice, or that nobody makes."""
    names = [match[2] for match in _MARKED.finditer(text)]
    if sorted(names) != sorted(TABLES):
        odd = sorted(set(names) ^ set(TABLES)) or [n for n in names if names.count(n) > 1]
        raise ValueError(f"tables missing, unknown or repeated: {', '.join(odd)}")
    stale: list[str] = []

    def filled(match: re.Match[str]) -> str:
        body = TABLES[match[2]]() + "\n"
        if body != match[3]:
            stale.append(match[2])
        return match[1] + body + match[4]

    return _MARKED.sub(filled, text), stale


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m protocol.tables", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, only tell")
    check: bool = parser.parse_args(arguments).check
    text, stale = fill(SPEC.read_text(encoding="utf-8"))
    if check and stale:
        print(f"{SPEC.name} is out of date: {', '.join(stale)}; run python -m protocol.tables")
        return 1
    if stale:
        SPEC.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
