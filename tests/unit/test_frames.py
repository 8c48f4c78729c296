"""Every frame goes there and back, and whatever comes instead of one is an error with words."""

import inspect
from typing import Any, cast

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET
from msgspec import inspect as schema

from protocol import frames, roles
from protocol.frames import (
    ERROR_TEXTS,
    MAX_CHAT_BYTES,
    MAX_CHUNK_BYTES,
    MAX_FRAME_BYTES,
    MAX_HANDLE_CHARS,
    MAX_NAME_CHARS,
    MAX_PAGE,
    MAX_TEXTS_PAGE,
    MAX_TITLE_CHARS,
    NOTICES,
    REPLIES,
    REQUESTS,
    UPDATES,
    ErrorCode,
    FeedBatch,
    Frame,
    FrameError,
    KeptNotice,
    Member,
    Request,
    Settings,
    Snapshot,
    Update,
    decode,
    decode_feed,
    decode_greeting,
    decode_update,
    encode,
    encode_greeting,
    encode_update,
    tag,
)
from protocol.packets import HELLO_PAYLOAD_BYTES, MAX_PLAINTEXT_BYTES
from protocol.roles import Action, Role, ServerAction
from spaces_client import AGENT as CLIENT_AGENT
from spaces_server import AGENT as SERVER_AGENT
from spaces_server.policy import talk
from spaces_server.policy.feed import ANSWER_BYTES
from spaces_server.policy.gathering import MAX_EMOJI_BYTES, MAX_STAGE
from spaces_server.policy.invites import MAX_INVITES
from spaces_server.policy.people import MAX_DEVICES
from spaces_server.policy.space import MAX_HANDS

FRAMES = (*REQUESTS, *REPLIES, *NOTICES)
Fields = dict[str, Any]

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
)


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
        ),
        max_leaves=8,
    )


plain = nested(scalars)  # what a field of any type may hold: our updates have no use for bytes
values = nested(scalars | st.binary(max_size=8))


def strategy(kind: schema.Type) -> st.SearchStrategy[Any]:
    """Valid values of a field, from its declaration; an unknown sort of field stops the test."""
    match kind:
        case schema.IntType(ge=int(low), le=int(high)):
            return st.integers(low, high)
        case schema.StrType(pattern=str(pattern)):
            return st.from_regex(pattern, fullmatch=True)
        case schema.StrType(min_length=low, max_length=most):
            return st.text(min_size=low or 0, max_size=most or 60)
        case schema.BoolType():
            return st.booleans()
        case schema.EnumType(cls=enum):
            return st.sampled_from(list(enum))
        case schema.ListType(item_type=item):
            return st.lists(strategy(item), max_size=4)
        case schema.BytesType(min_length=low, max_length=most):
            return st.binary(min_size=low or 0, max_size=min(most or 60, 300))
        case schema.DictType(value_type=schema.AnyType()):
            return st.dictionaries(st.text(max_size=8), plain, max_size=4)
        case schema.DictType(value_type=value):
            return st.dictionaries(st.text(max_size=8), strategy(value), max_size=4)
        case schema.StructType(cls=struct):
            return instances(struct)
    raise AssertionError(f"no values for {kind}")


