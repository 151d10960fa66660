"""`remuda chat` in a pseudo-terminal of its own, typed at and read from by tests."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Self

import psutil

_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
_PADDING = re.compile(r" +\n")


def _take_terminal() -> None:
    """So that a Ctrl-C typed into it becomes a signal; whoever runs the tests in the background ignores that."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class PtyChat:
    """Started on construction; `close` ends it. output: all that it has written, decoded."""

    def __init__(self, url: str, state: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
        code = "from remuda.server.cli import main; main()"
        self.output = ""
        self._seen = 0
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        base = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "chat", "--url", url, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_take_terminal,
            env={**base, "TERM": "xterm-256color", "XDG_STATE_HOME": str(state), **(environment or {})},
        )
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)
        os.close(self._master)

    def type(self, text: str) -> None:
        """Keys; surrogates stand for bytes that are no text."""
        os.write(self._master, text.encode(errors="surrogateescape"))

    def is_waiting(self) -> bool:
        """It sleeps, and goes on sleeping: for the next key, where all that was typed is shown."""
        process = psutil.Process(self.process.pid)
        for _ in range(5):
            if process.status() != psutil.STATUS_SLEEPING:
                return False
            time.sleep(0.02)
        return True

    def ask(self, line: str) -> str:
        """Type a line at the prompt; what is shown until the next prompt."""
        self.type(line + "\n")
        return self.until("\n> ")

    def until(self, text: str) -> str:
        """Read on until `text` is shown; returns what came since the last call, without sequences."""
        deadline = time.monotonic() + 60
        while text not in (shown := self.shown()[self._seen :]):
            assert time.monotonic() < deadline, (text, self.output)
            assert self._read(), (text, self.output)
        end = shown.index(text) + len(text)
        self._seen += end
        return _PADDING.sub("\n", shown[:end])

    def exit_code(self) -> int:
        """Read to the end; the exit code."""
        while self._read():
            pass
        return self.process.wait(30)

    def shown(self) -> str:
        """The output without sequences that colour, move or erase."""
        return _SEQUENCE.sub("", self.output)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], 60)
        if not ready:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:
            # Linux: nobody has the other end open any more.
            return False
        self.output += data.decode(errors="replace")
        return bool(data)
