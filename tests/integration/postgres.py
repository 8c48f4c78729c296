"""A PostgreSQL of the tests' own, from Debian's package: made for this run of the tests, in a
temporary folder, by an unprivileged user, reached by a socket in that folder only."""

import functools
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

USER = "spaces"
PASSWORD = "p@ss/word:%"  # with whatever means something in a URL
QUOTED = "p%40ss%2Fword%3A%25"


class Postgres:
    """Running from the start on, until `end`.  bin: the folder of pg_dump and the like."""

    def __init__(self, programs: Path) -> None:
        self.bin = programs
        self.folder = Path(tempfile.mkdtemp(prefix="spaces-postgres-"))
        self._numbers = itertools.count()
        self._user: str | None = None
        if os.geteuid() == 0:  # initdb and postgres refuse to work for root
            self._user = next(name for name in ("postgres", "nobody") if _exists(name))
            os.chown(self.folder, pwd.getpwnam(self._user).pw_uid, -1)
        self._data = self.folder / "data"
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)  # the folder is private
        self._run(
            "initdb", "--pgdata", self._data, "--username", USER, "--pwfile", secret,
            "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C",
        )  # fmt: skip
        self.start()

    def start(self) -> None:
        options = f"-c listen_addresses='' -c unix_socket_directories='{self.folder}'"
        log = self.folder / "log"
        self._run("pg_ctl", "start", "-w", "-D", self._data, "-l", log, "-o", options)

    def stop(self, mode: str = "fast") -> None:
        """Its clients' connections break."""
        self._run("pg_ctl", "stop", "-w", "-D", self._data, "-m", mode)

    def end(self) -> None:
        if self.folder.exists():
            self.stop("immediate")
            shutil.rmtree(self.folder)

    def url(self, database: str, password: str = QUOTED) -> str:
        return f"postgresql://{USER}:{password}@/{database}?host={self.folder}"

    def emptied(self) -> str:
        """Ends all sessions in the first database, and empties it; -> its URL.  (Making another
        one takes ten times as long.)"""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
        return self.url("postgres")

    def new_database(self, *options: str) -> str:
        """-> its URL.  options: of `createdb`."""
        name = f"store{next(self._numbers)}"
        self._run("createdb", "-h", self.folder, "-U", USER, *options, name)
        return self.url(name)

    def _run(self, program: str, *arguments: object) -> None:
        done = subprocess.run(
            [self.bin / program, *map(str, arguments)],
            user=self._user,
            group=None if self._user is None else pwd.getpwnam(self._user).pw_gid,
            extra_groups=None if self._user is None else [],
            cwd=self.folder,
            env={**os.environ, "PGPASSWORD": PASSWORD},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # not a pipe: the server would hold on to it
            stderr=None,
            check=False,
        )
        assert done.returncode == 0, f"{program} failed; see {self.folder}"


def _exists(user: str) -> bool:
    return any(entry.pw_name == user for entry in pwd.getpwall())


@functools.cache  # one for all modules that take the fixture
def _running() -> Postgres:
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: float(p.parts[-3])
    )
    if not found:
        pytest.skip("PostgreSQL is not installed (Debian's package postgresql)")
    return Postgres(found[-1].parent)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    server = _running()
    yield server
    server.end()