def instances(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    described = schema.type_info(kind)
    assert isinstance(described, schema.StructType)
    required = {f.name: strategy(f.type) for f in described.fields if f.required}
    optional = {f.name: strategy(f.type) for f in described.fields if not f.required}
    return st.fixed_dictionaries(required, optional=optional).map(lambda given: kind(**given))


def packed(value: object) -> bytes:
    return cast(bytes, msgpack.packb(value))


def fields_of(frame: Frame) -> Fields:
    return cast(Fields, msgpack.unpackb(encode(frame)))


# --- there and back ---


@pytest.mark.parametrize("kind", FRAMES, ids=tag)
@settings(max_examples=8)
@given(data=st.data())
def test_every_frame_goes_there_and_back(kind: type[Frame], data: st.DataObject) -> None:
    frame = data.draw(instances(kind))
    raw = encode(frame)
    assert msgpack.unpackb(raw)["type"] == tag(kind)
    again = decode(raw)
    assert type(again) is kind
    assert again == frame


@pytest.mark.parametrize("kind", UPDATES, ids=tag)
@settings(max_examples=8)
@given(data=st.data())
def test_every_update_goes_there_and_back(kind: type[Update], data: st.DataObject) -> None:
    update = data.draw(instances(kind))
    batch = FeedBatch(space="lobby", first=7, updates=[encode_update(update)], hash=9)
    assert decode_feed(encode(batch)) == batch
    again = decode_update(decode_feed(encode(batch)).updates[0])
    assert type(again) is kind
    assert again == update


@pytest.mark.parametrize("kind", FRAMES, ids=tag)
@settings(max_examples=4)
@given(data=st.data(), extra=st.dictionaries(st.text(max_size=8).map("x-".__add__), values))
def test_unknown_fields_are_ignored(kind: type[Frame], data: st.DataObject, extra: Fields) -> None:
    frame = data.draw(instances(kind))
    assert decode(packed({**extra, **fields_of(frame)})) == frame


def test_what_is_left_out_has_the_declared_default() -> None:
    join = decode(packed({"type": "join", "id": 1, "space": "s"}))
    assert isinstance(join, frames.Join)
    assert (join.invite, join.name, join.despite_blocked) == (UNSET, "guest", False)
    opened = decode(packed({"type": "open", "id": 1, "settings": {"chat": False}}))
    assert isinstance(opened, frames.Open)
    assert opened.settings == Settings(chat=False)
    assert opened.space is UNSET
    roster = decode(packed({"type": "roster", "id": 1}))
    assert isinstance(roster, frames.Roster)
    assert roster.after == 0
    member = Member(id=1, name="n")
    assert "seat" not in msgspec.to_builtins(member)
    assert (member.role, member.handle, member.hand) == (Role.LISTENER, "", 0)
    assert not member.muted
    assert not member.held
    error = decode(packed({"type": "error", "re": 1, "code": "x", "text": "y"}))
    assert isinstance(error, frames.Error)
    assert error.retry_ms == 0


# --- what is no frame ---


@settings(max_examples=200)
@given(data=st.binary(max_size=200) | values.map(packed))
def test_whatever_the_bytes_are_only_a_frame_error_comes_of_them(data: bytes) -> None:
    for decoder in (decode, decode_feed):
        try:
            result = decoder(data)
        except FrameError as error:
            text = str(error)
        else:
            assert isinstance(result, Frame | FeedBatch)
            continue
        assert text
        assert "\n" not in text
        assert len(text) < 500


@settings(max_examples=150)
@given(data=st.data())
def test_a_frame_with_wrong_fields_is_malformed_and_keeps_its_id(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(REQUESTS))
    request_id = data.draw(st.integers(0, 2**32 - 1))
    names = [f.encode_name for f in msgspec.structs.fields(kind)]
    junk = data.draw(st.dictionaries(st.sampled_from([*names, "x"]), values, max_size=4))
    junk = {**junk, "type": tag(kind), "id": request_id}
    try:
        frame = decode(packed(junk))
    except FrameError as error:
        code, kept = error.code, error.request_id
    else:
        assert isinstance(frame, kind)
        assert isinstance(frame, Request)
        assert frame.id == request_id
        return
    assert code is ErrorCode.MALFORMED
    assert kept == request_id


@settings(max_examples=150)
@given(data=st.data())
def test_a_frame_with_damaged_bytes_is_a_frame_or_an_error(data: st.DataObject) -> None:
    raw = bytearray(encode(data.draw(instances(data.draw(st.sampled_from(FRAMES))))))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    for damaged in (bytes(raw), bytes(raw[:cut])):
        try:
            assert isinstance(decode(damaged), Frame)
        except FrameError as error:
            code = error.code
        else:
            continue
        assert code in (ErrorCode.MALFORMED, ErrorCode.UNKNOWN_TYPE)


@pytest.mark.parametrize(
    ("value", "code", "request_id"),
    [
        ({"type": "no_such_frame", "id": 7}, ErrorCode.UNKNOWN_TYPE, 7),
        ({"type": "x" * 5_000, "id": 7}, ErrorCode.UNKNOWN_TYPE, 7),
        ({"type": ["join"], "id": 7}, ErrorCode.UNKNOWN_TYPE, 7),
        ({"type": None, "id": 7}, ErrorCode.UNKNOWN_TYPE, 7),
        ({"id": 7}, ErrorCode.UNKNOWN_TYPE, 7),
        ({"type": "member", "id": 7, "member": {}}, ErrorCode.UNKNOWN_TYPE, 7),  # an update
        ({"type": "leave"}, ErrorCode.MALFORMED, 0),
        ({"type": "leave", "id": 0}, ErrorCode.MALFORMED, 0),
        ({"type": "leave", "id": -1}, ErrorCode.MALFORMED, 0),
        ({"type": "leave", "id": 2**32}, ErrorCode.MALFORMED, 0),
        ({"type": "leave", "id": True}, ErrorCode.MALFORMED, 0),
        ({"type": "leave", "id": 1.0}, ErrorCode.MALFORMED, 0),
        ({"type": "leave", "id": "7"}, ErrorCode.MALFORMED, 0),
        ({"type": "appoint", "id": 7}, ErrorCode.MALFORMED, 7),
        ({"type": "appoint", "id": 7, "member": "3"}, ErrorCode.MALFORMED, 7),
        ({"type": "join", "id": 7, "space": "a b", "name": "n"}, ErrorCode.MALFORMED, 7),
        ({"type": "join", "id": 7, "space": "a\n", "name": "n"}, ErrorCode.MALFORMED, 7),
        ({"type": "join", "id": 7, "space": "s", "name": ""}, ErrorCode.MALFORMED, 7),
        (
            {"type": "join", "id": 7, "space": "s", "name": "n", "invite": "t\n"},
            ErrorCode.MALFORMED,
            7,
        ),
        (
            {"type": "join", "id": 7, "space": "s", "name": "n" * (MAX_NAME_CHARS + 1)},
            ErrorCode.MALFORMED,
            7,
        ),
        (
            {"type": "open", "id": 7, "title": "t" * (MAX_TITLE_CHARS + 1)},
            ErrorCode.MALFORMED,
            7,
        ),
        ({"type": "join", "id": 7, "space": "s", "invite": None}, ErrorCode.MALFORMED, 7),
        ({"type": "open", "id": 7, "settings": {"chat": 1}}, ErrorCode.MALFORMED, 7),
        ({"type": "open", "id": 7, "settings": {"visibility": "all"}}, ErrorCode.MALFORMED, 7),
        ({"type": "open", "id": 7, "settings": []}, ErrorCode.MALFORMED, 7),
        ({"type": "set_volume", "id": 7, "member": 1, "percent": 201}, ErrorCode.MALFORMED, 7),
        ({"type": "set_volume", "id": 7, "member": 1, "percent": -1}, ErrorCode.MALFORMED, 7),
        ({"type": "schedule", "id": 7, "title": "t", "starts": 2**32}, ErrorCode.MALFORMED, 7),
        ({"type": "chat", "id": 7, "text": ""}, ErrorCode.MALFORMED, 7),
        ({"type": "send_message", "id": 7, "person": "p", "text": ""}, ErrorCode.MALFORMED, 7),
        ({"type": "register", "id": 7, "handle": "", "name": "n"}, ErrorCode.MALFORMED, 7),
        (
            {"type": "follow", "id": 7, "person": "a" * (MAX_HANDLE_CHARS + 1)},
            ErrorCode.MALFORMED,
            7,
        ),
        ({"type": "report", "id": 7, "category": "boredom"}, ErrorCode.MALFORMED, 7),
        ({"type": "act", "id": 7, "report": 1, "outcome": ""}, ErrorCode.MALFORMED, 7),
        ({"type": "note_part", "id": 7, "first": True, "data": "text"}, ErrorCode.MALFORMED, 7),
        (
            {"type": "note_part", "id": 7, "first": True, "data": bytes(MAX_CHUNK_BYTES + 1)},
            ErrorCode.MALFORMED,
            7,
        ),
        ([1, 2], ErrorCode.MALFORMED, 0),
        (None, ErrorCode.MALFORMED, 0),
        ({1: 2}, ErrorCode.MALFORMED, 0),
        ({b"type": b"leave", b"id": 1}, ErrorCode.UNKNOWN_TYPE, 0),
        ({"type": "leave", "id": 1, "when": msgpack.Timestamp(1, 2)}, ErrorCode.MALFORMED, 0),
        ({"type": "leave", "id": 1, "x": msgpack.ExtType(5, b"abc")}, ErrorCode.MALFORMED, 0),
    ],
)
def test_each_mistake_has_its_code_and_keeps_the_id_where_it_can(
    value: object, code: ErrorCode, request_id: int
) -> None:
    with pytest.raises(FrameError) as caught:
        decode(packed(value))
    assert caught.value.code is code
    assert caught.value.request_id == request_id
    assert len(str(caught.value)) < 200, "the answer is short, whatever was asked"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",  # the one byte that msgpack never uses
        packed({"type": "leave", "id": 1}) + b"\0",
        packed({"type": "leave", "id": 1})[:-1],
        b"\x81\xa4type\xa1\xff",  # not UTF-8
        b"\x91" * 5_000,  # nested without end
        b"\xdd\xff\xff\xff\xff",  # an array said to have 2**32 items
        b"\xc6\xff\xff\xff\xff",
        packed({"type": "open", "id": 1, "title": "t", "x": b"x" * MAX_FRAME_BYTES}),
    ],
    ids=range(9),
)
def test_what_is_not_msgpack_or_too_much_of_it_is_malformed(data: bytes) -> None:
    for decoder in (decode, decode_feed):
        with pytest.raises(FrameError) as caught:
            decoder(data)
        assert caught.value.code is ErrorCode.MALFORMED
        assert caught.value.request_id == 0


