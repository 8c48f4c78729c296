"""The store, on SQLite and on a PostgreSQL of the tests' own: what goes in comes out, in order,
whole or not at all, whatever happens to the database in between."""

import itertools
import logging
import queue
import sqlite3
import subprocess
import sys
import threading
import traceback
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, NullPool, create_engine, delete, make_url, select, text

from protocol.frames import MessageInfo, PostInfo
from protocol.roles import ServerRole
from spaces_server.records import (
    KEYS,
    STORED_ONLY,
    AccountRecord,
    BanRecord,
    BlockRecord,
    Change,
    Commit,
    Drop,
    EvidenceKeyRecord,
    EvidencePartRecord,
    Fetch,
    FollowRecord,
    GetEvidencePart,
    GetNotePart,
    GetPost,
    MessageRecord,
    MessagesPage,
    NotePartRecord,
    PostRecord,
    PostsPage,
    Put,
    Record,
    SettingRecord,
    StoreReply,
)
from spaces_server.store.database import Database, StoreAwayError, StoreError
from spaces_server.store.schema import METADATA, TABLES
from spaces_server.store.worker import StoreWorker
from tests.integration.postgres import Postgres
from tests.integration.postgres import postgres as postgres  # a fixture

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 30.0

Key = tuple[Any, ...]
Model = dict[type[Record], dict[Key, Record]]


# -- a store, and what one should be ---------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.emptied()


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    opened = Database(url)
    opened.upgrade()
    yield opened
    opened.close()


@pytest.fixture
def reader(url: str) -> Iterator[Engine]:
    """A way into the same database that is not the store's."""
    engine = engine_for(url)
    yield engine
    engine.dispose()


