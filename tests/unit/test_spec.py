"""SPEC.md against the code: its tables are what the code declares, its prose names what the code
does, and its worked example opens with the product's own parts and by the text's own formulas."""

import hashlib
import hmac
import inspect
import random
import re
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import msgpack
import msgspec
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from protocol import (
    connection,
    evidence,
    frames,
    link,
    notes,
    opus,
    packets,
    reliable,
    replay,
    sealing,
    state_hash,
    tables,
    text,
)
from protocol.connection import Chunk, CloseCode, Connection, Media, Message, Pong
from protocol.noise import Handshake, public_key
from protocol.opening import Opening
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
from protocol.roles import (
    PERMISSIONS,
    SERVER_PERMISSIONS,
    Action,
    Role,
    ServerAction,
    ServerRole,
)
from protocol.sealing import EPOCH_PACKETS, Opener, Sealer, SessionKeys
from spaces_client import client as client_module
from spaces_server import endpoint, node, recorder
from spaces_server.endpoint import Endpoint
from spaces_server.mixer import crowd
from spaces_server.policy import (
    accounts,
    desk,
    feed,
    gathering,
    invites,
    limits,
    people,
    posts,
    programme,
    space,
    talk,
    volumes,
)
from spaces_server.policy.effects import (
    Answer,
    Ask,
    Entered,
    Left,
    Moment,
    RefusedError,
    SpaceEnded,
)
from spaces_server.policy.gathering import SpaceRules
from spaces_server.policy.house import IN_A_SPACE, House, HouseRules, Place
from spaces_server.records import Loaded, MessagesPage, PostsPage

SPEC = tables.SPEC.read_text(encoding="utf-8")
PROSE = " ".join(SPEC.split())  # without line ends, so that a search may cross them
EXAMPLE = tables.parse_example(SPEC)
WIRE_MODULES = (
    link, packets, replay, sealing, reliable, connection, frames, text, notes, evidence
)  # fmt: skip
RULES = HouseRules()
HOUR_S, DAY_S = 3_600, 86_400


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
        (ServerAction, "| `{0.value}` |"),
        (frames.Outcome, "| `{0.value}` |"),
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


@pytest.mark.parametrize(
    ("permissions", "roles"), [(PERMISSIONS, Role), (SERVER_PERMISSIONS, ServerRole)]
)
def test_every_cell_of_the_permissions_is_told(
    permissions: dict[Enum, dict[Enum, frozenset[str]]], roles: type[Enum]
) -> None:
    cells = r"[a-z_, -]+"
    for action, by_role in permissions.items():
        row = re.search(
            rf"^\| `{action}` \| ({cells}(?: \| {cells}){{{len(roles) - 1}}}) \|$",
            SPEC,
            re.MULTILINE,
        )
        assert row, action
        for role, cell in zip(roles, row[1].split(" | "), strict=True):
            told = set() if cell == "-" else set(cell.split(", "))
            assert told == {str(target) for target in by_role[role]}, (action, role)


def test_every_map_within_a_frame_has_a_row() -> None:
    used: set[type[msgspec.Struct]] = set()

    def look(kind: msgspec.inspect.Type) -> None:
        match kind:
            case msgspec.inspect.StructType(cls=cls, fields=fields):
                used.add(cls)
                for field in fields:
                    look(field.type)
            case msgspec.inspect.ListType(item_type=item):
                look(item)

    top = (*frames.REQUESTS, *frames.REPLIES, *frames.NOTICES, *frames.UPDATES, frames.FeedBatch)
    for frame in top:
        look(msgspec.inspect.type_info(frame))
    assert used - {*top} <= {*tables.STRUCTURES}
    for kind in tables.STRUCTURES:
        assert f"\n| {kind.__name__} | " in SPEC


def test_times_are_told_from_other_numbers() -> None:
    assert tables.times(frames.Member) == {"hand"}
    assert tables.times(frames.ReportInfo) == {"at", "evidence_until"}
    assert "`starts`: time<br>" in SPEC
    kinds: tuple[type[msgspec.Struct], ...] = (
        *frames.REQUESTS, *frames.REPLIES, *frames.NOTICES, *tables.STRUCTURES
    )  # fmt: skip
    assert SPEC.count(": time") == sum(len(tables.times(kind)) for kind in kinds)


