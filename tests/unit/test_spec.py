"""SPEC.md against the code: its tables are what the code declares, its prose names what the code
does, and its worked example opens with the product's own parts and by the text's own formulas."""

import hashlib
import hmac
import re
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import ModuleType

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocol import connection, frames, link, packets, reliable, replay, sealing, tables
from protocol.connection import Chunk, CloseCode, Connection, Media, Message, Pong
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
)
from protocol.roles import PERMISSIONS, Action, Role
from protocol.sealing import EPOCH_PACKETS, Opener, Sealer, SessionKeys
from spaces_client import client as client_module
from spaces_server import endpoint, feed, node, space
from spaces_server.endpoint import Endpoint

SPEC = tables.SPEC.read_text(encoding="utf-8")
PROSE = " ".join(SPEC.split())  # without line ends, so that a search may cross them
EXAMPLE = tables.parse_example(SPEC)
WIRE_MODULES = (link, packets, replay, sealing, reliable, connection, frames)


def ms(value_ns: int) -> str:
    return f"{value_ns // 1_000_000:,} ms"


# -- the tables -----------------------------------------------------------------------------------


def test_every_table_is_up_to_date() -> None:
    filled, stale = tables.fill(SPEC)
    assert stale == [], "run: python -m protocol.tables"
    assert filled == SPEC


def test_what_is_stale_is_named_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "SPEC.md"
    stale = SPEC.replace("| `stage_full` |", "| `stage_fool` |").replace(
        "| 3 | FULL |", "| 9 | FULL |"
    )
    assert stale != SPEC
    copy.write_text(stale, encoding="utf-8")
    monkeypatch.setattr(tables, "SPEC", copy)
    assert tables.main(["--check"]) == 1
    assert "refusals, errors" in capsys.readouterr().out
    assert copy.read_text(encoding="utf-8") == stale, "--check changes nothing"
    assert tables.main([]) == 0
    assert copy.read_text(encoding="utf-8") == SPEC
    assert tables.main(["--check"]) == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("<!-- table: errors -->", ""),
        lambda text: text.replace("<!-- table: errors -->", "<!-- table: erorrs -->"),
        lambda text: text + "\n<!-- table: errors -->\n<!-- end -->\n",
    ],
)
def test_a_table_that_is_missing_unknown_or_repeated_is_an_error(
    damage: Callable[[str], str],
) -> None:
    with pytest.raises(ValueError, match="errors"):
        tables.fill(damage(SPEC))


@pytest.mark.parametrize(
    ("enum", "row"),
    [
        (Kind, "| 0x{0.value:02x} | {0.name} |"),
        (Refusal, "| {0.value} | {0.name} |"),
        (Chunk, "| 0x{0.value:02x} | {0.name} |"),
        (CloseCode, "| {0.value} | {0.name} |"),
        (AudioFlag, "| 0x{0.value:02x} | {0.name} |"),
        (frames.ErrorCode, "| `{0.value}` |"),
        (Action, "| `{0.value}` |"),
    ],
)
def test_every_member_has_a_row(enum: type[Enum], row: str) -> None:
    for member in enum:
        assert row.format(member) in SPEC


def test_every_frame_has_a_row_with_all_its_fields() -> None:
    kinds = (*frames.REQUESTS, *frames.REPLIES, *frames.NOTICES, *frames.UPDATES)
    for kind in kinds:
        rows = re.findall(rf"^\| `{frames.tag(kind)}` \| (.*)$", SPEC, re.MULTILINE)
        fields = kind.__struct_encode_fields__
        assert any(all(f"`{field}`: " in row for field in fields) for row in rows), kind


def test_every_request_names_a_reply_that_exists() -> None:
    replies = {frames.tag(kind) for kind in frames.REPLIES}
    for kind in frames.REQUESTS:
        row = re.search(
            rf"^\| `{frames.tag(kind)}` \|[^|]*`id`[^|]*\| `(\w+)` \|", SPEC, re.MULTILINE
        )
        assert row, kind
        assert row[1] in replies


def test_every_cell_of_the_permissions_is_told() -> None:
    for action, by_role in PERMISSIONS.items():
        row = re.search(
            rf"^\| `{action}` \| ([a-z_, -]+(?: \| [a-z_, -]+){{3}}) \|$", SPEC, re.MULTILINE
        )
        assert row, action
        for role, cell in zip(Role, row[1].split(" | "), strict=True):
            told = set() if cell == "-" else set(cell.split(", "))
            assert told == {str(target) for target in by_role[role]}, (action, role)