# --- updates a client does not know ---


@settings(max_examples=150)
@given(
    value=st.dictionaries(st.text(max_size=6) | st.sampled_from(["type", "member"]), values)
    | st.builds(
        lambda kind, junk: {"type": kind, **junk},
        st.sampled_from([tag(u) for u in UPDATES]) | values,
        st.dictionaries(st.sampled_from(["member", "id", "count"]), values, max_size=3),
    )
)
def test_an_update_that_cannot_be_read_is_a_frame_error_or_nothing(value: Fields) -> None:
    try:
        update = decode_update(value)
    except FrameError:
        assert value["type"] in {tag(u) for u in UPDATES}
    else:
        assert update is None or isinstance(update, UPDATES)


# --- greetings ---


@given(agent=st.text(max_size=40))
def test_greetings_fill_the_room_they_are_given(agent: str) -> None:
    bare = encode_greeting(agent)
    padded = encode_greeting(agent, 300)
    assert len(padded) == 300
    assert padded.startswith(bare)
    assert decode_greeting(bare).agent == decode_greeting(padded).agent == agent


@settings(max_examples=150)
@given(payload=st.binary(max_size=200) | values.map(packed))
def test_a_greeting_that_cannot_be_read_is_an_empty_one(payload: bytes) -> None:
    assert len(decode_greeting(payload).agent) <= 40


