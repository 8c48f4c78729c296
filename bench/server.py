"""This project's server under measurement: a real process with real flags, on a core of its own."""

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.process import Process, ProcessError
from protocol.link import Link

STARTUP_S = 30.0
ANSWER_S = 5.0
LOOK_AGAIN_S = 0.005


class MeasuredServer:
    """A fresh server with a database of its own.  link: how it is reached."""

    def __init__(
        self,
        stack: ExitStack,
        core: int | None,
        *flags: str,
        fill: Callable[[Path], None] | None = None,
    ) -> None:
        """flags: of `spaces-server run`, beside those that every measurement needs.  fill: puts
        into its data folder what is to be there when it starts.  It ends, at the latest, with the
        stack.  Raises ProcessError."""
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spaces-bench-")))
        if fill is not None:
            fill(folder)
        self._stats = folder / "stats.json"
        self.process = Process(
            stack,
            [
                *(sys.executable, "-m", "spaces_server", "run", "--port", "0"),
                *("--data", str(folder), "--public-host", "127.0.0.1"),
                *("--no-rate-limits", "--no-qr", "--stats", str(self._stats), *flags),
            ],
            core=core,
        )
        self.link = Link.parse(self.process.line(STARTUP_S))

    def stats(self) -> dict[str, Any]:
        """Its figures since the start, but `tick_lateness_ms`: that is of the ticks since it was
        last asked.  Raises ProcessError."""
        os.truncate(self._stats, 0)
        os.kill(self.process.pid, signal.SIGUSR1)
        until = time.monotonic() + ANSWER_S
        while time.monotonic() < until:
            try:
                figures: dict[str, Any] = json.loads(self._stats.read_text())
            except ValueError:  # not all of it is there
                time.sleep(LOOK_AGAIN_S)
            else:
                return figures
        raise ProcessError(f"the server did not give its figures within {ANSWER_S:g} s")