def test_every_error_is_given_to_some_request() -> None:
    section = SPEC[SPEC.index("| request | errors") : SPEC.index("## 10.")]
    for code in frames.ErrorCode:
        assert f"`{code}`" in section


@pytest.mark.parametrize("module", WIRE_MODULES, ids=lambda module: module.__name__)
def test_every_constant_of_the_wire_is_a_limit(module: ModuleType) -> None:
    assert module.__file__ is not None
    own = re.findall(
        r"^([A-Z][A-Z0-9_]*)(?:: Final)? = ", Path(module.__file__).read_text(), re.MULTILINE
    )
    constants = {name for name in own if type(getattr(module, name)) is int} - {"MS"}
    assert constants == set(tables.LIMITS[module])
    short = module.__name__.rpartition(".")[2]
    for name in constants:
        value = tables.quantity(name, getattr(module, name))
        assert f"| `{short}.{name}` | {value} |" in SPEC


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("X_NS", 1_500_000_000, "1,500 ms"),
        ("X_BYTES", 65_536, "65,536 bytes"),
        ("DEFAULT_PORT", 5004, "5004"),
        ("X_LIMIT", 2**56, "2^56"),
        ("X_LIMIT", 2**56 - 2**13, "2^56 - 2^13"),
        ("MAX_PAGE", 100, "100"),
    ],
)
def test_quantities(name: str, value: int, shown: str) -> None:
    assert tables.quantity(name, value) == shown


# -- the prose ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        f"{ms(client_module.HELLO_REPEAT_NS)} after the HELLO was first sent",
        f"{ms(client_module.CONNECT_TIMEOUT_NS)} after the very start",
        f"no media has come for {ms(client_module.GAP_NS)}, it sends such a padded PING",
        f"not more than once in {ms(client_module.ASK_AGAIN_NS)}",
        f"forgotten after {endpoint.HALF_OPEN_TIMEOUT_NS // 10**9} s",
        f"more than {endpoint.MAX_HALF_OPEN:,}.",
        f"more than {endpoint.MAX_HALF_OPEN // 2:,} sessions are half open",
        f"more than {endpoint.COOKIES_ABOVE_HELLOS_PER_S} HELLOs",
        f"changes every {endpoint.COOKIE_LIFETIME_NS // 10**9} s",
        f"{ms(feed.GATHER_NS)} at most (and a tick)",
        f"until {space.MAX_INVITES} newer ones",
        f"({space.MAX_HANDS} hands are up)",
        f"from 0 to {space.SEATS - 1} by which",
        f"The stage holds {node.Limits().stage_size}, host included",
        f"{node.Limits().max_sessions:,} sessions, {node.Limits().max_spaces:,} spaces",
        f"{node.Limits().bitrate // 1_000} kbit/s unless",
        f"nothing (section 6.3) for {ms(connection.IDLE_TIMEOUT_NS)}",
        f"{ms(connection.KEEPALIVE_NS)} after its last PING",
        f"PAD to {connection.KEEPALIVE_BYTES} bytes",
        f"credit for at least {connection.CHALLENGE_BYTES} bytes",
        f"{ms(connection.CHALLENGE_REPEAT_NS)} after the last",
        f"forgotten {ms(connection.DRAIN_NS)} after",
        f"At most {connection.MAX_QUEUED_PONGS} PINGs",
        f"UTF-8, at most {connection.MAX_CLOSE_TEXT_BYTES} bytes",
        f"within {ms(reliable.ACK_DELAY_NS)}",
        f"from {reliable.MIN_RTO_NS // 10**6} to {ms(reliable.MAX_RTO_NS)}",
        f"after {reliable.MAX_ATTEMPTS} ends of the timer in a row",
        f"at least {reliable.FAST_RETRANSMIT_SEGMENTS} later ones",
        f"starts at {reliable.INITIAL_CONGESTION_SEGMENTS} segments",
        f"more than {replay.WINDOW_COUNTERS:,} below",
        f"the server keeps {frames.MAX_FEED_CATCH_UP} updates",
        f"`n`, 0 to {packets.MAX_AUDIBLE}:",
        f"divided by {packets.CAPTURE_UNIT_SAMPLES} (units",
        f"longer than {packets.MAX_DATAGRAM_BYTES:,} bytes",
        f"Without a port it is {link.DEFAULT_PORT}.",
    ],
)
def test_the_prose_says_the_numbers_of_the_code(said: str) -> None:
    assert said in PROSE