def test_what_is_no_greeting_is_an_empty_one() -> None:
    for payload in (
        b"",
        b"\x91" * 5_000,
        packed({"agent": "x" * 41}),
        packed({"agent": 5}),
        packed(msgpack.Timestamp(1, 2)),
        packed(msgpack.ExtType(5, b"abc")),
        packed({"agent": msgpack.ExtType(5, b"abc")}),
        packed({b"agent": b"x"}),
    ):
        assert decode_greeting(payload).agent == ""
    # A newer peer may say more.
    assert decode_greeting(packed({"agent": "a", "newer": [1]})).agent == "a"


def test_our_own_greetings_fit() -> None:
    assert len(encode_greeting(CLIENT_AGENT, HELLO_PAYLOAD_BYTES)) == HELLO_PAYLOAD_BYTES
    for agent in (CLIENT_AGENT, SERVER_AGENT):
        assert decode_greeting(encode_greeting(agent)).agent == agent


# --- declarations ---


def test_every_error_code_has_a_text_of_one_line() -> None:
    assert set(ERROR_TEXTS) == set(ErrorCode)
    for code, text in ERROR_TEXTS.items():
        assert text == text.strip(), code
        assert text, code
        assert "\n" not in text, code
    assert len(set(ERROR_TEXTS.values())) == len(ErrorCode)


