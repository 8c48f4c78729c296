"""A program started as a child: its lines waited for, its log read, its end seen to."""

import contextlib
import json
import queue
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

ENDING_S = 20.0
LOOK_AGAIN_S = 0.05


class ChildError(Exception):
    """A program does not do what is waited for; one line that says why."""


class Child:
    """A child whose lines of standard output can be waited for."""

    def __init__(self, stack: ExitStack, name: str, *arguments: str, **options: Any) -> None:
        """Starts `python -m ARGUMENTS --OPTIONS`; it ends, at the latest, with the stack."""
        self.name = name
        self._errors = stack.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115 (the stack is its context)
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments, *_flags(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,  # Ctrl-C is ours to pass on
        )
        self._cpu_s: float | None = None
        stack.callback(self.stop)
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout:
            for line in self._process.stdout:
                self._lines.put(line.strip())
        self._lines.put(None)

    def tell(self, line: str) -> None:
        """Writes a line to its standard input."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has failed, and says so itself
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.close()

    def line(self, timeout_s: float) -> str | None:
        """The next line; None at the end.  Raises ChildError if none comes in time."""
        try:
            return self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise ChildError(f"{self.name} says nothing for {timeout_s:.0f} s") from None

    def event(self, wanted: str, timeout_s: float) -> dict[str, Any]:
        """The next JSON line that is this event."""
        while (line := self.line(timeout_s)) is not None:
            event: dict[str, Any] = json.loads(line)
            if event["event"] == wanted:
                return event
        raise ChildError(f"{self.name} failed: {self.last_error()}")

    def last_error(self) -> str:
        self._errors.seek(0)
        # The server's log is there as well.
        errors = [line.strip() for line in self._errors if re.match(r"[\w.]*Error: ", line)]
        return errors[-1].removeprefix("Error: ") if errors else "it ended without a word"

    def logged(self, pattern: str, timeout_s: float) -> re.Match[str]:
        """What the log says that matches.  Raises ChildError if it does not in time."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            self._errors.seek(0)
            found = re.search(pattern, self._errors.read())
            if found is not None:
                return found
            self.check()
            time.sleep(LOOK_AGAIN_S)
        raise ChildError(f"{self.name} does not say {pattern!r}")

    def kill(self) -> None:
        """Ends it without a warning, as a power failure would."""
        self._process.kill()
        self._process.wait()

    def check(self) -> None:
        """Raises ChildError if it has ended."""
        if self._process.poll() is not None:
            raise ChildError(f"{self.name} failed: {self.last_error()}")

    def stop(self) -> float:
        """Ends it; -> the CPU time it took, s, as the operating system counts it."""
        if self._cpu_s is None:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(ENDING_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._reader.join()  # its lines are all there now
            if self._process.stdin is not None:
                self._process.stdin.close()
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            self._cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return self._cpu_s


def _flags(options: dict[str, Any]) -> Iterator[str]:
    """stage_size=5 -> --stage-size 5; qr=True -> --qr; qr=False -> --no-qr; None is left out."""
    for name, value in options.items():
        flag = name.replace("_", "-")
        if value is False:
            yield f"--no-{flag}"
        elif value is True:
            yield f"--{flag}"
        elif value is not None:
            yield from (f"--{flag}", str(value))