def test_the_times_of_the_handshake_and_of_probing_are_those_of_the_client() -> None:
    """What the text gives as a row of numbers, from the constants they follow from."""
    most_ns = client_module.MAX_HELLO_REPEAT_NS
    assert most_ns == 2 * client_module.HELLO_REPEAT_NS
    assert f"send the same bytes again, and then every {ms(most_ns)}" in PROSE
    gap_ms = client_module.GAP_NS // 10**6
    assert 8 * gap_ms == client_module.MAX_PROBE_REPEAT_NS // 10**6
    said = (
        f"again {2 * gap_ms}, {4 * gap_ms} and then each time {8 * gap_ms} ms after the one before"
    )
    assert said in PROSE
    assert client_module.PROBES == 8
    assert "eight times at most" in PROSE


def test_every_section_that_is_referred_to_exists() -> None:
    headings = set(re.findall(r"^#{2,3} (\d+(?:\.\d+)?)\.? ", SPEC, re.MULTILINE))
    references = set(
        re.findall(r"section (\d+(?:\.\d+)?)", re.sub(r"RFC \d+, section [\d.]+", "", PROSE))
    )
    assert references
    assert references <= headings


# -- the worked example ---------------------------------------------------------------------------


def expand(secret: bytes, label: str, length_bytes: int) -> bytes:
    """Section 6.1 in the words of RFC 5869; one block of SHA-256 is enough for all lengths."""
    info = b"spaces 1 " + label.encode("ascii")
    return hmac.new(secret, info + b"\x01", hashlib.sha256).digest()[:length_bytes]


def client_handshake() -> tuple[Handshake, Hello]:
    hello = Hello.unpack(EXAMPLE["HELLO"])
    handshake = Handshake(
        initiator=True,
        prologue=EXAMPLE["prologue"],
        entropy=lambda _: EXAMPLE["client ephemeral private"],
        static=EXAMPLE["client static private"],
        remote_static=EXAMPLE["server static public"],
    )
    return handshake, hello


def connect(*, is_client: bool) -> Connection:
    """One end of the example's session, with the keys that the document gives."""
    ours, theirs = ("client to server", "server to client")
    if not is_client:
        ours, theirs = theirs, ours
    return Connection(
        SessionKeys.derive(send=EXAMPLE[f"split: {ours}"], receive=EXAMPLE[f"split: {theirs}"]),
        remote_index=int.from_bytes(EXAMPLE["server index" if is_client else "client index"]),
        address=b"address",
        now_ns=0,
        entropy=lambda _: EXAMPLE["CONTROL plaintext"][3:11],  # the token of the PING
        keep_alive=is_client,
    )


def test_nothing_of_the_example_gets_lost_on_paper() -> None:
    assert tables.example() == EXAMPLE


def test_the_public_keys_the_key_id_and_the_link() -> None:
    for who in ("client", "server"):
        assert public_key(EXAMPLE[f"{who} static private"]) == EXAMPLE[f"{who} static public"]
    server_key = EXAMPLE["server static public"]
    assert hashlib.sha256(b"spaces key id" + server_key).digest()[:8] == EXAMPLE["key id"]
    text = re.search(r"`(spaces://example\.org/[^`]*)`", PROSE)
    assert text
    parsed = link.Link.parse(text[1])
    assert parsed == link.Link("example.org", link.DEFAULT_PORT, server_key, "lobby")


def test_the_hello_and_the_welcome() -> None:
    handshake, hello = client_handshake()
    assert hello.client_index.to_bytes(4) == EXAMPLE["client index"]
    assert (hello.version, hello.key_id, hello.cookie) == (1, EXAMPLE["key id"], bytes(16))
    assert hello.prologue == EXAMPLE["prologue"]
    assert handshake.write(EXAMPLE["client greeting"]) == hello.noise
    welcome = Welcome.unpack(EXAMPLE["WELCOME"])
    assert welcome.client_index == hello.client_index
    assert EXAMPLE["server payload"][:4] == EXAMPLE["server index"]
    assert handshake.read(welcome.noise) == EXAMPLE["server payload"]
    assert handshake.hash == EXAMPLE["handshake hash"]
    assert frames.decode_greeting(EXAMPLE["client greeting"]).agent == "example client"
    assert frames.decode_greeting(EXAMPLE["server payload"][4:]).agent == "example server"
    send, receive = handshake.split()
    assert send.key == EXAMPLE["split: client to server"]
    assert receive.key == EXAMPLE["split: server to client"]


