"""The process that writes the store is killed, again and again, in the middle of its work.

Afterwards the store holds the first commits, whole, for some number that is not below what was
acknowledged: nothing that was confirmed is lost, and nothing is there by half or out of order.

Run as a program this is the writer, or rather what writers are forked from, so that none of them
has to import everything again.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from spaces_server.records import (
    AccountRecord,
    BlockRecord,
    Change,
    Commit,
    DeviceRecord,
    Drop,
    FollowRecord,
    MessageRecord,
    NotePartRecord,
    Put,
    SettingRecord,
    StageRecord,
    StoreReply,
)
from spaces_server.store.database import Database
from spaces_server.store.worker import StoreWorker

PEOPLE = 20
MOST_AT_ONCE = 8
MOST_WRITTEN = 20  # acknowledgements before a kill is decided on,
LONGEST_S = 0.01  # and then the time until it happens


def commit(seed: int, number: int) -> Commit:
    """One of the stream of a seed, numbered from 1 on: changes of many kinds.  Each says its
    number, so that the store itself says how far it got."""
    chance = random.Random(seed << 32 | number)
    who, whom = chance.randrange(PEOPLE), chance.randrange(PEOPLE)
    possible: list[Change] = [
        Put(
            AccountRecord(
                id=who, handle=f"h{who}", skeleton=f"h{who}", name=f"after {number}",
                role="person", access=True, invited_by=whom, since_s=number,
            )
        ),
        Put(DeviceRecord(key=bytes([who]) * 32, account=who, number=1, label="x", added_s=number)),
        Put(FollowRecord(follower=who, followed=whom, since_s=number)),
        Put(BlockRecord(blocker=who, blocked=whom)),
        Put(
            StageRecord(
                space=f"s{whom}", account=who, role="speaker", muted=True, held=False, order=number
            )
        ),
        Put(
            MessageRecord(
                id=number % 50, sender=who, recipient=whom, at_s=number, text="t" * (number % 900),
                space="", invite="",
            )
        ),
        Put(NotePartRecord(post=who, part=number % 3, data=chance.randbytes(2_000))),
        Drop(BlockRecord, {"blocker": who}),
        Drop(StageRecord, {"space": f"s{who}"}),
        Drop(FollowRecord, {"followed": whom}),
        Drop(MessageRecord, {"sender": who}),
        Drop(NotePartRecord, {"post": whom}),
    ]  # fmt: skip
    changes = chance.sample(possible, chance.randint(2, 6))
    half = len(changes) // 2
    reached = Put(SettingRecord(name="reached", value=str(number)))
    return Commit(number, (*changes[:half], reached, *changes[half:]))


def reached(database: Database) -> int:
    return next((int(s.value) for s in database.load().of(SettingRecord)), 0)


# -- the writer ------------------------------------------------------------------------------------


def write(url: str, seed: int) -> None:
    """Goes on with the stream where the store stands, a few commits at a time, for ever."""
    database = Database(url)
    database.upgrade()
    number = reached(database)
    chance = random.Random(seed + number)

    room = threading.Semaphore(3 * MOST_AT_ONCE)  # so that there is always more to do

    def deliver(replies: list[StoreReply]) -> None:
        for reply in replies:
            os.write(1, b"%d\n" % reply.ticket)
        room.release(len(replies))

    def fail(error: Exception) -> None:
        os.write(2, f"{error!r}\n".encode())
        os._exit(1)

    worker = StoreWorker(database, deliver, fail)
    while True:
        count = chance.randint(1, MOST_AT_ONCE)
        for _ in range(count):
            room.acquire()
        worker.submit([commit(seed, number + n) for n in range(1, count + 1)])
        number += count


def fork_writers() -> None:
    """One for each line of input; says which process it is, and when it is dead."""
    for line in sys.stdin:
        url, seed = line.split()
        pid = os.fork()
        if not pid:
            write(url, int(seed))
        os.write(1, b"started %d\n" % pid)
        os.waitpid(pid, 0)
        os.write(1, b"dead\n")


# -- who kills it ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "kills"), [("sqlite", 50), ("postgres", 10)])
def test_nothing_confirmed_is_lost_and_nothing_is_done_by_half(
    kind: str, kills: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "sqlite":
        url = f"sqlite:///{tmp_path}/store.db"
    else:
        server: Postgres = request.getfixturevalue("postgres")
        url = server.emptied()
    reader = engine_for(url)
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")  # shown if it fails; the moments of the kills are never the same again
    chance = random.Random(seed)
    model, known, confirmed = empty(), 0, 0
    with subprocess.Popen(
        [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writers:
        assert writers.stdin is not None
        assert writers.stdout is not None
        for _ in range(kills):
            writers.stdin.write(f"{url} {seed}\n")
            writers.stdin.flush()
            pid, left = 0, chance.randrange(MOST_WRITTEN)
            for line in writers.stdout:
                if line == "dead\n":
                    break
                if line.startswith("started"):
                    pid = int(line.split()[1])
                else:
                    confirmed = int(line)
                    left -= 1
                if pid and left == 0:
                    time.sleep(chance.uniform(0.0, LONGEST_S))  # to be anywhere in its work
                    os.kill(pid, signal.SIGKILL)
            database = Database(url)  # which waits, if a PostgreSQL still works for the dead
            database.upgrade()
            now = reached(database)
            database.close()
            assert now >= confirmed
            for number in range(known + 1, now + 1):
                for change in commit(seed, number).changes:
                    apply(model, change)
            known = now
            assert everything(reader) == model
        writers.stdin.close()
    assert known > kills  # they did write
    reader.dispose()


if __name__ == "__main__":
    fork_writers()
else:
    # What only the tests need: a writer has no use for it.
    from tests.integration.postgres import Postgres
    from tests.integration.postgres import postgres as postgres  # a fixture
    from tests.unit.test_store import apply, empty, engine_for, everything