ERRORS = SPEC[SPEC.index("The errors of each request") : SPEC.index("### 9.12")]
ERROR_ROWS = re.findall(r"^\| (.+?) \| (.+) \|$", ERRORS, re.MULTILINE)[2:]


def test_every_error_is_given_to_some_request() -> None:
    for code in frames.ErrorCode:
        assert f"`{code}`" in ERRORS


def test_every_request_has_one_row_of_errors() -> None:
    named = [
        name
        for requests, _ in ERROR_ROWS
        if not requests.startswith("every other")
        for name in re.findall(r"`(\w+)`", requests)
    ]
    assert sorted(named) == sorted(frames.tag(kind) for kind in frames.REQUESTS)


def test_the_rows_of_errors_have_codes_in_them_and_nothing_else() -> None:
    fields = {"space", "member"}
    for _, errors in ERROR_ROWS:
        codes = set(re.findall(r"`(\w+)`", errors)) - fields
        assert codes or errors in ("none",)
        assert codes <= {code.value for code in frames.ErrorCode}


def errors_told(kind: type[frames.Request]) -> set[str]:
    """What the table allows for a request: its own row, and those of the groups it is in."""
    name = frames.tag(kind)
    [row] = [
        errors
        for requests, errors in ERROR_ROWS
        if f"`{name}`" in requests and not requests.startswith("every other")
    ]
    told = {"malformed", "unknown_type", "unavailable", "rate_limited", "banned"}
    told |= set(re.findall(r"`(\w+)`", row))
    if row.startswith("the same"):
        told |= {"no_guests", "no_access"}
    elif kind in IN_A_SPACE:
        told.add("not_joined")
    elif kind in frames.PEOPLE_REQUESTS and name not in ("register", "add_device"):
        told.add("no_account")
    elif kind in (*frames.FINDING_REQUESTS, *frames.SAFETY_REQUESTS) and "of guests" not in row:
        told |= {"no_account", "no_access"}
    return told