def engine_for(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    return create_engine(parsed, poolclass=NullPool)


def empty() -> Model:
    return {kind: {} for kind in KEYS}


def key(record: Record) -> Key:
    return tuple(getattr(record, name) for name in KEYS[type(record)])


def apply(model: Model, change: Change) -> None:
    if isinstance(change, Put):
        model[type(change.record)][key(change.record)] = change.record
        return
    rows = model[change.kind]
    for name, record in list(rows.items()):
        if all(getattr(record, field) == value for field, value in change.where.items()):
            del rows[name]


def everything(engine: Engine) -> Model:
    """What is really there."""
    found = empty()
    with engine.connect() as connection:
        for kind, table in TABLES.items():
            for row in connection.execute(select(table)):
                apply(found, Put(kind(**row._mapping)))
    return found


def in_memory(model: Model) -> tuple[Record, ...]:
    """What `load` is to give."""
    kinds = [kind for kind in KEYS if kind not in STORED_ONLY]
    return tuple(itertools.chain(*(sorted(model[k].values(), key=key) for k in kinds)))


def puts(*records: Record) -> Commit:
    return Commit(0, tuple(Put(record) for record in records))


def setting(value: str) -> Put:
    return Put(SettingRecord(name="a", value=value))


def account(number: int) -> AccountRecord:
    return AccountRecord(
        id=number, handle=f"h{number}", skeleton=f"s{number}", name=f"Name {number}",
        role="person", access=True, invited_by=0, since_s=1,
    )  # fmt: skip


def message(number: int, sender: int = 1, recipient: int = 2, body: str = "hi") -> MessageRecord:
    return MessageRecord(
        id=number, sender=sender, recipient=recipient, at_s=number, text=body, space="", invite=""
    )


def post(number: int, author: int = 1) -> PostRecord:
    return PostRecord(id=number, author=author, at_s=number, text="p", space="", note_ms=0)


# -- the schema ------------------------------------------------------------------------------------


def test_the_migrations_make_the_tables_of_the_schema(database: Database, reader: Engine) -> None:
    with reader.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
        revision = MigrationContext.configure(connection).get_current_revision()
    database.commit([puts(account(1), message(7))])
    before = everything(reader)
    database.upgrade()
    assert everything(reader) == before
    with reader.connect() as connection:
        assert MigrationContext.configure(connection).get_current_revision() == revision


def test_a_wheel_has_the_migrations_with_it(tmp_path: Path) -> None:
    build = "import hatchling.build, sys; print(hatchling.build.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    with zipfile.ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        wheel.extractall(tmp_path / "installed")
    use = (
        f"import sys; sys.path.insert(0, '{tmp_path}/installed')\n"
        "from spaces_server.store import database\n"
        f"assert database.__file__.startswith('{tmp_path}')\n"
        f"opened = database.Database('sqlite:///{tmp_path}/store.db')\n"
        "opened.upgrade(); print(opened.load()); opened.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", use], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout.startswith("Loaded(records=()")


# -- records ---------------------------------------------------------------------------------------


EXTREMES: dict[object, tuple[Any, ...]] = {
    int: (0, 0xFFFF_FFFF),
    str: ("", "Käthe 𝄞 'quoted\" %s \\ \n"),
    bytes: (b"", b"\0\xff" * 8_192),
    bool: (False, True),
}


def extreme(kind: type[Record], which: int) -> Record:
    values = {f.name: EXTREMES[f.type][which] for f in msgspec.structs.fields(kind)}
    for name in KEYS[kind]:
        if isinstance(values[name], bytes):
            values[name] = values[name][:32]  # of a key, which is all that names a record
    return kind(**values)


def test_every_kind_of_record_comes_back_as_it_was(database: Database, reader: Engine) -> None:
    low = [extreme(kind, 0) for kind in KEYS]
    high = [extreme(kind, 1) for kind in KEYS]
    database.commit([puts(*high), puts(*low)])
    found = everything(reader)
    for one, other in zip(low, high, strict=True):
        assert found[type(one)] == {key(one): one, key(other): other}
        loaded = [] if type(one) in STORED_ONLY else [one, other]
        assert database.load().of(type(one)) == loaded


def test_records_are_dropped_by_any_field(database: Database, reader: Engine) -> None:
    high = {kind: extreme(kind, 1) for kind in KEYS}
    for turn in range(max(len(kind.__struct_fields__) for kind in KEYS)):
        commits = []
        for kind in KEYS:
            low = extreme(kind, 0)
            name = kind.__struct_fields__[turn % len(kind.__struct_fields__)]
            drop = Drop(kind, {name: getattr(low, name)})
            commits.append(Commit(0, (Put(low), Put(high[kind]), drop)))
        database.commit(commits)
        assert everything(reader) == {kind: {key(one): one} for kind, one in high.items()}


def test_values_that_are_more_than_texts_are_stored_as_texts(
    database: Database, reader: Engine
) -> None:
    owner = msgspec.structs.replace(account(1), role=ServerRole.OWNER)
    database.commit([puts(owner)])
    [stored] = everything(reader)[AccountRecord].values()
    assert isinstance(stored, AccountRecord)
    assert (stored.role, type(stored.role)) == ("owner", str)
    database.commit([Commit(0, (Drop(AccountRecord, {"role": ServerRole.OWNER}),))])
    assert everything(reader) == empty()


def test_changes_happen_in_their_order(database: Database) -> None:
    clear = Drop(SettingRecord, {"name": "a"})
    database.commit([Commit(1, (setting("1"), clear, setting("2"), setting("3")))])
    assert database.load().records == (setting("3").record,)
    database.commit([Commit(2, (setting("4"),)), Commit(3, (clear,)), Commit(4, ())])
    assert database.load().records == ()
    database.commit([])


SMALL: dict[object, st.SearchStrategy[Any]] = {
    int: st.sampled_from([0, 1, 2, 0xFFFF_FFFF]),
    str: st.sampled_from(["", "a", "B", "ä𝄞", "'\"%\\"]),
    bytes: st.sampled_from([b"", b"\0\xff", b"k" * 32]),
    bool: st.booleans(),
}


def records(kind: type[Record]) -> st.SearchStrategy[Record]:
    return st.builds(kind, **{f.name: SMALL[f.type] for f in msgspec.structs.fields(kind)})


def drops(kind: type[Record]) -> st.SearchStrategy[Drop]:
    fields = sorted(kind.__struct_fields__)
    where = st.fixed_dictionaries(
        {}, optional={f.name: SMALL[f.type] for f in msgspec.structs.fields(kind)}
    ).filter(bool)
    # Of one field mostly: others seldom meet a record.
    single = st.sampled_from(fields).flatmap(
        lambda name: records(kind).map(lambda record: {name: getattr(record, name)})
    )
    return (single | where).map(lambda chosen: Drop(kind, chosen))


some_kind = st.sampled_from(list(KEYS))
changes = some_kind.flatmap(lambda k: records(k).map(Put)) | some_kind.flatmap(drops)
commits = st.lists(changes, max_size=8).map(lambda some: Commit(0, tuple(some)))


def examples(database: Database) -> int:
    return 12 if "PostgreSQL" in database.name else 40


def wipe(engine: Engine) -> None:
    with engine.begin() as connection:
        for table in METADATA.sorted_tables:
            if table.name != "counters":
                connection.execute(delete(table))


def test_the_store_is_what_the_commits_make_of_it(database: Database, reader: Engine) -> None:
    @settings(max_examples=examples(database), deadline=None)
    @given(st.lists(st.lists(commits, max_size=4), max_size=4))
    def check(groups: list[list[Commit]]) -> None:
        wipe(reader)
        model = empty()
        for group in groups:
            database.commit(group)
            for commit in group:
                for change in commit.changes:
                    apply(model, change)
            assert everything(reader) == model
        assert database.load().records == in_memory(model)

    check()


def test_a_commit_that_cannot_be_stored_leaves_nothing_behind(
    database: Database, reader: Engine
) -> None:
    database.commit([puts(account(1))])
    for bad, error in (
        (Drop(AccountRecord, {}), ValueError),
        (Drop(AccountRecord, {"colour": 1}), KeyError),
        (Put(msgspec.structs.replace(account(3), id="three")), Exception),
    ):
        with pytest.raises(error) as caught:
            database.commit([puts(account(2)), Commit(0, (setting("x"), bad))])
        assert not isinstance(caught.value, StoreAwayError)
        assert database.load().records == (account(1),)


def test_an_error_does_not_quote_what_was_to_be_stored(database: Database) -> None:
    bad = msgspec.structs.replace(message(1, body="between you and me"), at_s=None)
    with pytest.raises(StoreError) as caught:
        database.commit([puts(bad)])
    assert "at_s" in str(caught.value)
    assert "between you" not in "".join(traceback.format_exception(caught.value))


def test_ids_are_not_given_twice_after_the_newest_is_deleted(url: str) -> None:
    first = Database(url)
    first.upgrade()
    assert (first.load().last_message, first.load().last_post) == (0, 0)
    first.commit([puts(message(8), message(9), message(3), post(4))])
    first.commit([Commit(0, (Drop(MessageRecord, {"sender": 1}), Put(post(5))))])
    first.commit([Commit(0, (Drop(PostRecord, {"id": 5}), Put(message(2))))])
    first.close()
    second = Database(url)
    second.upgrade()
    assert (second.load().last_message, second.load().last_post) == (9, 5)
    second.close()


# -- what is fetched -------------------------------------------------------------------------------


people = st.integers(1, 4)
pairs = st.sets(st.tuples(people, people).filter(lambda pair: pair[0] != pair[1]), max_size=6)
before = st.integers(0, 15)
limits = st.integers(1, 5)


def test_pages_show_what_the_reader_may_see(database: Database, reader: Engine) -> None:
    @settings(max_examples=examples(database), deadline=None)
    @given(
        follows=pairs,
        blocks=pairs,
        banned=st.sets(people, max_size=2),
        authors=st.lists(people, max_size=12),
        sent=st.lists(st.tuples(people, people), max_size=12),
        posts_query=st.builds(PostsPage, st.integers(0, 4), st.booleans(), before, limits),
        messages_query=st.builds(MessagesPage, people, st.integers(0, 4), before, limits),
    )
    def check(
        follows: set[tuple[int, int]],
        blocks: set[tuple[int, int]],
        banned: set[int],
        authors: list[int],
        sent: list[tuple[int, int]],
        posts_query: PostsPage,
        messages_query: MessagesPage,
    ) -> None:
        wipe(reader)
        database.commit(
            [
                puts(*(account(number) for number in range(1, 5))),
                puts(*(FollowRecord(follower=a, followed=b, since_s=1) for a, b in follows)),
                puts(*(BlockRecord(blocker=a, blocked=b) for a, b in blocks)),
                puts(*(BanRecord(account=a, moderator=1, reason="", at_s=1) for a in banned)),
                puts(*(post(n, author) for n, author in enumerate(authors, 1))),
                puts(*(message(n, *pair) for n, pair in enumerate(sent, 1))),
            ]
        )

        def apart(one: int, other: int) -> bool:
            return (one, other) in blocks or (other, one) in blocks

        page = posts_query
        posts = [
            PostInfo(id=n, author=f"h{author}", name=f"Name {author}", at=n, text="p")
            for n, author in enumerate(authors, 1)
            if not apart(page.reader, author)
            and author not in banned
            and (not page.home or author == page.reader or (page.reader, author) in follows)
            and (not page.before or n < page.before)
        ]
        assert database.fetch(page) == posts[::-1][: page.limit]

        query = messages_query
        messages = [
            MessageInfo(id=n, sender=f"h{a}", recipient=f"h{b}", at=n, text="hi")
            for n, (a, b) in enumerate(sent, 1)
            if query.reader in (a, b)
            and not apart(a, b)
            and (
                not query.other
                or (a, b) in ((query.reader, query.other), (query.other, query.reader))
            )
            and (not query.before or n < query.before)
        ]
        assert database.fetch(query) == messages[::-1][: query.limit]

    check()


def test_a_post_and_its_voice_note_are_fetched_in_parts(database: Database) -> None:
    parts = [NotePartRecord(post=3, part=n, data=bytes([n]) * 9) for n in range(3)]
    other = NotePartRecord(post=4, part=0, data=b"other")
    database.commit([puts(post(3), *parts, other)])
    assert database.fetch(GetPost(3)) == post(3)
    assert database.fetch(GetPost(4)) is None
    found = [database.fetch(GetNotePart(3, n)) for n in range(4)]
    assert found == [(b"\0" * 9, True), (b"\1" * 9, True), (b"\2" * 9, False), None]
    assert database.fetch(GetNotePart(5, 0)) is None


def test_evidence_is_fetched_with_the_key_for_one_device(database: Database) -> None:
    sealed = EvidenceKeyRecord(report=1, device=b"d" * 32, sender_key=b"s", sealed_key=b"k")
    parts = [EvidencePartRecord(report=1, part=n, data=bytes([n])) for n in range(2)]
    database.commit([puts(sealed, *parts)])
    assert database.fetch(GetEvidencePart(1, 0, b"d" * 32)) == (sealed, b"\0", True)
    assert database.fetch(GetEvidencePart(1, 1, b"d" * 32)) == (sealed, b"\1", False)
    for absent in (
        GetEvidencePart(1, 2, b"d" * 32),
        GetEvidencePart(1, 0, b"e" * 32),
        GetEvidencePart(2, 0, b"d" * 32),
    ):
        assert database.fetch(absent) is None


# -- a store that cannot be used -------------------------------------------------------------------


def refused(url: str) -> str:
    """The store does not open; -> its one line."""
    with pytest.raises(StoreError) as caught:
        Database(url).upgrade()
    line = str(caught.value)
    assert "\n" not in line
    printed = "".join(traceback.format_exception(caught.value))
    assert "secret" not in printed
    return line


@pytest.mark.parametrize(
    "url",
    [
        "",
        "store.db",
        "mysql://root:secret@localhost/spaces",
        "postgresql://me:secret@localhost:port/spaces",
        "postgresql://me:not@secret@localhost/spaces",
        "postgresql://me:secret@localhost",
        "postgresql+psycopg2://me:secret@localhost/spaces",
        "sqlite://secret/store.db",
        "sqlite:///store.db?secret=1",
    ],
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    assert "URL" in refused(url)


def test_a_server_that_is_not_there_is_refused() -> None:
    assert "refused" in refused("postgresql://me:secret@127.0.0.1:1/spaces")


def test_a_wrong_password_is_refused(postgres: Postgres) -> None:
    assert "password authentication failed" in refused(postgres.url("postgres", "secret"))
    assert "does not exist" in refused(postgres.url("nowhere"))


def test_a_database_that_does_not_hold_every_text_is_refused(postgres: Postgres) -> None:
    url = postgres.new_database("--encoding=SQL_ASCII", "--template=template0")
    assert "UTF8" in refused(url)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_text("something else " * 1_000)
    assert "not a database" in refused(f"sqlite:///{tmp_path}/store.db")
    assert "No such file" in refused(f"sqlite:///{tmp_path}/nowhere/store.db")


def test_a_database_of_a_newer_version_is_refused(
    database: Database, url: str, reader: Engine
) -> None:
    database.commit([puts(account(1))])
    database.close()
    with reader.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    before = everything(reader)
    assert "newer version" in refused(url)
    assert everything(reader) == before


def test_a_second_server_on_the_same_store_is_refused(database: Database, url: str) -> None:
    assert "in use by another running server" in refused(url)
    database.commit([puts(account(1))])
    database.close()
    second = Database(url)
    assert second.load().records == (account(1),)
    second.close()


def test_what_was_dropped_is_in_no_file_any_more(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    database = Database(f"sqlite:///{path}")
    database.upgrade()
    told = [message(n, body=f"in confidence {n} " * 20) for n in range(50)]
    database.commit([puts(*told)])
    database.scrub()  # so that it is in the file, and not in the log only
    database.commit([puts(*told)])
    assert b"in confidence" in path.read_bytes()
    database.commit([Commit(0, (Drop(MessageRecord, {"recipient": 2}),))])
    database.scrub()
    for file in tmp_path.iterdir():
        assert b"in confidence" not in file.read_bytes(), file
        assert file.stat().st_mode & 0o077 == 0, file
    database.close()


# -- the worker ------------------------------------------------------------------------------------


class Watch(logging.Handler):
    """Notices the line that says that the store is away."""

    def __init__(self, seen: threading.Event) -> None:
        super().__init__()
        self._seen = seen

    def emit(self, record: logging.LogRecord) -> None:
        if "is away" in record.getMessage():
            self._seen.set()


class Peer:
    """Stands where the server does: collects what the worker gives."""

    def __init__(self, database: Database) -> None:
        self.batches: queue.Queue[list[StoreReply]] = queue.Queue()
        self.failures: queue.Queue[Exception] = queue.Queue()
        self.away = threading.Event()
        self._log = Watch(self.away)
        logging.getLogger("spaces").addHandler(self._log)
        self.worker = StoreWorker(database, self.batches.put, self.failures.put)

    def replies(self, count: int) -> list[StoreReply]:
        found: list[StoreReply] = []
        while len(found) < count:
            found += self.batches.get(timeout=PATIENCE_S)
        assert len(found) == count
        return found

    def end(self) -> int:
        undone = self.worker.close()
        logging.getLogger("spaces").removeHandler(self._log)
        return undone


@pytest.fixture
def peer(database: Database) -> Iterator[Peer]:
    made = Peer(database)
    yield made
    made.end()


def test_a_fetch_sees_the_commits_before_it(peer: Peer) -> None:
    for n in range(1, 30):
        peer.worker.submit([Commit(2 * n, (Put(post(n)),)), Fetch(2 * n + 1, GetPost(n))])
    replies = {reply.ticket: reply.rows for reply in peer.replies(58)}
    assert replies == {
        **{2 * n: None for n in range(1, 30)},
        **{2 * n + 1: post(n) for n in range(1, 30)},
    }
    assert peer.worker.behind == 0
    assert peer.end() == 0


def test_those_who_wait_together_share_one_transaction(database: Database) -> None:
    batches: queue.Queue[list[StoreReply]] = queue.Queue()
    go_on = threading.Event()

    def deliver(replies: list[StoreReply]) -> None:
        batches.put(replies)
        go_on.wait(PATIENCE_S)

    failures: queue.Queue[Exception] = queue.Queue()
    worker = StoreWorker(database, deliver, failures.put)
    worker.submit([Commit(0, (setting("0"),))])
    assert batches.get(timeout=PATIENCE_S) == [StoreReply(0)]
    for n in range(1, 101):
        worker.submit([Commit(n, (setting(str(n)),))])
    worker.submit([Fetch(101, GetPost(1))])
    assert worker.behind == 101
    go_on.set()
    assert batches.get(timeout=PATIENCE_S) == [StoreReply(n) for n in range(1, 101)]
    assert batches.get(timeout=PATIENCE_S) == [StoreReply(101)]
    assert worker.close() == 0
    assert failures.empty()
    assert database.load().records == (setting("100").record,)


def test_close_finishes_what_is_queued(database: Database) -> None:
    peer = Peer(database)
    peer.worker.submit(Commit(n, (Put(account(n)),)) for n in range(200))
    assert peer.end() == 0
    assert len(peer.replies(200)) == 200
    assert len(database.load().records) == 200
    peer.worker.submit([Commit(200, (Put(account(200)),))])
    assert len(database.load().records) == 200


def numbered(first: int, last: int) -> list[Commit]:
    """Commits whose order shows."""
    return [Commit(n, (setting(str(n)), Put(message(n)))) for n in range(first, last)]


def check_numbered(peer: Peer, url: str, count: int) -> None:
    assert [reply.ticket for reply in peer.replies(count)] == list(range(count))
    found = everything(engine_for(url))
    assert found[SettingRecord] == {("a",): setting(str(count - 1)).record}
    assert sorted(found[MessageRecord]) == [(n,) for n in range(count)]
    assert peer.failures.empty()


def test_a_locked_file_is_waited_for(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    database = Database(url)
    database.upgrade()
    peer = Peer(database)
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    for commit in numbered(0, 20):
        peer.worker.submit([commit])
    assert peer.away.wait(PATIENCE_S)
    assert peer.batches.empty()
    assert peer.worker.behind == 20
    peer.worker.submit(numbered(20, 30))
    other.execute("ROLLBACK")
    other.close()
    check_numbered(peer, url, 30)
    assert peer.end() == 0
    database.close()


def test_a_postgres_that_restarts_is_waited_for(postgres: Postgres) -> None:
    url = postgres.emptied()
    database = Database(url)
    database.upgrade()
    peer = Peer(database)
    peer.worker.submit(numbered(0, 10))
    for commit in numbered(10, 20):
        peer.worker.submit([commit])
    postgres.stop()
    try:
        peer.worker.submit(numbered(20, 30))
        assert peer.away.wait(PATIENCE_S)
        peer.worker.submit(numbered(30, 40))
    finally:
        postgres.start()
    check_numbered(peer, url, 40)
    peer.away.clear()
    postgres.stop()
    try:
        peer.worker.submit([Fetch(40, GetPost(1))])
        assert peer.away.wait(PATIENCE_S)
    finally:
        postgres.start()
    assert peer.replies(1) == [StoreReply(40, None)]
    assert peer.end() == 0
    database.close()


def end_sessions(engine: Engine) -> None:
    """Those of all others in this database."""
    with engine.connect() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )


def test_a_server_that_was_replaced_while_it_was_away_does_not_write(postgres: Postgres) -> None:
    url = postgres.emptied()
    reader = engine_for(url)
    old = Database(url)
    old.upgrade()
    end_sessions(reader)
    with pytest.raises(StoreAwayError):
        old.commit([puts(account(1))])
    old.commit([puts(account(1))])
    end_sessions(reader)
    new = Database(url)
    new.upgrade()
    with pytest.raises(StoreAwayError):
        old.commit([puts(account(2))])  # the connection is gone
    with pytest.raises(StoreAwayError, match="in use by another"):
        old.commit([puts(account(2))])
    new.commit([puts(account(3))])
    new.close()
    with pytest.raises(StoreError, match="another server has used") as caught:
        old.commit([puts(account(2))])
    assert not isinstance(caught.value, StoreAwayError)
    old.close()
    assert sorted(everything(reader)[AccountRecord]) == [(1,), (3,)]


def test_close_does_not_wait_for_ever(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/store.db")
    database.upgrade()
    peer = Peer(database)
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    peer.worker.submit(numbered(0, 3))
    assert peer.away.wait(PATIENCE_S)
    assert peer.worker.close(patience_s=0.0) in (0, 3)
    assert peer.end() == 3
    assert peer.failures.empty()
    other.close()
    database.close()


def test_a_mistake_stops_the_worker_once(database: Database, peer: Peer) -> None:
    peer.worker.submit([Commit(1, (Put(account(1)),))])
    assert peer.replies(1) == [StoreReply(1)]
    peer.worker.submit([Commit(2, (Put(account(2)), Drop(AccountRecord, {})))])
    assert isinstance(peer.failures.get(timeout=PATIENCE_S), ValueError)
    peer.worker.submit([Commit(3, (Put(account(3)),))])
    assert peer.end() == 1
    assert peer.batches.empty()
    assert peer.failures.empty()
    assert database.load().records == (account(1),)


def test_the_worker_clears_away_what_was_dropped(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/store.db")
    database.upgrade()
    peer = Peer(database)
    peer.worker.submit([puts(message(1, body="in confidence"))])
    peer.replies(1)
    log = tmp_path / "store.db-wal"
    assert b"in confidence" in log.read_bytes()
    peer.worker.submit([Commit(0, (Drop(MessageRecord, {"id": 1}),))])
    peer.replies(1)
    assert peer.end() == 0
    assert log.stat().st_size == 0
    assert b"in confidence" not in (tmp_path / "store.db").read_bytes()
    database.close()
