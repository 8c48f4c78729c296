"""What is said and shown in a space is in no file and no log, nor who listened: while it is open,
when it is over, and when the server has stopped."""

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from protocol.link import Link
from protocol.roles import Role
from spaces_client import client as c
from spaces_client.live import connect, host
from spaces_server.records import SpaceRecord, StageRecord
from tests.integration.postgres import PASSWORD, USER, Postgres
from tests.integration.postgres import postgres as postgres  # a fixture
from tests.integration.processes import ServerCommand
from tests.integration.test_live import happens, registered, until
from tests.unit.test_store import Model, engine_for, everything

ADA, BEN, LEA, LOU = (bytes([n]) * 32 for n in (3, 4, 5, 6))  # their private keys
KEPT = "this post is kept, so that a search has something to find"
LINES = (
    "zwölf boxkämpfer jagen viktor",
    "the password of the reading circle is ninepin",
    "a line that was taken back later, hippopotamus",
    "long " + "and longer " * 20,
)
REACTIONS = ("🦔", "🦥", "🦦", "🦨", "🦩", "🦪")
GUEST = "Gundula Gast"
TITLE = "A quiet talk"


class Traces:
    """Whatever a server leaves: its data folder, what it has printed, and its PostgreSQL."""

    def __init__(self, folder: Path, postgres: Postgres | None) -> None:
        self._folder = folder
        self._postgres = postgres
        self.url = f"sqlite:///{folder}/data/spaces.db"
        if postgres is not None:
            self.url = postgres.emptied()
        self.server: ServerCommand

    def _everything(self) -> Iterator[tuple[str, bytes]]:
        printed = "\n".join([*self.server.out, *self.server.err])
        yield "the log", printed.encode()
        folders = [self._folder / "data"]
        if self._postgres is not None:
            folders.append(self._postgres.folder)
            yield "a dump", self._dump(self._postgres)
        for folder in folders:
            for file in folder.rglob("*"):
                with contextlib.suppress(FileNotFoundError):  # gone in between
                    if file.is_file():
                        yield file.name, file.read_bytes()

    def _dump(self, postgres: Postgres) -> bytes:
        command: list[str | Path] = [
            postgres.bin / "pg_dump", "--host", postgres.folder, "--username", USER,
            "--inserts", "postgres",
        ]  # fmt: skip
        return subprocess.run(
            command, env={"PGPASSWORD": PASSWORD}, stdout=subprocess.PIPE, check=True
        ).stdout

    @property
    def not_ours(self) -> set[str]:
        """What keeps for a while what was deleted: PostgreSQL's own files, and not a dump."""
        return (
            set() if self._postgres is None else {f.name for f in self._postgres.folder.rglob("*")}
        )

    def where(self, *texts: str) -> set[str]:
        """Where any of these is to be found."""
        wanted = [text.encode() for text in texts]
        return {name for name, data in self._everything() if any(text in data for text in wanted)}


class Rows:
    """What the store holds."""

    def __init__(self, url: str) -> None:
        self._reader = engine_for(url)

    def all(self) -> Model:
        return everything(self._reader)

    def close(self) -> None:
        self._reader.dispose()


@pytest.fixture(params=["sqlite", "postgres"])
def traces(request: pytest.FixtureRequest, tmp_path: Path) -> Traces:
    server = request.getfixturevalue("postgres") if request.param == "postgres" else None
    return Traces(tmp_path, server)


@contextlib.contextmanager
def running(traces: Traces, folder: Path) -> Iterator[Link]:
    with ServerCommand(
        folder, "--database", traces.url, "--reactions", " ".join(REACTIONS), "--no-rate-limits"
    ) as traces.server:
        yield Link.parse(traces.server.link)


async def test_nothing_of_what_is_said_is_left(traces: Traces, tmp_path: Path) -> None:
    secrets = (*LINES, *REACTIONS, GUEST)
    with running(traces, tmp_path) as link:
        await registered(link, ada=ADA, ben=BEN)
        async with (
            host(link, title=TITLE, key=ADA) as ada,
            connect(await ada.make_invite(Role.SPEAKER), key=BEN) as ben,
            connect(ada.link, name=GUEST) as guest,
        ):
            await ada.post(KEPT)
            for line in LINES:
                said = await ben.chat(line)
                await happens(guest, c.Chat)
            await ben.delete_line(said)
            await happens(guest, c.LineGone)
            for emoji in REACTIONS:
                await ben.react(emoji)
            await happens(guest, c.Reacted)
            assert traces.where(*secrets) == set()
            assert traces.where(KEPT) - {"a dump"}, "the search would find it"
            await ada.close()
            for space in (ben, guest):
                await happens(space, c.Ended)
            await ada.post(KEPT)  # the store has been written to since
            assert traces.where(*secrets) == set()
        assert traces.server.end(signal.SIGTERM) == 0
        assert traces.where(*secrets) == set()
        assert traces.where(KEPT)


async def test_nothing_says_who_listened_or_raised_a_hand(traces: Traces, tmp_path: Path) -> None:
    with running(traces, tmp_path) as link, contextlib.closing(Rows(traces.url)) as rows:
        await registered(link, ada=ADA, ben=BEN, leonore=LEA, ludovica=LOU)
        async with host(link, title=TITLE, key=ADA) as ada:
            before = rows.all()
            async with connect(ada.link, key=LEA) as lea, connect(ada.link, name=GUEST):
                await lea.raise_hand()
                await until(ada, lambda: bool(ada.hands) and ada.listeners == 2)
                await lea.lower_hand()
                await lea.set_volume(ada.me.id, 50)
                await ada.offer(lea.me.id)
                await lea.decline()
                await until(ada, lambda: not ada.hands)
            async with connect(ada.link, key=LOU) as lou:
                await until(ada, lambda: ada.listeners == 1)
                token = (await ada.make_invite(Role.LISTENER)).invite or ""
                assert traces.where(token)
                await ada.revoke_invite(token)  # after which all that was asked before is stored
                assert rows.all() == before
                await ada.make_invite(Role.LISTENER)
                await ada.close()
                await happens(lou, c.Ended)
            after = rows.all()
        assert traces.server.end(signal.SIGTERM) == 0
        assert traces.where(GUEST) == set()
        assert "the log" not in traces.where("leonore", "Leonore", "ludovica", "Ludovica")
        assert traces.where(token) <= traces.not_ours
    (space,) = after[SpaceRecord].values()
    (was,) = before[SpaceRecord].values()
    assert before[StageRecord]
    assert isinstance(space, SpaceRecord)
    assert space == replace(was, state="ended", ended_s=space.ended_s)
    before[SpaceRecord], before[StageRecord] = after[SpaceRecord], {}
    assert after == before