class Evening:
    """People, guests and a server's policy, on which random requests are let loose."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = Moment(10**9, 10**6)
        self.refused: set[tuple[type[frames.Request], str]] = set()
        self._handles = ["ada", "bob", "cleo", "dan", "eve", "nobody"]
        self._keys = [bytes([number]) * 32 for number in range(1, 9)]
        self._places: dict[bytes, Place] = {}
        self._known = {"space": ["x"], "invite": ["y"], "code": ["z"]}
        rules = HouseRules(
            access=self.random.choice(list(frames.Access)),
            max_spaces=4,
            limited_rates=False,
            space=SpaceRules(stage_size=2, co_hosts=1, max_members=5),
        )
        self._house = House(
            Loaded(),
            self.now,
            entropy=self.random.randbytes,
            rules=rules,
            present=lambda _: self.random.random() < 0.5,
            recording=lambda _: [(0, b"\xf8\xff\xfe")],
        )
        made = self._house.people.owner_code(self.now)
        assert made is not None
        for key, handle in zip(self._keys, self._handles[:-1], strict=False):
            self._ask(key, frames.Register(id=1, handle=handle, name=handle))
        self._ask(self._keys[0], frames.ClaimServer(id=1, code=made[0]))

    def step(self) -> None:
        later_s = self.random.randint(0, 5)
        self.now = Moment(self.now.ns + later_s * 10**9, self.now.utc_s + later_s)
        seldom = {frames.Leave, frames.Close, frames.CloseSpace, frames.Ban, frames.RemoveDevice}
        weights = [0.1 if kind in seldom else 1 for kind in frames.REQUESTS]
        often = (frames.Open, frames.Join, frames.Join, frames.Grant)
        kinds: tuple[type[frames.Request], ...] = (*frames.REQUESTS, *often)
        [kind] = self.random.choices(kinds, [*weights, 3, 3, 3, 3])
        request = self._make(kind)
        try:
            self._ask(self.random.choice(self._keys), request)
        except RefusedError as error:
            self.refused.add((kind, error.code))

    def _ask(self, key: bytes, request: frames.Request) -> None:
        asker = self._house.people.asker(key, key[:2])
        placed = self._house.handle(asker, self._places.get(key), request, self.now)
        for where, effect in placed:
            match effect:
                case Entered(member):
                    self._places[key] = Place(where, member)
                    self._known["space"].append(where)
                case Left(member):
                    self._forget(Place(where, member))
                case SpaceEnded():
                    for place in [p for p in self._places.values() if p.space == where]:
                        self._forget(place)
                case Answer(frames.Invited(invite=token)):
                    self._known["invite"].append(token)
                case Answer(frames.DeviceCode(code=code)):
                    self._known["code"].append(code)
                case Answer(frames.SpaceReply(space=info)):
                    self._known["space"].append(info.id)
                case Ask(query, then):
                    then([] if isinstance(query, PostsPage | MessagesPage) else None)

    def _forget(self, gone: Place) -> None:
        self._places = {key: place for key, place in self._places.items() if place != gone}

    def _make(self, kind: type[msgspec.Struct]) -> Any:
        info = msgspec.inspect.type_info(kind)
        assert isinstance(info, msgspec.inspect.StructType)
        given = [f for f in info.fields if f.required or self.random.random() < 0.6]
        return kind(**{f.name: self._value(f.name, f.type) for f in given})

    def _value(self, name: str, kind: msgspec.inspect.Type) -> Any:
        if name in self._known:
            return self.random.choice(["nothing", *self._known[name][-6:]])
        if name in ("person", "handle"):
            return self.random.choice(self._handles)
        if name == "starts":
            return self.now.utc_s + self.random.choice([-5, 60, 10**7])
        match kind:
            case msgspec.inspect.IntType():
                return self.random.randint(0, 8)
            case msgspec.inspect.BoolType():
                return self.random.random() < 0.5
            case msgspec.inspect.EnumType(cls=cls):
                return self.random.choice(list(cls))
            case msgspec.inspect.BytesType():
                return self.random.choice([b"", b"\x00\x03\xf8\xff\xfe", b"??"])
            case msgspec.inspect.StructType(cls=cls):
                return self._make(cls)
            case msgspec.inspect.StrType():
                return self.random.choice(["hello", "\N{FIRE}", "\x1b[0m", " "])
        raise TypeError(f"nothing for {kind}")


@pytest.mark.parametrize("seed", range(4))
def test_the_server_gives_no_error_that_the_table_does_not_tell(seed: int) -> None:
    evening = Evening(seed)
    for _ in range(1_500):
        evening.step()
    assert len(evening.refused) > 80, "the requests meet too little of what can go wrong"
    untold = {(kind, code) for kind, code in evening.refused if code not in errors_told(kind)}
    assert untold == set()


def rate(limit: limits.Limit) -> tuple[str, str]:
    """The cells of a limit: at once, in the long run."""
    every = {1: "a second", 60: "a minute", HOUR_S: "an hour"}[limit.seconds]
    return str(limit.burst), f"{limit.rate} {every}"


def test_every_rate_limit_is_told() -> None:
    section = SPEC[SPEC.index("### 9.13") : SPEC.index("## 10.")]
    told = {}
    for requests, counted, *cells in re.findall(
        r"^\| (.+?) \| ([a-z, ]+) \| (\d+) \| (.+?) \|$", section, re.MULTILINE
    ):
        names = re.findall(r"`(\w+)`", requests)
        told[frozenset(names)] = (counted, *cells)
    by_limits: dict[tuple[limits.Limit, ...], set[str]] = {}
    for kind, row in limits.LIMITS.items():
        by_limits.setdefault(row, set()).add(frames.tag(kind))
    words = {
        limits.Per.ACCOUNT: "account",
        limits.Per.ADDRESS: "address",
        limits.Per.SESSION: "key",
    }
    expected = {
        frozenset(names): (", and ".join(words[limit.per] for limit in row), *rate(row[0]))
        for row, names in by_limits.items()
    }
    expected[frozenset()] = ("key", *rate(limits.ANYTHING_ELSE))
    assert told == expected
    assert {rate(limit) for limit in limits.CODES} == {rate(limits.CODES[0])}


@pytest.mark.parametrize("module", WIRE_MODULES, ids=lambda module: module.__name__)
def test_every_constant_of_the_wire_is_a_limit(module: ModuleType) -> None:
    source = inspect.getsource(frames.base if module is frames else module)
    own = re.findall(r"^([A-Z][A-Z0-9_]*)(?:: Final)? = ", source, re.MULTILINE)
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
        f"({ms(client_module.GAP_NS)} where that is {client_module.PACKET_MS}), it sends such a "
        "padded PING",
        f"in spaces with more than {node.Limits().crowd_above:,} listeners (until there are less "
        f"than {8 * node.Limits().crowd_above // 10})",
        f"not more than once in {ms(client_module.ASK_AGAIN_NS)}",
        f"for this reason there are {ms(client_module.ASK_AGAIN_NS)} at least; each of them "
        f"doubles the time for the next, up to "
        f"{ms(client_module.ASK_AGAIN_NS << client_module.MAX_LOOK_DOUBLINGS)},",
        f"forgotten after {endpoint.HALF_OPEN_TIMEOUT_NS // 10**9} s",
        f"more than {endpoint.MAX_HALF_OPEN:,}.",
        f"5. {endpoint.MAX_HELLOS} HELLOs wait already",
        f"at most {endpoint.MAX_CONTROL_OF_ONE} of one session and {endpoint.MAX_CONTROL:,} of all",
        f"more than {endpoint.MAX_HALF_OPEN // 2:,} sessions are half open",
        f"more than {endpoint.COOKIES_ABOVE_HELLOS_PER_S:,} HELLOs",
        f"changes every {endpoint.COOKIE_LIFETIME_NS // 10**9} s",
        f"repeated or not, has been without its PONG for {ms(client_module.SILENT_NS)}:",
        f"to wait for the {connection.IDLE_TIMEOUT_NS // 10**9} s of section 7.3",
        f"The first attempt is made after {ms(client_module.RETRY_NS)}",
        f"the time of the one before, up to {ms(client_module.MAX_RETRY_NS)};",
        f"which takes {ms(client_module.CONNECT_TIMEOUT_NS)} itself",
        f"stood for {ms(client_module.MAX_RETRY_NS)} makes the next time "
        f"{client_module.RETRY_NS // 10**6} ms again",
        f"after `retry_ms`, and after {ms(client_module.ASK_AGAIN_NS)} at least",
        f"a msgpack map, at most {frames.MAX_FRAME_BYTES:,} bytes encoded",
        f"Handles* have 1 to {frames.MAX_HANDLE_CHARS} characters",
        f"and at most {gathering.MAX_EMOJI_BYTES} bytes",
        f"at most {space.ROSTER_PAGE} members or people, {people.ACCOUNTS_PAGE} accounts and "
        f"{invites.MAX_INVITES} invites",
        f"At most {accounts.MAX_NOTICES} are kept for an account",
        f"more than {text.MAX_MARKS} combining marks",
        f"lines of chat of more than {frames.MAX_CHAT_BYTES} bytes",
        f"{ms(feed.GATHER_NS)} at most (and a tick; where a space has more than "
        f"{feed.GATHERED_BY:,} members in proportion longer, up to {ms(feed.MAX_GATHER_NS)})",
        f"all together write {talk.LINES_A_SECOND} a second at most",
        f"from 0 to {gathering.SEATS - 1} by which",
        f"The stage holds {RULES.space.stage_size}, host included, unless the server is set up "
        f"otherwise (1 to {gathering.MAX_STAGE}), and of these {RULES.space.co_hosts} co-hosts",
        f"At most {space.MAX_HANDS} are up in a space",
        f"at most {space.MAX_OFFERS} stand in a space",
        f"or speaker where there are {RULES.space.co_hosts} already",
        f"rounded to a step of {volumes.STEP}, halves up;",
        f"One can set {volumes.MAX_VOLUMES}, and a space carries {volumes.MAX_MIXES} different",
        f"Of the newest {talk.MAX_LINES:,} lines",
        f"shown with it, up to {talk.MAX_SHOWN} at a time",
        f"place on stage is kept for {RULES.space.grace_s} s, with role",
        f"with places on stage kept for {RULES.space.grace_s} s",
        f"for {recorder.KEPT_NS // 10**9} s in memory",
        f"what everyone on stage said in the last {recorder.KEPT_NS // 10**9} s",
        f"with the report, for {RULES.evidence_days} days unless",
        f"| evidence | {RULES.evidence_days} days |",
        f"at most {evidence.MAX_RECORDING_BYTES:,} bytes (of a longer one, its end)",
        f"gives `data` in parts of {frames.MAX_CHUNK_BYTES:,} bytes",
        f"The result has 1 to {text.MAX_HANDLE_CHARS} characters",
        f"{text.MAX_HANDLE_MARKS} in a row at most",
        f"good once, for {people.DEVICE_CODE_S // 60} minutes",
        f"An account has 1 to {people.MAX_DEVICES} devices",
        f"At most {people.MAX_FOLLOWS:,} can be followed",
        f"blocked oneself, at most {people.MAX_BLOCKS:,}",
        f"up to {programme.AHEAD_S // DAY_S} days ahead, under",
        f"at most {programme.MAX_SCHEDULED} of an account. Its host opens it",
        f"at most {programme.MAX_REMINDERS} of an account. When the space is opened",
        f"A space has at most {invites.MAX_INVITES} invites",
        f"(section 12.5) of at most {opus.MAX_PACKET_BYTES:,} bytes, each behind its length",
        f"at most {notes.MAX_NOTE_MS:,} ms and {notes.MAX_NOTE_BYTES:,} bytes",
        f"in parts of at most {frames.MAX_CHUNK_BYTES:,} bytes, cut anywhere",
        f"forgotten after {posts.UPLOAD_NS // 60 // 10**9} minutes",
        f"only of the newest {programme.MAX_ENDED:,} spaces",
        f"only of the newest {desk.MAX_CLOSED:,} decided",
        f"{node.Limits().max_sessions:,} sessions, {RULES.space.max_members:,} members in a space, "
        f"{RULES.max_spaces:,} live spaces, {RULES.space.stage_size} on a stage",
        f"{space.MAX_HANDS} raised hands and {invites.MAX_INVITES} invites a space",
        f"{people.MAX_WAITING:,} on the waiting list, {programme.MAX_ALL_SCHEDULED:,} scheduled "
        f"spaces, {desk.MAX_OPEN:,} open reports and {desk.MAX_OPEN_EACH} of one reporter, "
        f"{posts.MAX_UPLOADS_BYTES:,} bytes of voice notes",
        f"{node.Limits().bitrate // 1_000} kbit/s unless",
        f"nothing (section 6.3) for {ms(connection.IDLE_TIMEOUT_NS)}",
        f"{ms(connection.KEEPALIVE_NS)} after its last PING",
        f"heard anything (section 6.3) for {ms(connection.QUIET_NS)};",
        f"missing, {ms(connection.KEEPALIVE_REPEAT_NS)} after the last",
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


def test_pages_of_members_and_of_people_are_told_in_one() -> None:
    assert space.ROSTER_PAGE == people.PEOPLE_PAGE
    assert max(space.ROSTER_PAGE, people.ACCOUNTS_PAGE, invites.MAX_INVITES) <= frames.MAX_PAGE


def test_white_space_is_what_is_taken_off_both_ends() -> None:
    """Section 9.12 has a list of it; here it is read, and tried."""
    told = PROSE.split("and four more: ")[1].split(". ")[0]
    listed = {
        chr(code)
        for first, last in re.findall(r"U\+(\w{4})(?: to U\+(\w{4}))?", told)
        for code in range(int(first, 16), int(last or first, 16) + 1)
    }
    assert listed == {c for c in map(chr, range(sys.maxunicode + 1)) if c.isspace()}
    assert {text.clean(f"{c}a{c}", 1) for c in listed} == {"a"}


def test_when_somebody_believes_that_nothing_listens() -> None:
    assert client_module.REFUSED_GIVE_UP == 2
    assert "says twice in a row, with nothing authentic received in between," in PROSE


def test_the_times_of_the_handshake_and_of_probing_are_those_of_the_client() -> None:
    """What the text gives as a row of numbers, from the constants they follow from."""
    most_ns = client_module.MAX_HELLO_REPEAT_NS
    assert most_ns == 4 * client_module.HELLO_REPEAT_NS
    said = f"once more {ms(most_ns // 2)} later, and then every {ms(most_ns)}"
    assert f"send the same bytes again, {said}" in PROSE
    repeat_ms = client_module.PROBE_REPEAT_NS // 10**6
    assert 4 * repeat_ms == client_module.MAX_PROBE_REPEAT_NS // 10**6
    said = (
        f"again {repeat_ms}, {2 * repeat_ms} and then each time {4 * repeat_ms} ms after the one "
        "before"
    )
    assert said in PROSE
    assert client_module.PROBES == 8
    assert "eight times at most" in PROSE


def test_the_packets_of_a_crowd() -> None:
    assert client_module.GAP_NS == (client_module.PACKET_MS + 30) * 1_000_000
    assert "no media has come for 30 ms more than the `packet_ms` of its `join`" in PROSE
    assert packets.MAX_CROWD_PACKETS == crowd.MAX_FRAMES == 3
    assert node.Limits().crowd_packet_ms == crowd.MAX_FRAMES * crowd.FRAME_MS == 60
    assert "This implementation gathers three packets" in PROSE


def test_a_scheduled_space_waits_for_a_day() -> None:
    assert programme.OVERDUE_S == DAY_S
    assert "One that was not opened a day after its start is forgotten." in PROSE


def test_what_leads_back_and_what_does_not_is_what_the_client_goes_by() -> None:
    """Section 7.6 names the codes after which the client comes back, and those of the invite."""
    section = PROSE[PROSE.index("### 7.6") : PROSE.index("## 8.")]
    lost, final = section.split("Every other code")
    named = {code for code in CloseCode if re.search(rf"\b{code.name}\b", lost)}
    assert named == {*client_module.LOST_BY_PEER, *client_module.LOST_HERE}
    for code in client_module.FOR_A_WHILE:
        assert f"`{code}`" in final.split("after `retry_ms`")[0]
    of_the_invite = final.split("If it is")[1].split("it asks again")[0]
    assert set(re.findall(r"`(\w+)`", of_the_invite)) == {*client_module.OF_THE_INVITE}


def test_every_section_that_is_referred_to_exists() -> None:
    headings = set(re.findall(r"^#{2,3} (\d+(?:\.\d+)?)\.? ", SPEC, re.MULTILINE))
    references = set(
        re.findall(
            r"[Ss]ections? (\d+(?:\.\d+)?)",
            re.sub(r"(RFC \d+|Standard 39), section [\d.]+", "", PROSE),
        )
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


ADA = frames.Member(id=7, name="Ada", handle="ada", role=Role.SPEAKER, seat=3)


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


def test_a_client_opens_as_the_example_does() -> None:
    opening = Opening(
        int.from_bytes(EXAMPLE["client index"]),
        EXAMPLE["server static public"],
        EXAMPLE["client static private"],
        agent="example client",
        entropy=lambda _: EXAMPLE["client ephemeral private"],
    )
    assert opening.hello.pack() == EXAMPLE["HELLO"]
    keys, index = opening.answered(Welcome.unpack(EXAMPLE["WELCOME"]))
    assert index.to_bytes(4) == EXAMPLE["server index"]
    assert keys == SessionKeys.derive(
        send=EXAMPLE["split: client to server"], receive=EXAMPLE["split: server to client"]
    )


def test_a_server_takes_the_hello_and_its_client_the_answer() -> None:
    scripted = iter([EXAMPLE["server index"], EXAMPLE["server ephemeral private"]])
    server = Endpoint(EXAMPLE["server static private"], lambda _: next(scripted))
    server.receive(EXAMPLE["HELLO"], b"address", 0)
    server.work(0)
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
    server.receive(EXAMPLE["CONTROL, client to server, counter 0"], b"address", 0)
    received = server.work(0)
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
    "CROWD, server to client, counter 2": ("server to client, media", "CROWD plaintext"),
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
    assert frame == frames.Join(id=1, space="lobby", name="Ada", packet_ms=60)
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
    crowd = client.receive(EXAMPLE["CROWD, server to client, counter 2"], b"address", 0)
    assert crowd == [Media(Kind.CROWD, 2, EXAMPLE["CROWD plaintext"])]
    first, last = packets.crowd_packets(EXAMPLE["CROWD plaintext"])
    assert first == mix
    assert DownlinkAudio.unpack(last) == DownlinkAudio(
        1_000_960, AudioFlag.LAST, (), b"\xf8\xff\xfe"
    )
    batch = frames.decode_feed(EXAMPLE["FEED plaintext"])
    assert batch.first == 5
    assert batch.hash.to_bytes(4) == EXAMPLE["state hash"]
    assert [frames.decode_update(update) for update in batch.updates] == [
        frames.MemberUpdate(member=ADA),
        frames.ListenersUpdate(count=12),
    ]


def test_the_state_hash_by_its_formula() -> None:
    """Section 11.3: the entries are what the text says, and so is what becomes of them."""
    entries = {
        name: msgpack.unpackb(EXAMPLE[f"state hash, entry {name}"])
        for name in ("space", "listeners", "member")
    }
    assert entries == {
        "space": ["space", "Example", "public", "invited", False, True, 0],
        "listeners": ["listeners", 12],
        "member": ["member", 7, "Ada", "ada", "speaker", 3, False, False, 0],
    }
    value = 0
    for name in entries:
        value ^= int.from_bytes(hashlib.sha256(EXAMPLE[f"state hash, entry {name}"]).digest()[:4])
    assert value.to_bytes(4) == EXAMPLE["state hash"]
    state = frames.Snapshot(
        number=6, title="Example", settings=frames.Settings(), members=[ADA], listeners=12
    )
    assert state_hash.StateHash.of(state).value == value


FOR_GOOD = ("low_delay", "sound")  # settings that nobody can change


def test_what_is_for_good_cannot_be_configured() -> None:
    changed = set(frames.Configure.__struct_fields__)
    assert {name for name in frames.Settings.__struct_fields__ if name not in changed} == set(
        FOR_GOOD
    )


def test_the_rows_of_the_state_hash_have_the_fields_of_the_maps() -> None:
    members = list(frames.Member.__struct_fields__)
    settings = [name for name in frames.Settings.__struct_fields__ if name not in FOR_GOOD]
    assert f'`["member", {", ".join(members)}]`' in SPEC
    assert f'`["space", title, {", ".join(settings)}]`' in SPEC


def test_the_evidence_of_the_example_opens_on_its_device() -> None:
    silence = bytes.fromhex("f8fffe")
    assert EXAMPLE["evidence, recording"] == b"".join(
        timestamp.to_bytes(4) + len(silence).to_bytes(2) + silence
        for timestamp in (0xFFFFFE20, 0x000001E0)
    )
    assert public_key(EXAMPLE["evidence, sender private"]) == EXAMPLE["evidence, sender_key"]
    content = AESGCM(EXAMPLE["evidence, content key"])
    recording = content.decrypt(bytes(12), EXAMPLE["evidence, data"], b"")
    assert recording == EXAMPLE["evidence, recording"]
    assert evidence.open(
        EXAMPLE["client static private"],
        EXAMPLE["evidence, sender_key"],
        EXAMPLE["evidence, sealed_key"],
        EXAMPLE["evidence, data"],
    ) == evidence.unpack(recording)
    with pytest.raises(evidence.EvidenceError):
        evidence.open(
            EXAMPLE["server static private"],
            EXAMPLE["evidence, sender_key"],
            EXAMPLE["evidence, sealed_key"],
            EXAMPLE["evidence, data"],
        )


def test_the_content_key_is_sealed_as_rfc_9180_has_it() -> None:
    """HPKE in base mode, sections 4.1 and 5.1, with primitives only."""
    kem, suite = b"KEM\x00\x20", b"HPKE\x00\x20\x00\x01\x00\x02"

    def extract(salt: bytes, of: bytes, label: bytes, ikm: bytes) -> bytes:
        return hmac.digest(salt, b"HPKE-v1" + of + label + ikm, "sha256")

    def expand_label(prk: bytes, of: bytes, label: bytes, info: bytes, size: int) -> bytes:
        labelled = size.to_bytes(2) + b"HPKE-v1" + of + label + info
        return HKDFExpand(SHA256(), size, labelled).derive(prk)

    enc, device = EXAMPLE["evidence, sender_key"], EXAMPLE["client static public"]
    private = X25519PrivateKey.from_private_bytes(EXAMPLE["client static private"])
    dh = private.exchange(X25519PublicKey.from_public_bytes(enc))
    shared = expand_label(
        extract(b"", kem, b"eae_prk", dh), kem, b"shared_secret", enc + device, 32
    )
    context = b"\x00" + extract(b"", suite, b"psk_id_hash", b"")
    context += extract(b"", suite, b"info_hash", b"spaces 1 evidence")
    secret = extract(shared, suite, b"secret", b"")
    key = expand_label(secret, suite, b"key", context, 32)
    nonce = expand_label(secret, suite, b"base_nonce", context, 12)
    content_key = AESGCM(key).decrypt(nonce, EXAMPLE["evidence, sealed_key"], b"")
    assert content_key == EXAMPLE["evidence, content key"]


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
