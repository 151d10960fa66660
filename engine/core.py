"""The engine's loop body: `schedule → run → postprocess`. One thread, no I/O, token ids only.

On a GPU it is one step ahead: the host plans and launches step i+1, then reads what step i drew.
"""

from array import array
from collections import deque
from typing import Final

import numpy as np

from remuda.engine.config import EngineInfo
from remuda.engine.errors import InvalidRequestError
from remuda.engine.grammar_compiler import GrammarCompiler
from remuda.engine.guide import Guide
from remuda.engine.heap import TokensLetGo
from remuda.engine.runner import PendingStep, Runner, StepResult
from remuda.engine.sampling_params import SamplingParams
from remuda.engine.scheduler import Plan, PrefillChunk, Scheduler
from remuda.engine.sequence import Request, Sequence, mix64
from remuda.engine.state_pool import StatePool
from remuda.engine.wire import FinishReason, SequenceOutput, TokenLogprobs

# Steps without a prompt after which the memory that prompts took goes back.
_TRIM_AFTER_STEPS: Final = 16


class EngineCore:
    """Requests in, token ids out, one step at a time. Built by `start.build_core`.

    depth: steps that may be under way when `step` returns, 0 or 1. A sequence that a stop token ends has
    then a row in the step under way; what that draws for it is dropped. A step that guides a sequence by a
    grammar is read at once: what may come next depends on what came. grammars: None where none is served.
    """

    def __init__(
        self,
        info: EngineInfo,
        scheduler: Scheduler,
        runner: Runner,
        pool: StatePool,
        *,
        seed: int,
        depth: int,
        grammars: GrammarCompiler | None = None,
    ) -> None:
        self.info = info
        self._scheduler = scheduler
        self.runner = runner
        self._pool = pool
        self._seed = seed
        self._depth = depth
        self.grammars = grammars
        self._under_way: deque[tuple[Plan, PendingStep]] = deque()
        # What a step that failed owes to those who were in it.
        self._failures: list[SequenceOutput] = []
        self._num_added = 0
        self._let_go = TokensLetGo()
        self._num_steps_at_rest = 0

    @property
    def has_work(self) -> bool:
        """A request waits or runs, a step is under way, or a failure is still to be told."""
        return self._scheduler.has_work or bool(self._under_way) or bool(self._failures)

    @property
    def device_bytes(self) -> int | None:
        """What this process holds of the GPU; None on a CPU."""
        return self._pool.device_bytes

    @property
    def num_free_slots(self) -> int:
        """Slots that no sequence holds."""
        return self._pool.num_free

    @property
    def num_waiting(self) -> int:
        """Requests without a slot."""
        return self._scheduler.num_waiting

    @property
    def num_running(self) -> int:
        """Requests with slots."""
        return self._scheduler.num_running

    def holds(self, request_id: str) -> bool:
        """The request waits or runs."""
        return self._scheduler.get(request_id) is not None

    def add(self, request_id: str, prompt: "list[int] | array[int]", params: SamplingParams) -> None:
        """Queue `params.n` continuations of the token ids `prompt`.

        Raises InvalidRequestError where the request cannot be honoured by this model and pool, and
        QueueFullError where too many wait; in both cases nothing is kept of it.
        """
        if self._scheduler.get(request_id) is not None:
            raise InvalidRequestError(f"request id {request_id!r} is in use")
        vocab_size = self.info.vocab_size
        if not prompt:
            raise InvalidRequestError("the prompt has no tokens", param="prompt")
        for token in (min(prompt), max(prompt)):
            if not 0 <= token < vocab_size:
                raise InvalidRequestError(
                    f"prompt: token id {token} is outside the vocabulary [0, {vocab_size})", param="prompt"
                )
        if params.n > self._pool.num_slots:
            raise InvalidRequestError(
                f"n is {params.n}, but this server has {self._pool.num_slots} state slots", param="n"
            )
        params.check_vocabulary(vocab_size)
        seed = mix64(self._seed ^ mix64(self._num_added))
        ids = np.array(prompt, dtype=np.int32)
        request = Request.create(request_id, ids, params, seed, self.info.eos_token_ids)
        self._guide(request)
        self._scheduler.add(request)
        self._num_added += 1

    def _guide(self, request: Request) -> None:
        """Set each sequence to the beginning of the request's grammar, if any. Raises InvalidRequestError."""
        grammar, min_tokens = request.params.grammar, request.params.min_tokens
        if grammar is None:
            return
        if self.grammars is None:
            raise grammar.error("this engine serves no grammars")
        for sequence in request.sequences:
            matcher = self.grammars.matcher(grammar)
            sequence.guide = Guide(matcher, self.info.vocab_size, request.stop_ids, min_tokens)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """End a request, or one sequence of it, and free what it holds. Unknown ids are no error."""
        if self._failures:
            self._failures = [
                o for o in self._failures if o.request_id != request_id or index not in (None, o.index)
            ]
        request = self._scheduler.get(request_id)
        if request is None:
            return
        for sequence in list(request.sequences):
            if index is None or sequence.index == index:
                self._scheduler.finish(sequence)
        if request.is_finished:
            self._drop_prompt(request)

    def _drop_prompt(self, request: Request) -> None:
        self._let_go.note(request.drop_prompt())

    def step(self) -> list[SequenceOutput]:
        """Advance everybody by one step, and say what a step brought to whom: this one, or the one before.

        Where both are read at once, because a grammar joins, a sequence appears twice, in the order of its tokens.

        Where the runner raises, everybody in a step under way ends with an error, which the next call tells.
        """
        if self._failures:
            failures, self._failures = self._failures, []
            return failures
        plan = self._scheduler.schedule()
        outputs: list[SequenceOutput] = []
        try:
            self._advance(plan, outputs)
        except BaseException:
            self._failures = outputs
            self._abandon([plan, *(launched for launched, _ in self._under_way)])
            self._under_way.clear()
            raise
        return outputs

    def _advance(self, plan: Plan, outputs: list[SequenceOutput]) -> None:
        """Launch the plan, read what is under way beyond the depth, and append what that brought."""
        if not plan.is_empty:
            self._under_way.append((plan, self.runner.launch(plan)))
            for chunk in plan.prefill:
                if chunk.is_last:
                    self._drop_prompt(chunk.request)
            self._num_steps_at_rest = 0 if plan.prefill else self._num_steps_at_rest + 1
            if self._num_steps_at_rest == _TRIM_AFTER_STEPS:
                self._let_go.rest()
        max_under_way = 0 if plan.is_empty or plan.is_guided else self._depth
        while len(self._under_way) > max_under_way:
            launched, pending = self._under_way[0]
            result = pending.read()
            self._under_way.popleft()
            outputs += self._postprocess(launched, result)

    def _abandon(self, plans: list[Plan]) -> None:
        """End all who were in these steps: their states, or their tokens, are lost."""
        for plan in plans:
            lost = [*plan.decode, *(s for chunk in plan.prefill for s in chunk.request.sequences)]
            for sequence in lost:
                if not sequence.is_finished:
                    self._failures.append(self._fail(sequence, "a step of the engine failed"))
            for chunk in plan.prefill:
                self._drop_prompt(chunk.request)

    def _postprocess(self, plan: Plan, result: StepResult) -> list[SequenceOutput]:
        outputs = []
        for chunk in plan.prefill:
            if chunk.is_last and chunk.request.params.max_tokens == 0:
                live = [s for s in chunk.request.sequences if not s.is_finished]
                outputs += [self._finish_unsampled(chunk, s) for s in live]
        is_plain = result.logprobs is None
        for row, (sequence, token) in enumerate(zip(result.sequences, result.tokens, strict=True)):
            if sequence.is_finished:
                continue
            request = sequence.request
            num_tokens = sequence.num_tokens = sequence.num_tokens + 1
            # The common case, which a full batch repeats a thousand times a step.
            if (
                is_plain
                and 1 < num_tokens < request.params.max_tokens
                and token not in request.stop_ids
                and token >= 0
                and sequence.guide is None
            ):
                outputs.append(SequenceOutput(request.request_id, sequence.index, [token]))
            else:
                logprobs = None if result.logprobs is None else result.logprobs[row]
                outputs.append(self._accept(sequence, token, logprobs))
        return outputs

    def _finish_unsampled(self, chunk: PrefillChunk, sequence: Sequence) -> SequenceOutput:
        if not chunk.request.is_healthy:
            return self._fail_unhealthy(sequence, 0)
        self._scheduler.finish(sequence)
        output = SequenceOutput(sequence.request.request_id, sequence.index, [], finish_reason="length")
        output.embedding = chunk.request.embedding
        self._attach_first(output, chunk.request)
        return output

    def _accept(self, sequence: Sequence, token: int, logprobs: TokenLogprobs | None) -> SequenceOutput:
        """Take a drawn token into the sequence, or end it where its state has gone bad."""
        request = sequence.request
        if token < 0 or not request.is_healthy:
            return self._fail_unhealthy(sequence, sequence.num_tokens - 1)
        if sequence.guide is not None and (output := self._follow(sequence, sequence.guide, token)) is not None:
            return output
        reason, stop_token = self._finish_reason(sequence, token)
        output = SequenceOutput(
            request.request_id,
            sequence.index,
            [token],
            None if logprobs is None else [logprobs],
            finish_reason=reason,
            stop_token=stop_token,
        )
        if sequence.num_tokens == 1:
            self._attach_first(output, request)
        if reason is not None:
            self._scheduler.finish(sequence)
        return output

    def _follow(self, sequence: Sequence, guide: Guide, token: int) -> SequenceOutput | None:
        """Go on in the grammar; what ends the sequence where the token that was drawn does not count."""
        if guide.error is None and guide.is_finished:
            self._scheduler.finish(sequence)
            output = SequenceOutput(sequence.request.request_id, sequence.index, [], finish_reason="stop")
            if sequence.num_tokens == 1:
                self._attach_first(output, sequence.request)
            return output
        if guide.error is None and token not in sequence.request.stop_ids:
            guide.accept(token)
        if guide.error is None:
            return None
        output = self._fail(sequence, guide.error)
        output.is_grammar_error = True
        return output

    def _fail_unhealthy(self, sequence: Sequence, num_tokens: int) -> SequenceOutput:
        return self._fail(sequence, f"the model gave logits that are not finite after {num_tokens} new tokens")

    def _fail(self, sequence: Sequence, error: str) -> SequenceOutput:
        self._scheduler.finish(sequence)
        return SequenceOutput(sequence.request.request_id, sequence.index, [], finish_reason="error", error=error)

    @staticmethod
    def _finish_reason(sequence: Sequence, token: int) -> tuple[FinishReason | None, int | None]:
        if token in sequence.request.stop_ids:
            return "stop", token
        if sequence.guide is not None and sequence.guide.is_finished:
            return "stop", None
        return ("length", None) if sequence.num_tokens >= sequence.request.params.max_tokens else (None, None)

    @staticmethod
    def _attach_first(output: SequenceOutput, request: Request) -> None:
        """What comes once, with the first output of sequence 0."""
        if output.index == 0:
            output.queued_s = request.queued_s
        if request.params.prompt_logprobs is not None and output.index == 0:
            output.prompt_logprobs, request.prompt_logprobs = request.prompt_logprobs, []
