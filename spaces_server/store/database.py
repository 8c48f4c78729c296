"""A database that holds the records: an SQLite file, or PostgreSQL.

An open Database is the only one: the file, or the PostgreSQL database, is locked as long as it is
open, since two servers that each decide by a memory of their own would spoil the store for both.
A commit that has returned survives the end of the process and of the power.

One thread at a time; every call waits for the disk or the network.
"""

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import attrgetter

import msgspec
from alembic import command
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import (
    URL,
    Connection,
    Engine,
    NullPool,
    Table,
    create_engine,
    delete,
    make_url,
    select,
)
from sqlalchemy import event as events
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

from spaces_server.records import (
    KEYS,
    STORED_ONLY,
    Change,
    Commit,
    Drop,
    Loaded,
    MessageRecord,
    NoticeRecord,
    PostRecord,
    Put,
    Query,
    Record,
    Rows,
)
from spaces_server.store import queries
from spaces_server.store.migrations import config
from spaces_server.store.schema import COUNTERS, LAST_IDS, STARTS, TABLES

Insert = sqlite.Insert | postgresql.Insert

BUSY_S = 1.0  # how long SQLite waits for somebody else who has the file locked
LOCK_WAIT_S = 1  # how long PostgreSQL may take to notice that a server that held the lock is gone
ADVISORY_LOCK = int.from_bytes(b"spaces")

# What SQLite does to every connection: each commit is synced; what is deleted is overwritten with
# zeros, and what a query sorts is not put into files.
PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON", "temp_store=MEMORY")
# What libpq does, unless the URL says otherwise: a server that is gone without a word is noticed.
PARAMETERS = {
    "application_name": "spaces-server",
    "client_encoding": "utf8",
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
SQLITE_AWAY = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
}
LOCK_NOT_AVAILABLE = "55P03"
READ_ONLY_TRANSACTION = "25006"  # so hosted PostgreSQL says that the disk is full


class StoreError(Exception):
    """The store cannot be used.  The text is one line, and has no secrets in it."""


class StoreAwayError(StoreError):
    """It cannot be used now; the same call may be made again later."""


