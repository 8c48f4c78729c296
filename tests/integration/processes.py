"""The commands as real processes: started, read line by line, signalled, ended."""

import os
import select
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Self

PATIENCE_S = 30.0  # for a slow machine; what is waited for takes half of it at most otherwise


class Command:
    """`python -m MODULE ARGUMENTS`; killed at the latest when the context ends."""

    def __init__(self, module: str, *arguments: object, env: Mapping[str, str] | None = None):
        self._said = threading.Condition()
        self.out: list[str] = []
        self.err: list[str] = []
        self._open = 2
        self.process = subprocess.Popen(
            [sys.executable, "-W", "default", "-m", module, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
        streams = ((self.process.stdout, self.out), (self.process.stderr, self.err))
        self._readers = [threading.Thread(target=self._read, args=pair) for pair in streams]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: IO[str], lines: list[str]) -> None:
        for line in stream:
            with self._said:
                lines.append(line.rstrip("\n"))
                self._said.notify_all()
        with self._said:
            self._open -= 1
            self._said.notify_all()

    def line(self, wanted: str, count: int = 1, *, printed: bool = False) -> str:
        """Waits for (the count-th of) the lines, of either stream, that hold this text; printed:
        of standard output only."""

        def found() -> list[str]:
            lines = self.out if printed else [*self.out, *self.err]
            return [line for line in lines if wanted in line]

        with self._said:
            self._said.wait_for(lambda: len(found()) >= count or not self._open, PATIENCE_S)
            assert len(found()) >= count, f"no {wanted!r} in {self.out} {self.err}"
            return found()[count - 1]

    def makes(self, path: Path) -> bool:
        """Waits until this file is there; -> whether it is."""
        descriptor = os.pidfd_open(self.process.pid)
        try:
            while not path.exists() and not select.select([descriptor], [], [], 0.05)[0]:
                pass
        finally:
            os.close(descriptor)
        return path.exists()

    def enter(self, line: str) -> None:
        """Types a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def end(self, number: int | None = None) -> int:
        """Sends a signal, if any, and waits; -> the exit status."""
        if number is not None:
            self.process.send_signal(number)
        status = self.process.wait(PATIENCE_S)
        for reader in self._readers:
            reader.join(PATIENCE_S)
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_more: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.end()
        if error is not None:  # what pytest shows of a test that has failed
            print("", *self.out, *self.err, sep="\n")
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


class ServerCommand(Command):
    """`spaces-server run` on loopback, ready to be joined."""

    def __init__(self, folder: Path, *arguments: object):
        super().__init__(
            "spaces_server", "run", "--host", "127.0.0.1", "--port", 0,
            "--data", folder / "data", *arguments,
        )  # fmt: skip
        self.link = self.line("spaces://", printed=True)


def running_with(text: str) -> list[int]:
    """The processes that have this text in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue  # it has ended in between
            if text.encode() in command and state != "Z":
                found.append(int(entry.name))
    return found


def none_left_with(text: str) -> bool:
    """Whether the processes with this text end soon."""
    for pid in running_with(text):
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        select.select([descriptor], [], [], PATIENCE_S)  # readable: ended
        os.close(descriptor)
    return not running_with(text)
