"""The process that checks grammars: bad ones, ones that kill or hang it, and what comes after them."""

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import psutil
import pytest

from remuda.engine.errors import InvalidRequestError, QueueFullError
from remuda.engine.grammar import Grammar
from remuda.engine.sampling_params import SamplingParams
from remuda.server import grammar_check
from remuda.server.errors import ClientGoneError, ServerUnavailableError
from remuda.server.grammar_check import COMMAND, GrammarChecker

TOKENS = [bytes([i]) for i in range(256)]
GOOD, OTHER = Grammar("regex", "[a-z]+"), Grammar("regex", "[0-9]+")
BAD = Grammar("regex", "(?=a)b", "guided_regex")
# Answers like the real one, but ends at a grammar with "die" in it, and never answers one with "hang" in it.
SPOILED = """
import sys, time
from remuda.engine import grammar_process
judge = grammar_process._judge
def spoiled(compiler, grammar):
    if "die" in grammar.text:
        sys.stdout.flush(); import os; os.abort()
    while "hang" in grammar.text:
        time.sleep(1)
    return judge(compiler, grammar)
grammar_process._judge = spoiled
grammar_process.main()
"""


def run(work: Callable[[GrammarChecker], Coroutine[Any, Any, None]], **options: Any) -> None:
    """Run `work` with a checker; afterwards its process has ended."""

    async def main() -> int | None:
        checker = GrammarChecker(lambda: TOKENS, **options)
        await work(checker)
        pid = checker.pid
        await checker.close()
        return pid

    pid = asyncio.run(main())
    assert pid is None or not psutil.pid_exists(pid)


async def refused(checker: GrammarChecker, grammar: Grammar) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        await checker.check(grammar)
    assert caught.value.param == grammar.param
    assert str(caught.value).startswith(f"{grammar.param}: ")
    return str(caught.value)


def test_good_and_bad_in_turn_by_one_process() -> None:
    async def work(checker: GrammarChecker) -> None:
        await checker.check(None)
        assert checker.pid is None
        await checker.check(GOOD)
        pid = checker.pid
        for _ in range(2):
            assert "look-around" in await refused(checker, BAD)
            await checker.check(OTHER)
        # The same fault, asked for by another field.
        assert "guided_regex" not in await refused(checker, Grammar("regex", BAD.text, "structured_outputs"))
        assert checker.pid == pid
        assert checker.num_verdicts == 3

    run(work)


def test_the_engine_is_sent_lark_and_no_gbnf() -> None:
    async def work(checker: GrammarChecker) -> None:
        params = SamplingParams(grammar=Grammar("grammar", 'root ::= "a" | "b" root\n', "guided_grammar"))
        # Judged, and then remembered.
        for _ in range(2):
            sent = (await checker.checked(params)).grammar
            assert sent is not None
            assert (sent.kind, sent.param) == ("lark", "guided_grammar")
            assert "::=" not in sent.text
            await checker.check(sent)
        assert "not a GBNF" in await refused(checker, Grammar("grammar", "root ::= (\n"))
        regex = SamplingParams(grammar=GOOD)
        assert await checker.checked(regex) is regex

    run(work)


@pytest.mark.parametrize("kind", ["die", "hang"])
def test_a_grammar_that_kills_or_hangs_fails_alone(kind: str) -> None:
    async def work(checker: GrammarChecker) -> None:
        await checker.check(GOOD)
        first = checker.pid
        both = await asyncio.gather(
            checker.check(Grammar("regex", kind)), checker.check(OTHER), return_exceptions=True
        )
        assert isinstance(both[0], InvalidRequestError)
        assert both[1] == OTHER
        assert checker.pid != first
        assert not psutil.pid_exists(first or 0)
        assert checker.num_verdicts == 3
        # It is remembered, and no process is spent on it again.
        last = checker.pid
        await refused(checker, Grammar("regex", kind))
        assert checker.pid == last
        await checker.check(GOOD)

    run(work, command=(sys.executable, "-c", SPOILED), timeout_s=2)


