"""`remuda serve` as a process: its address, its log, its children, its end. Knows nothing of requests."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from typing import Final

import psutil

_START_S: Final = 300.0
_STOP_S: Final = 60.0


class ServerProcess:
    """A server on a free port, by the arguments of `serve`; ready once constructed, until `stop`."""

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._whole_log: str | None = None
        command = [sys.executable, "-c", "from remuda.server.cli import main; main()", "serve", "--port", "0"]
        began = time.monotonic()
        self.process = subprocess.Popen(
            [*command, *arguments],
            stderr=self._log,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
        )
        while (found := re.search(r"ready at (https?://(\S+):(\d+))", self.log)) is None:
            assert self.process.poll() is None, self.log
            assert time.monotonic() - began < _START_S, self.log
            time.sleep(0.05)
        self.start_s = time.monotonic() - began
        self.url, self.host, self.port = found[1], found[2], int(found[3])

    @property
    def log(self) -> str:
        """What it has written to stderr."""
        if self._whole_log is not None:
            return self._whole_log
        self._log.seek(0)
        return self._log.read()

    @property
    def engine(self) -> psutil.Process:
        """The engine process."""
        (found,) = self._children_running("remuda.engine.process")
        return found

    @property
    def workers(self) -> list[psutil.Process]:
        """The API workers."""
        return self._children_running("remuda.server.worker")

    @property
    def http_processes(self) -> list[psutil.Process]:
        """All processes of the server but the engine."""
        root, engine = psutil.Process(self.process.pid), self.engine
        return [root, *(process for process in root.children(recursive=True) if process != engine)]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, where it has not ended; returns the exit code."""
        if self.process.poll() is None:
            os.kill(self.process.pid, number)
        code = self.process.wait(_STOP_S)
        if self._whole_log is None:
            self._whole_log = self.log
            self._log.close()
        return code

    def _children_running(self, module: str) -> list[psutil.Process]:
        found = []
        for child in psutil.Process(self.process.pid).children():
            try:
                found += [child] if module in child.cmdline() else []
            except psutil.Error:
                # A zombie, until the parent looks.
                continue
        return found