def test_a_server_takes_the_hello_and_its_client_the_answer() -> None:
    scripted = iter([EXAMPLE["server index"], EXAMPLE["server ephemeral private"]])
    server = Endpoint(EXAMPLE["server static private"], lambda _: next(scripted))
    server.receive(EXAMPLE["HELLO"], b"address", 0)
    [(answer, to)] = server.outbox
    assert to == b"address"
    welcome = Welcome.unpack(answer)
    handshake, _ = client_handshake()
    handshake.write(EXAMPLE["client greeting"])
    payload = handshake.read(welcome.noise)
    assert payload[:4] == EXAMPLE["server index"]
    assert frames.decode_greeting(payload[4:]).agent.startswith("spaces-server")
    send, _ = handshake.split()
    assert send.key == EXAMPLE["split: client to server"], "greetings do not enter the keys"
    received = server.receive(EXAMPLE["CONTROL, client to server, counter 0"], b"address", 0)
    assert received is not None
    session, events, new = received
    assert new
    assert session.identity == EXAMPLE["client static public"]
    assert events == [Message(EXAMPLE["join frame"])]


@pytest.mark.parametrize("direction", ["client to server", "server to client"])
def test_the_key_schedule_by_its_formulas(direction: str) -> None:
    split = EXAMPLE[f"split: {direction}"]
    for chain in ("control", "media"):
        secret = expand(split, chain, 32)
        assert secret == EXAMPLE[f"{direction}, {chain} secret"]
        name = f"{direction}, {chain} key, epoch"
        if f"{name} 0" in EXAMPLE:
            assert EXAMPLE[f"{name} 0"] == expand(secret, "key", 16)
            assert EXAMPLE[f"{name} 1"] == expand(expand(secret, "next", 32), "key", 16)


@pytest.mark.parametrize("epoch", [0, 1])
def test_the_product_seals_with_the_keys_of_the_example(epoch: int) -> None:
    sealer = Sealer(EXAMPLE["server to client, media secret"], 0x0A0B0C0D)
    sealer.counter = epoch * EPOCH_PACKETS
    datagram = sealer.seal(Kind.AUDIO, b"plaintext")
    aead = AESGCM(EXAMPLE[f"server to client, media key, epoch {epoch}"])
    assert aead.decrypt(datagram[:12], datagram[12:], b"") == b"plaintext"


SEALED = {
    "CONTROL, client to server, counter 0": ("client to server, control", "CONTROL plaintext"),
    "AUDIO, client to server, counter 0": (
        "client to server, media",
        "AUDIO plaintext, client to server",
    ),
    "AUDIO, server to client, counter 0": (
        "server to client, media",
        "AUDIO plaintext, server to client",
    ),
    "FEED, server to client, counter 1": ("server to client, media", "FEED plaintext"),
}


@pytest.mark.parametrize("name", SEALED)
def test_a_sealed_datagram_opens_with_its_header_as_nonce(name: str) -> None:
    chain, plaintext = SEALED[name]
    datagram = EXAMPLE[name]
    kind, counter, index = packets.unpack_header(datagram)
    assert Kind(kind).name == name.partition(",")[0]
    assert counter == int(name[-1])
    receiver = "server" if "client to server" in name else "client"
    assert index.to_bytes(4) == EXAMPLE[f"{receiver} index"]
    aead = AESGCM(EXAMPLE[f"{chain} key, epoch 0"])
    assert aead.decrypt(datagram[:12], datagram[12:], b"") == EXAMPLE[plaintext]
    opener = Opener(EXAMPLE[f"{chain} secret"])
    assert opener.open(datagram, counter) == EXAMPLE[plaintext]
    with pytest.raises(InvalidTag):
        aead.decrypt(bytes([datagram[0] ^ 0x03]) + datagram[1:12], datagram[12:], b"")