def test_every_frame_has_a_docstring_of_its_own_and_is_listed_once() -> None:
    declared = [
        kind
        for _, kind in inspect.getmembers(frames, inspect.isclass)
        if issubclass(kind, Frame | Update) and kind.__struct_config__.tag_field
    ]
    tagged = {k for k in declared if k.__subclasses__() == []}
    assert tagged == {*FRAMES, *UPDATES}
    for group in (FRAMES, UPDATES):
        assert len({tag(k) for k in group}) == len(group)
    for kind in (*FRAMES, *UPDATES, Member, Snapshot, FeedBatch, frames.Greeting):
        assert kind.__dict__.get("__doc__"), kind


def test_every_request_says_which_reply_it_gets() -> None:
    replies = {tag(r) for r in REPLIES}
    for kind in REQUESTS:
        doc = " ".join((kind.__doc__ or "").split())
        assert "Reply: `" in doc, kind
        assert doc.rsplit("Reply: `", 1)[1].split("`")[0] in replies, kind
    assert all(issubclass(r, frames.Reply) for r in REPLIES)
    assert not any(issubclass(n, frames.Reply | Request) for n in NOTICES)


def test_every_action_that_is_a_request_is_in_the_table_of_permissions() -> None:
    assert set(roles.PERMISSIONS) == set(Action)
    assert set(roles.SERVER_PERMISSIONS) == set(ServerAction)
    requests = {tag(r) for r in REQUESTS}
    assert {a.value for a in Action} - {"speak"} <= requests
    assert {a.value for a in ServerAction} <= requests


def test_only_notices_that_are_kept_have_a_number_to_be_seen_by() -> None:
    kept = {kind for kind in NOTICES if issubclass(kind, KeptNotice)}
    assert kept == {kind for kind in NOTICES if "notice" in kind.__struct_fields__}
    assert {tag(kind) for kind in kept} == {
        "access_granted", "unread", "started", "outcome", "warned",
    }  # fmt: skip


# --- the longest that there is fits ---

