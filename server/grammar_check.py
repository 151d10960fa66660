"""Finds out before the engine sees it whether a grammar can be honoured: in a process of its own, in limited time.

One process for each API worker, started at the first grammar; one that dies or does not answer is replaced.
"""

import asyncio
import contextlib
import logging
import math
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from remuda.engine.cores import engine_environment
from remuda.engine.errors import QueueFullError
from remuda.engine.grammar import NO_TOKENIZER, Grammar, TokenBytes
from remuda.engine.grammar_frames import HEADER, Verdict, Vocabulary, encode_frame
from remuda.engine.sampling_params import SamplingParams
from remuda.server.errors import ClientGoneError, ServerUnavailableError

logger = logging.getLogger(__name__)

CHECK_TIMEOUT_S: Final = 5.0
# Of the process: Python, llguidance, and a vocabulary of 100,000 tokens.
_START_TIMEOUT_S: Final = 60.0
MAX_WAITING: Final = 64
# In turn with the others.
MAX_WAIT_S: Final = 10.0
# A grammar that took too long may have met a busy machine; sent again and again it would hold up all others.
SLOW_VERDICT_S: Final = 60.0
MAX_VERDICTS: Final = 512
MAX_VERDICT_CHARS: Final = 4_000_000

# Whether the client that asked has closed its connection.
IsGone = Callable[[], Awaitable[bool]]

COMMAND: Final = (sys.executable, "-m", "remuda.engine.grammar_process")


@dataclass(frozen=True)
class _Known:
    """until: of the monotonic clock."""

    verdict: Verdict
    until: float