def test_a_process_that_somebody_ended_is_replaced() -> None:
    async def work(checker: GrammarChecker) -> None:
        await checker.check(GOOD)
        first = checker.pid
        assert first is not None
        psutil.Process(first).kill()
        os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
        await checker.check(OTHER)
        assert checker.pid != first

    run(work)


def test_a_caller_that_leaves_does_not_disturb_the_next() -> None:
    async def work(checker: GrammarChecker) -> None:
        await checker.check(GOOD)
        leaver = asyncio.create_task(checker.check(BAD))
        await asyncio.sleep(0)
        leaver.cancel()
        await checker.check(OTHER)
        await refused(checker, BAD)
        with pytest.raises(asyncio.CancelledError):
            await leaver

    run(work)


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_check, "MAX_VERDICTS", 3)
    monkeypatch.setattr(grammar_check, "MAX_WAITING", 2)

    async def work(checker: GrammarChecker) -> None:
        for i in range(9):
            await checker.check(Grammar("regex", f"a{i}"))
        assert checker.num_verdicts == 3
        waiting = [checker.check(Grammar("regex", f"b{i}")) for i in range(4)]
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(result) for result in results] == [Grammar, Grammar, QueueFullError, QueueFullError]
        monkeypatch.setattr(grammar_check, "MAX_VERDICT_CHARS", 6)
        await checker.check(Grammar("regex", "c00"))
        await checker.check(Grammar("regex", "c1"))
        assert checker.num_verdicts == 2

    run(work)


def test_one_that_took_too_long_may_be_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_check, "SLOW_VERDICT_S", 0.0)

    async def work(checker: GrammarChecker) -> None:
        await checker.check(GOOD)
        first = checker.pid
        await refused(checker, Grammar("regex", "hang"))
        await checker.check(OTHER)
        second = checker.pid
        await refused(checker, Grammar("regex", "hang"))
        await checker.check(Grammar("regex", "[0-9]"))
        assert len({first, second, checker.pid}) == 3

    run(work, command=(sys.executable, "-c", SPOILED), timeout_s=0.5)


def test_waiting_ends_in_time_and_those_who_left_are_passed_over() -> None:
    async def has_left() -> bool:
        return True

    async def work(checker: GrammarChecker) -> None:
        await checker.check(GOOD)
        hanging = asyncio.create_task(checker.check(Grammar("regex", "hang")))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError, match="turn"):
            await checker.check(OTHER)
        await asyncio.wait([hanging])
        assert isinstance(hanging.exception(), InvalidRequestError)
        with pytest.raises(ClientGoneError):
            await checker.check(OTHER, has_left)
        assert checker.num_verdicts == 2
        assert await checker.check(OTHER) == OTHER

    run(work, command=(sys.executable, "-c", SPOILED), timeout_s=1, max_wait_s=0.1)


def test_a_process_that_does_not_start() -> None:
    async def work(checker: GrammarChecker) -> None:
        with pytest.raises(ServerUnavailableError, match="does not start"):
            await checker.check(GOOD)
        assert checker.pid is None

    run(work, command=(sys.executable, "-c", "raise SystemExit(3)"))


def test_memory_is_limited() -> None:
    """A process that would take more than its share ends, and says so of the grammar."""

    async def work(checker: GrammarChecker) -> None:
        await checker.check(GOOD)
        assert checker.pid is not None
        soft, _ = psutil.Process(checker.pid).rlimit(psutil.RLIMIT_AS)
        assert soft == 2 * 2**30

    run(work, command=COMMAND)


def test_without_a_tokenizer() -> None:
    async def main() -> None:
        checker = GrammarChecker(lambda: None)
        assert "no tokenizer" in await refused(checker, GOOD)

    asyncio.run(main())