def test_the_sessions_of_the_example_take_their_datagrams() -> None:
    server, client = connect(is_client=False), connect(is_client=True)
    client.ping(0)
    client.send(EXAMPLE["join frame"])
    [control] = client.transmit(0)
    assert control == EXAMPLE["CONTROL, client to server, counter 0"]
    assert server.receive(control, b"address", 0) == [Message(EXAMPLE["join frame"])]
    frame = frames.decode(EXAMPLE["join frame"])
    assert frame == frames.Join(id=1, space="lobby", name="Ada")
    [pong] = server.transmit(0)
    assert client.receive(pong, b"address", 1_000) == [Pong(0, 1_000, 0)]
    assert client.receive(pong, b"address", 1_000) is None, "a repeated datagram is dropped"

    voice = EXAMPLE["AUDIO plaintext, client to server"]
    up = server.receive(EXAMPLE["AUDIO, client to server, counter 0"], b"address", 0)
    assert up == [Media(Kind.AUDIO, 0, voice)]
    assert UplinkAudio.unpack(voice) == UplinkAudio(0xFFFFFE20, AudioFlag.FIRST, b"\xf8\xff\xfe")

    mix = EXAMPLE["AUDIO plaintext, server to client"]
    down = client.receive(EXAMPLE["AUDIO, server to client, counter 0"], b"address", 0)
    assert down == [Media(Kind.AUDIO, 0, mix)]
    heard = (Audible(seat=3, level=42, capture=0x1234),)
    assert DownlinkAudio.unpack(mix) == DownlinkAudio(
        1_000_000, AudioFlag.FIRST, heard, b"\xf8\xff\xfe"
    )

    told = client.receive(EXAMPLE["FEED, server to client, counter 1"], b"address", 0)
    assert told == [Media(Kind.FEED, 1, EXAMPLE["FEED plaintext"])]
    batch = frames.decode_feed(EXAMPLE["FEED plaintext"])
    assert batch.first == 5
    assert [frames.decode_update(update) for update in batch.updates] == [
        frames.MemberUpdate(member=frames.Member(id=7, name="Ada", role=Role.SPEAKER, seat=3)),
        frames.ListenersUpdate(count=12),
    ]


def test_a_damaged_example_is_noticed() -> None:
    with pytest.raises(ValueError, match="prologue"):
        tables.parse_example(SPEC.replace("prologue (32 bytes)", "prologue (31 bytes)"))


def test_the_handshake_as_it_is_spelt_out() -> None:
    """Section 5.1 line by line, with primitives only: HELLO and WELCOME come out."""
    h = ck = b"Noise_IK_25519_AESGCM_SHA256" + bytes(4)
    k, n = b"", 0

    def dh(private: str, public: bytes) -> bytes:
        key = X25519PrivateKey.from_private_bytes(EXAMPLE[private])
        return key.exchange(X25519PublicKey.from_public_bytes(public))

    def mix_hash(data: bytes) -> None:
        nonlocal h
        h = hashlib.sha256(h + data).digest()

    def mix(secret: bytes) -> None:
        nonlocal ck, k, n
        both = HKDF(SHA256(), 64, ck, b"").derive(secret)
        ck, k, n = both[:32], both[32:], 0

    def seal(text: bytes) -> bytes:
        nonlocal n
        sealed = AESGCM(k).encrypt(bytes(4) + n.to_bytes(8), text, h)
        n += 1
        mix_hash(sealed)
        return sealed

    x = public_key(EXAMPLE["client ephemeral private"])
    y = public_key(EXAMPLE["server ephemeral private"])
    mix_hash(EXAMPLE["prologue"])
    mix_hash(EXAMPLE["server static public"])
    mix_hash(x)
    mix(dh("client ephemeral private", EXAMPLE["server static public"]))
    first = x + seal(EXAMPLE["client static public"])
    mix(dh("client static private", EXAMPLE["server static public"]))
    first += seal(EXAMPLE["client greeting"])
    assert EXAMPLE["HELLO"][32:] == first
    mix_hash(y)
    mix(dh("client ephemeral private", y))
    mix(dh("client static private", y))
    assert EXAMPLE["WELCOME"][8:] == y + seal(EXAMPLE["server payload"])
    assert h == EXAMPLE["handshake hash"]
    keys = HKDF(SHA256(), 64, ck, b"").derive(b"")
    assert keys[:32] == EXAMPLE["split: client to server"]
    assert keys[32:] == EXAMPLE["split: server to client"]
