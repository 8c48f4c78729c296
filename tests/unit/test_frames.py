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
    MAX_FEED_CATCH_UP,
    MAX_FRAME_BYTES,
    MAX_NAME_CHARS,
    MAX_PAGE,
    MAX_TITLE_CHARS,
    NOTICES,
    REPLIES,
    REQUESTS,
    UPDATES,
    ErrorCode,
    FeedBatch,
    Frame,
    FrameError,
    Member,
    Request,
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
from protocol.roles import Action, Role
from spaces_client import AGENT as CLIENT_AGENT
from spaces_server import AGENT as SERVER_AGENT

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


plain = nested(scalars)  # what a field of any type may hold: our frames have no use for bytes
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
        case schema.DictType():
            return st.dictionaries(st.text(max_size=8), plain, max_size=4)
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
@settings(max_examples=25)
@given(data=st.data())
def test_every_frame_goes_there_and_back(kind: type[Frame], data: st.DataObject) -> None:
    frame = data.draw(instances(kind))
    raw = encode(frame)
    assert msgpack.unpackb(raw)["type"] == tag(kind)
    again = decode(raw)
    assert type(again) is kind
    assert again == frame


@pytest.mark.parametrize("kind", UPDATES, ids=tag)
@settings(max_examples=25)
@given(data=st.data())
def test_every_update_goes_there_and_back(kind: type[Update], data: st.DataObject) -> None:
    update = data.draw(instances(kind))
    batch = FeedBatch(space="lobby", first=7, updates=[encode_update(update)])
    assert decode_feed(encode(batch)) == batch
    again = decode_update(decode_feed(encode(batch)).updates[0])
    assert type(again) is kind
    assert again == update


@pytest.mark.parametrize("kind", FRAMES, ids=tag)
@settings(max_examples=10)
@given(data=st.data(), extra=st.dictionaries(st.text(max_size=8).map("x-".__add__), values))
def test_unknown_fields_are_ignored(kind: type[Frame], data: st.DataObject, extra: Fields) -> None:
    frame = data.draw(instances(kind))
    assert decode(packed({**extra, **fields_of(frame)})) == frame


def test_what_is_left_out_has_the_declared_default() -> None:
    join = decode(packed({"type": "join", "id": 1, "space": "s", "name": "n"}))
    assert isinstance(join, frames.Join)
    assert join.invite is UNSET
    roster = decode(packed({"type": "roster", "id": 1}))
    assert isinstance(roster, frames.Roster)
    assert roster.after == 0
    member = Member(id=1, name="n")
    assert "seat" not in msgspec.to_builtins(member)
    assert (member.role, member.muted, member.hand) == (Role.LISTENER, False, False)


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
        ({"id": 7}, ErrorCode.UNKNOWN_TYPE, 7),
        ({"type": "member", "id": 7, "member": {}}, ErrorCode.UNKNOWN_TYPE, 7),  # an update
        ({"type": "leave"}, ErrorCode.MALFORMED, 0),
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
            {"type": "open", "id": 7, "title": "t" * (MAX_TITLE_CHARS + 1), "name": "n"},
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
        packed({"type": "open", "id": 1, "name": "n", "title": "t", "x": b"x" * MAX_FRAME_BYTES}),
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
    assert {a.value for a in Action} - {"speak"} <= {tag(r) for r in REQUESTS}


LONGEST = Member(
    id=2**32 - 1,
    name="\N{GRINNING FACE}" * MAX_NAME_CHARS,
    role=Role.SPEAKER,
    seat=255,
    muted=True,
    hand=True,
)


def test_the_longest_pages_are_still_frames() -> None:
    page = frames.RosterPage(re=2**32 - 1, members=[LONGEST] * MAX_PAGE, more=True)
    assert decode(encode(page)) == page
    update = encode_update(frames.MemberUpdate(member=LONGEST))
    missed = frames.Updates(re=2**32 - 1, first=2**32 - 1, updates=[update] * MAX_FEED_CATCH_UP)
    assert decode(encode(missed)) == missed


def test_the_longest_update_fits_one_datagram() -> None:
    update = encode_update(frames.MemberUpdate(member=LONGEST))
    assert (
        len(encode(FeedBatch(space="s" * 32, first=2**32 - 1, updates=[update])))
        <= MAX_PLAINTEXT_BYTES
    )