class Database:
    """url: sqlite:///FILE, sqlite:// (in memory, for tests) or postgresql://USER:PASSWORD@HOST/NAME.
    Opened by being made; call `upgrade` first.  Everything raises StoreError where the database
    is to blame, and whatever else where a change or a query is."""

    def __init__(self, url: str) -> None:
        parsed = _parse(url)
        self._postgres = parsed.get_backend_name() == "postgresql"
        self._file = "" if self._postgres else (parsed.database or "").replace(":memory:", "")
        kind = "PostgreSQL database" if self._postgres else "SQLite database"
        self.name = f"{kind} {parsed.database or 'in memory'}"
        self._engine = _engine(parsed)
        insert: Callable[[Table], Insert] = postgresql.insert if self._postgres else sqlite.insert
        self._upserts = {kind: _upsert(insert(table)) for kind, table in TABLES.items()}
        self._raise_counter = _raise(insert(COUNTERS))
        self._connection: Connection | None = None
        self._start: int | None = None
        self._lock: int | None = None
        try:
            if self._file:
                self._lock_file()
            with self._transaction():
                pass
        except BaseException:
            self.close()
            raise

    def upgrade(self) -> None:
        """Makes the tables, or brings them from an older form to the present one."""
        with self._transaction() as connection:
            alembic = config(connection)
            known = {
                step.revision for step in ScriptDirectory.from_config(alembic).walk_revisions()
            }
            revision = MigrationContext.configure(connection).get_current_revision()
            if revision is not None and revision not in known:
                raise StoreError(
                    f"{self.name} is of a newer version (revision {revision}); "
                    "install that version of spaces-server"
                )
            command.upgrade(alembic, "head")
            start = self._start
            if start is None:
                start = _counter(connection, STARTS) + 1
                connection.execute(self._raise_counter, {"name": STARTS, "value": start})
        self._start = start

    def load(self) -> Loaded:
        """All records that live in memory, each kind in the order of its key."""
        records: list[Record] = []
        with self._transaction() as connection:
            for kind in KEYS:
                if kind not in STORED_ONLY:
                    rows = connection.execute(select(TABLES[kind]))
                    found = [kind(**row._mapping) for row in rows]
                    records += sorted(found, key=attrgetter(*KEYS[kind]))
            return Loaded(
                records=tuple(records),
                last_message=_counter(connection, LAST_IDS[MessageRecord]),
                last_post=_counter(connection, LAST_IDS[PostRecord]),
                last_notice=_counter(connection, LAST_IDS[NoticeRecord]),
            )

    def commit(self, commits: Sequence[Commit]) -> None:
        """Stores all of them in one transaction, in their order.  After a StoreAwayError it may
        have happened or not; to do it again is right in both cases."""
        changes = [change for commit in commits for change in commit.changes]
        with self._transaction() as connection:
            for kind, run in groupby(changes, _put_kind):
                if kind is None:
                    for change in run:
                        assert isinstance(change, Drop)
                        _drop(connection, change)
                else:
                    rows = [msgspec.structs.asdict(c.record) for c in run if isinstance(c, Put)]
                    connection.execute(self._upserts[kind], rows)
            for name, value in _last_ids(changes).items():
                connection.execute(self._raise_counter, {"name": name, "value": value})

    def fetch(self, query: Query) -> Rows:
        """The rows that the query says."""
        with self._transaction() as connection:
            return queries.run(connection, query)

    def scrub(self) -> None:
        """After this, nothing that was deleted before is in SQLite's files any more.  (PostgreSQL
        has its autovacuum, and an archive of its log is the operator's.)"""
        if self._postgres:
            return
        with self._transaction() as connection:
            driver = connection.connection.driver_connection
            assert isinstance(driver, sqlite3.Connection)
        try:
            busy, _, _ = driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as error:
            raise StoreAwayError(f"{self.name}: {error}") from None
        if busy:
            raise StoreAwayError(f"{self.name}: something else reads it")

    def close(self) -> None:
        """Frees the lock.  Safe to call twice."""
        self._disconnect()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # -- the connection ------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """On the one connection, which is made anew if the last error broke it."""
        try:
            if self._connection is None:
                self._connection = self._connect()
            with self._connection.begin():
                yield self._connection
        except DBAPIError as error:
            self._disconnect()
            # Not `from error`: its text may quote what was to be stored.
            raise self._explained(error) from None

    def _connect(self) -> Connection:
        connection = self._engine.connect()
        try:
            with connection.begin():
                if self._postgres:
                    self._lock_postgres(connection)
                if self._start is not None and self._start != _counter(connection, STARTS):
                    raise StoreError(f"another server has used the {self.name} in the meantime")
        except BaseException:
            _discard(connection)
            raise
        return connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            _discard(self._connection)
            self._connection = None

    def _lock_file(self) -> None:
        """A file beside the database holds the lock: SQLite's own locks are for single writes."""
        try:
            os.close(os.open(self._file, os.O_RDWR | os.O_CREAT, 0o600))  # nobody else may read it
            self._lock = os.open(self._file + ".lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"{self.name} is in use by another running server") from None
        except OSError as error:
            raise StoreError(f"{self.name} cannot be opened: {error.strerror}") from None

    def _lock_postgres(self, connection: Connection) -> None:
        """The lock is the session's: it goes when the connection does."""
        encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
        if encoding != "UTF8":
            raise StoreError(f"{self.name} has the encoding {encoding}; it must be made with UTF8")
        connection.exec_driver_sql("SET synchronous_commit TO on")
        connection.exec_driver_sql(f"SET lock_timeout TO '{LOCK_WAIT_S}s'")
        connection.exec_driver_sql(f"SELECT pg_advisory_lock({ADVISORY_LOCK})")
        connection.exec_driver_sql("SET lock_timeout TO DEFAULT")

    def _explained(self, error: DBAPIError) -> StoreError:
        cause = error.orig
        state = getattr(cause, "sqlstate", None)
        if state == LOCK_NOT_AVAILABLE:
            return StoreAwayError(f"{self.name} is in use by another running server")
        if isinstance(cause, sqlite3.Error):
            away = getattr(cause, "sqlite_errorcode", 0) & 0xFF in SQLITE_AWAY
        else:
            away = (
                error.connection_invalidated
                or isinstance(error, OperationalError)
                or state == READ_ONLY_TRANSACTION
            )
        # The first line: PostgreSQL's others quote the row.
        text = f"{self.name}: {str(cause).partition(chr(10))[0]}"
        return StoreAwayError(text) if away else StoreError(text)


def _parse(url: str) -> URL:
    """No message quotes the URL: where it is wrong, the password may be anywhere in it."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise StoreError("the URL of the store is not of the form of a URL") from None
    if parsed.drivername in ("sqlite", "sqlite+pysqlite") and not (parsed.host or parsed.query):
        return parsed
    if parsed.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        if "@" in (parsed.host or ""):
            raise StoreError("an @ in the password of the store's URL must be written as %40")
        if not parsed.database:
            raise StoreError("the URL of the store names no database")
        return parsed.set(drivername="postgresql+psycopg").update_query_dict(
            PARAMETERS | dict(parsed.query)
        )
    raise StoreError("the URL of the store must be sqlite:///FILE or postgresql://...")


def _engine(url: URL) -> Engine:
    if url.get_backend_name() == "postgresql":
        try:
            return create_engine(url, poolclass=NullPool, hide_parameters=True)
        except ModuleNotFoundError:
            raise StoreError("PostgreSQL needs psycopg: pip install 'spaces[postgres]'") from None
    engine = create_engine(
        url,
        poolclass=NullPool,
        hide_parameters=True,
        connect_args={"check_same_thread": False, "timeout": BUSY_S},
    )

    @events.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # the driver's own transactions leave DDL out
        for pragma in PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")

    @events.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine


def _discard(connection: Connection) -> None:
    connection.invalidate()  # so that nothing is said on it any more
    connection.close()


# -- statements ------------------------------------------------------------------------------------


def _upsert(statement: Insert) -> Insert:
    assert isinstance(statement.table, Table)
    keys = [column.name for column in statement.table.primary_key]
    rest = {c.name: statement.excluded[c.name] for c in statement.table.c if not c.primary_key}
    if not rest:
        return statement.on_conflict_do_nothing(index_elements=keys)
    return statement.on_conflict_do_update(index_elements=keys, set_=rest)


def _raise(statement: Insert) -> Insert:
    """Sets a counter, if that makes it higher."""
    new = statement.excluded.value
    return statement.on_conflict_do_update(
        index_elements=["name"], set_={"value": new}, where=COUNTERS.c.value < new
    )


def _counter(connection: Connection, name: str) -> int:
    value = select(COUNTERS.c.value).where(COUNTERS.c.name == name)
    return connection.execute(value).scalar() or 0


def _put_kind(change: Change) -> type[Record] | None:
    return type(change.record) if isinstance(change, Put) else None


def _drop(connection: Connection, drop: Drop) -> None:
    if not drop.where:
        raise ValueError(f"a Drop of all {drop.kind.__name__}s")
    table = TABLES[drop.kind]
    connection.execute(
        delete(table).where(*(table.c[name] == value for name, value in drop.where.items()))
    )


def _last_ids(changes: Iterable[Change]) -> dict[str, int]:
    """The highest ids among the records put, of the kinds whose ids are counted."""
    highest: dict[str, int] = {}
    for change in changes:
        if isinstance(change, Put) and isinstance(
            change.record, MessageRecord | PostRecord | NoticeRecord
        ):
            name = LAST_IDS[type(change.record)]
            highest[name] = max(change.record.id, highest.get(name, 0))
    return highest
