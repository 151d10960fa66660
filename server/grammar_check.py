"""Finds out before the engine sees it whether a grammar can be honoured: in a process of its own, in limited time.

One process for each API worker, started at the first grammar; one that dies or does not answer is replaced.
"""

import asyncio
import contextlib
import logging
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import msgspec

from remuda.engine.cores import engine_environment
from remuda.engine.errors import QueueFullError
from remuda.engine.grammar import NO_TOKENIZER, Grammar, TokenBytes
from remuda.engine.grammar_frames import HEADER, Verdict, Vocabulary, encode_frame
from remuda.engine.sampling_params import SamplingParams

logger = logging.getLogger(__name__)

CHECK_TIMEOUT_S: Final = 5.0
# Of the process: Python, llguidance, and a vocabulary of 100,000 tokens.
_START_TIMEOUT_S: Final = 60.0
MAX_WAITING: Final = 64
MAX_VERDICTS: Final = 512
MAX_VERDICT_CHARS: Final = 4_000_000

COMMAND: Final = (sys.executable, "-m", "remuda.engine.grammar_process")


class GrammarChecker:
    """Lives in one event loop. `load_tokens` gives the bytes of each token, and None without a tokenizer."""

    def __init__(
        self,
        load_tokens: Callable[[], TokenBytes | None],
        *,
        timeout_s: float = CHECK_TIMEOUT_S,
        command: tuple[str, ...] = COMMAND,
    ) -> None:
        self._load_tokens = load_tokens
        self._timeout_s = timeout_s
        self._command = command
        self._process: _CheckProcess | None = None
        self._verdicts: OrderedDict[tuple[str, str], Verdict] = OrderedDict()
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

    async def checked(self, params: SamplingParams) -> SamplingParams:
        """What the engine is to be sent: converting a grammar would hold up its steps. Raises as `check` does."""
        grammar = await self.check(params.grammar)
        return params if grammar is params.grammar else msgspec.structs.replace(params, grammar=grammar)

    async def check(self, grammar: Grammar | None) -> Grammar | None:
        """The grammar, as the engine compiles it fastest.

        Raises InvalidRequestError where it cannot be honoured, QueueFullError where too many wait.
        """
        if grammar is None:
            return None
        if grammar.key in self._verdicts:
            self._verdicts.move_to_end(grammar.key)
            verdict = self._verdicts[grammar.key]
        else:
            if self._num_waiting >= MAX_WAITING:
                message = f"{self._num_waiting} grammars wait to be checked, the limit is {MAX_WAITING}"
                raise QueueFullError(message)
            self._num_waiting += 1
            # A caller that leaves must not leave half an answer in the pipe for the next.
            verdict = await asyncio.shield(asyncio.create_task(self._judge_in_turn(grammar)))
        if verdict.error is not None:
            raise grammar.error(verdict.error)
        return grammar if verdict.lark is None else Grammar("lark", verdict.lark, grammar.param)

    async def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    async def _judge_in_turn(self, grammar: Grammar) -> Verdict:
        try:
            async with self._lock:
                if grammar.key in self._verdicts:
                    return self._verdicts[grammar.key]
                return await self._judge(grammar)
        finally:
            self._num_waiting -= 1

    async def _judge(self, grammar: Grammar) -> Verdict:
        """What is found of a grammar. Remembered where it would be the same again."""
        try:
            if self._process is None or not self._process.is_alive:
                await self.close()
                tokens = await asyncio.get_running_loop().run_in_executor(None, self._load_tokens)
                if tokens is None:
                    return Verdict(NO_TOKENIZER)
                self._process = _CheckProcess(self._command)
                await self._ask(Vocabulary(tokens), _START_TIMEOUT_S)
        except (TimeoutError, OSError, EOFError):
            await self.close()
            logger.exception("the process that checks grammars does not start")
            return Verdict("cannot be checked by this server")
        try:
            verdict = await self._ask(grammar, self._timeout_s)
        except TimeoutError:
            # The machine may have been busy.
            await self.close()
            return Verdict(f"takes more than {self._timeout_s:g} s to compile")
        except (OSError, EOFError):
            await self.close()
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

    def _remember(self, grammar: Grammar, verdict: Verdict) -> None:
        self._verdicts[grammar.key] = verdict
        self._num_chars += _num_chars(grammar.text, verdict)
        while len(self._verdicts) > MAX_VERDICTS or self._num_chars > MAX_VERDICT_CHARS:
            (_, text), old = self._verdicts.popitem(last=False)
            self._num_chars -= _num_chars(text, old)


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