# How many a server puts into a list, and how long it lets texts become that the declaration gives
# in characters; of everything else, the declaration itself has the limit.
LIST_ITEMS = {
    (frames.Joined, "reactions"): 6,
    (Snapshot, "members"): MAX_STAGE + MAX_HANDS,
    (frames.Clocks, "voices"): MAX_STAGE,
    (frames.RosterPage, "members"): MAX_PAGE,
    (frames.People, "people"): MAX_PAGE,
    (frames.Accounts, "accounts"): MAX_PAGE,
    (frames.Devices, "devices"): MAX_DEVICES,
    (frames.WaitingReply, "waiting"): MAX_TEXTS_PAGE,
    (frames.Spaces, "spaces"): MAX_TEXTS_PAGE,
    (frames.Invites, "invites"): MAX_INVITES,
    (frames.Messages, "messages"): MAX_TEXTS_PAGE,
    (frames.Posts, "posts"): MAX_TEXTS_PAGE,
    (frames.Reports, "reports"): MAX_TEXTS_PAGE,
    (frames.ReactionsUpdate, "stage"): talk.MAX_SHOWN,
}
WIDE = "\N{GRINNING FACE}"  # four bytes of UTF-8, as many as a character has
EMOJI = WIDE * (MAX_EMOJI_BYTES // 4)
SERVER_TEXT = WIDE * 500  # of notices and errors: sentences of ours, with a reason at most in them


def longest(kind: type[msgspec.Struct]) -> Any:
    """The instance of a declaration that is the longest when encoded."""
    described = schema.type_info(kind)
    assert isinstance(described, schema.StructType)
    return kind(**{f.name: longest_value(kind, f.name, f.type) for f in described.fields})


def longest_value(owner: type[msgspec.Struct], name: str, kind: schema.Type) -> Any:
    match kind:
        case schema.IntType(le=int(high)):
            return high
        case schema.BoolType():
            return True
        case schema.EnumType(cls=enum):
            return max(enum, key=lambda member: len(member.value))
        case schema.BytesType(max_length=int(most)):
            return bytes(most)
        case schema.StrType(pattern=str(pattern)):
            return "x" * int(pattern.rpartition(",")[2].partition("}")[0])
        case schema.StrType() if name == "emoji":
            return EMOJI
        case schema.StrType() if owner is frames.ChatUpdate and name == "text":
            return WIDE * (MAX_CHAT_BYTES // 4)
        case schema.StrType(max_length=int(most)):
            return WIDE * most
        case schema.StrType():
            return SERVER_TEXT
        case schema.ListType(item_type=schema.DictType()):
            update = encode_update(longest(frames.MemberUpdate))
            return [update] * (ANSWER_BYTES // len(packed(update)))
        case schema.ListType(item_type=schema.StructType(cls=struct)):
            return [longest(struct)] * LIST_ITEMS[owner, name]
        case schema.ListType(item_type=schema.StrType()):
            return [EMOJI] * LIST_ITEMS[owner, name]
        case schema.StructType(cls=struct):
            return longest(struct)
        case schema.DictType(value_type=schema.IntType()):
            return {EMOJI[1:] + f"{i:04}": 2**32 - 1 for i in range(6)}
    raise AssertionError(f"nothing is the longest {kind}")


@pytest.mark.parametrize("kind", FRAMES, ids=tag)
def test_the_longest_of_every_frame_is_still_a_frame(kind: type[Frame]) -> None:
    frame = longest(kind)
    assert len(encode(frame)) <= MAX_FRAME_BYTES
    assert decode(encode(frame)) == frame


@pytest.mark.parametrize("kind", UPDATES, ids=tag)
def test_the_longest_of_every_update_fits_into_one_datagram(kind: type[Update]) -> None:
    update = encode_update(longest(kind))
    batch = FeedBatch(space="s" * 32, first=2**32 - 1, updates=[update], hash=2**32 - 1)
    assert len(encode(batch)) <= MAX_PLAINTEXT_BYTES
    assert decode_feed(encode(batch)) == batch


def test_an_answer_with_as_many_updates_as_a_server_puts_into_it_is_a_frame() -> None:
    update = encode_update(frames.ListenersUpdate(count=0))
    count = ANSWER_BYTES // len(packed(update))
    missed = frames.Updates(
        re=2**32 - 1, space="s" * 32, first=2**32 - 1, updates=[update] * count, hash=2**32 - 1
    )
    assert len(encode(missed)) <= MAX_FRAME_BYTES