class GrammarChecker:
    """Lives in one event loop. `load_tokens` gives the bytes of each token, and None without a tokenizer."""

    def __init__(
        self,
        load_tokens: Callable[[], TokenBytes | None],
        *,
        timeout_s: float = CHECK_TIMEOUT_S,
        max_wait_s: float = MAX_WAIT_S,
        command: tuple[str, ...] = COMMAND,
    ) -> None:
        self._load_tokens = load_tokens
        self._timeout_s = timeout_s
        self._max_wait_s = max_wait_s
        self._command = command
        self._process: _CheckProcess | None = None
        self._verdicts: OrderedDict[tuple[str, str], _Known] = OrderedDict()
        self._num_chars = 0
        self._lock = asyncio.Lock()
        self._num_waiting = 0

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return None if self._process is None else self._process.pid

    @property
    def num_verdicts(self) -> int:
        """Grammars that are remembered, with what was found."""
        return len(self._verdicts)

    async def checked(self, params: SamplingParams, is_gone: IsGone | None = None) -> SamplingParams:
        """What the engine is to be sent: converting a grammar would hold up its steps. Raises as `check` does."""
        grammar = await self.check(params.grammar, is_gone)
        return params if grammar is params.grammar else msgspec.structs.replace(params, grammar=grammar)

    async def check(self, grammar: Grammar | None, is_gone: IsGone | None = None) -> Grammar | None:
        """The grammar, as the engine compiles it fastest.

        Raises InvalidRequestError where it cannot be honoured, QueueFullError where too many wait or its turn does
        not come in time, ServerUnavailableError where none can be checked, ClientGoneError by `is_gone`.
        """
        if grammar is None:
            return None
        verdict = self._known(grammar)
        if verdict is None:
            verdict = await self._judge_in_turn(grammar, is_gone)
        if verdict.error is not None:
            raise grammar.error(verdict.error)
        return grammar if verdict.lark is None else Grammar("lark", verdict.lark, grammar.param)

    async def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    async def _judge_in_turn(self, grammar: Grammar, is_gone: IsGone | None) -> Verdict:
        if self._num_waiting >= MAX_WAITING:
            raise QueueFullError(f"{self._num_waiting} grammars wait to be checked, the limit is {MAX_WAITING}")
        self._num_waiting += 1
        try:
            async with asyncio.timeout(self._max_wait_s):
                await self._lock.acquire()
            # A caller that leaves must not leave half an answer in the pipe for the next.
            return await asyncio.shield(asyncio.create_task(self._judge_and_release(grammar, is_gone)))
        except TimeoutError as error:
            message = f"this grammar's turn to be checked did not come within {self._max_wait_s:g} s"
            raise QueueFullError(message) from error
        finally:
            self._num_waiting -= 1

    async def _judge_and_release(self, grammar: Grammar, is_gone: IsGone | None) -> Verdict:
        try:
            verdict = self._known(grammar)
            if verdict is not None:
                return verdict
            if is_gone is not None and await is_gone():
                raise ClientGoneError("the client has closed its connection")
            return await self._judge(grammar)
        finally:
            self._lock.release()

    async def _judge(self, grammar: Grammar) -> Verdict:
        """What is found of a grammar. Remembered where it would be the same again."""
        is_fresh = self._process is None or not self._process.is_alive
        try:
            if is_fresh:
                await self.close()
                tokens = await asyncio.get_running_loop().run_in_executor(None, self._load_tokens)
                if tokens is None:
                    return Verdict(NO_TOKENIZER)
                self._process = _CheckProcess(self._command)
                await self._ask(Vocabulary(tokens), _START_TIMEOUT_S)
        except (TimeoutError, OSError, EOFError) as error:
            await self.close()
            logger.exception("the process that checks grammars does not start")
            message = "the process that checks grammars does not start; try again soon"
            raise ServerUnavailableError(message) from error
        try:
            verdict = await self._ask(grammar, self._timeout_s)
        except TimeoutError:
            await self.close()
            verdict = Verdict(f"takes more than {self._timeout_s:g} s to compile")
            self._remember(grammar, verdict, time.monotonic() + SLOW_VERDICT_S)
            return verdict
        except (OSError, EOFError):
            await self.close()
            if not is_fresh:
                # Others may have ended it before it was asked.
                return await self._judge(grammar)
            logger.warning("compiling a grammar ended the process that checks them")
            verdict = Verdict("cannot be compiled within the limits of this server")
        self._remember(grammar, verdict)
        return verdict

    async def _ask(self, message: msgspec.Struct, timeout_s: float) -> Verdict:
        """Raises TimeoutError, and OSError or EOFError where the process has ended."""
        process = self._process
        if process is None:
            raise EOFError("the server is shutting down")
        answer = asyncio.get_running_loop().run_in_executor(None, process.ask, message)
        done, _ = await asyncio.wait([answer], timeout=timeout_s)
        if not done:
            # Which ends the thread's wait too.
            process.kill()
            await asyncio.wait([answer])
            answer.exception()
            raise TimeoutError
        return answer.result()

    def _known(self, grammar: Grammar) -> Verdict | None:
        """What is remembered of a grammar, and still holds."""
        known = self._verdicts.get(grammar.key)
        if known is None:
            return None
        if known.until < time.monotonic():
            self._forget(grammar.key)
            return None
        self._verdicts.move_to_end(grammar.key)
        return known.verdict

    def _remember(self, grammar: Grammar, verdict: Verdict, until: float = math.inf) -> None:
        self._verdicts[grammar.key] = _Known(verdict, until)
        self._num_chars += _num_chars(grammar.text, verdict)
        while len(self._verdicts) > MAX_VERDICTS or self._num_chars > MAX_VERDICT_CHARS:
            self._forget(next(iter(self._verdicts)))

    def _forget(self, key: tuple[str, str]) -> None:
        self._num_chars -= _num_chars(key[1], self._verdicts.pop(key).verdict)


def _num_chars(text: str, verdict: Verdict) -> int:
    return len(text) + len(verdict.lark or "")


class _CheckProcess:
    """The process, which waits for grammars on its stdin. Blocks; for one thread at a time."""

    def __init__(self, command: tuple[str, ...]) -> None:
        self._process = subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=engine_environment(),
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._in_use = threading.Lock()

    @property
    def is_alive(self) -> bool:
        """It has not ended by itself, nor by anybody else."""
        return self._process.poll() is None

    def ask(self, message: msgspec.Struct) -> Verdict:
        """What the process answers. Raises OSError or EOFError where it has ended."""
        stdin = self._process.stdin
        assert stdin is not None
        with self._in_use:
            stdin.write(encode_frame(message))
            stdin.flush()
            (length,) = HEADER.unpack(self._read(HEADER.size))
            return msgspec.msgpack.decode(self._read(length), type=Verdict)

    def kill(self) -> None:
        """End it, from any thread."""
        self._process.kill()
        self._process.wait()
        # Whoever reads from it has met the end by now.
        with self._in_use:
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()

    def _read(self, size: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(size)
        if len(data) < size:
            raise EOFError("the process has ended")
        return data
