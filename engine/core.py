"""The engine's loop body: `schedule → run → postprocess`. One thread, no I/O, token ids only."""

import numpy as np

from remuda.engine.config import EngineInfo
from remuda.engine.errors import InvalidRequestError
from remuda.engine.runner import Runner, StepResult
from remuda.engine.sampler import Sampled
from remuda.engine.sampling_params import SamplingParams
from remuda.engine.scheduler import Plan, PrefillChunk, Scheduler
from remuda.engine.sequence import Request, Sequence, mix64
from remuda.engine.state_pool import StatePool
from remuda.engine.wire import FinishReason, SequenceOutput


class EngineCore:
    """Requests in, token ids out, one step at a time. Built by `start.start_engine`."""

    def __init__(self, info: EngineInfo, scheduler: Scheduler, runner: Runner, pool: StatePool, seed: int) -> None:
        self.info = info
        self._scheduler = scheduler
        self.runner = runner
        self._pool = pool
        self._seed = seed
        self._num_added = 0

    @property
    def has_work(self) -> bool:
        """A request waits or runs."""
        return self._scheduler.has_work

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

    def add(self, request_id: str, prompt: list[int], params: SamplingParams) -> None:
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
        self._scheduler.add(Request.create(request_id, np.array(prompt, dtype=np.int32), params, seed))
        self._num_added += 1

    def abort(self, request_id: str, index: int | None = None) -> None:
        """End a request, or one sequence of it, and free what it holds. Unknown ids are no error."""
        request = self._scheduler.get(request_id)
        if request is None:
            return
        for sequence in list(request.sequences):
            if index is None or sequence.index == index:
                self._scheduler.finish(sequence)

    def step(self) -> list[SequenceOutput]:
        """Advance everybody by one step, and say what it brought to whom."""
        plan = self._scheduler.schedule()
        result = self.runner.run(plan)
        return self._postprocess(plan, result)

    def _postprocess(self, plan: Plan, result: StepResult) -> list[SequenceOutput]:
        outputs = []
        for chunk in plan.prefill:
            self._scheduler.advance(chunk)
            if chunk.is_last and chunk.request.params.max_tokens == 0:
                outputs += [self._finish_unsampled(chunk, s) for s in list(chunk.request.sequences)]
        outputs += [self._accept(sequence, sampled) for sequence, sampled in result.sampled]
        return outputs

    def _finish_unsampled(self, chunk: PrefillChunk, sequence: Sequence) -> SequenceOutput:
        if not chunk.request.is_healthy:
            return self._fail(sequence)
        self._scheduler.finish(sequence)
        output = SequenceOutput(sequence.request.request_id, sequence.index, [], finish_reason="length")
        self._attach_prompt_logprobs(output, chunk.request)
        return output

    def _accept(self, sequence: Sequence, sampled: Sampled) -> SequenceOutput:
        """Take a drawn token into the sequence, or end it where its state has gone bad."""
        request = sequence.request
        if not sampled.is_healthy or not request.is_healthy:
            return self._fail(sequence)
        token = sequence.last_token = sampled.token
        sequence.num_tokens += 1
        logprobs = None if sampled.logprobs is None else [sampled.logprobs]
        reason, stop_token = self._finish_reason(sequence, token)
        output = SequenceOutput(request.request_id, sequence.index, [token], logprobs, None, reason, stop_token)
        if sequence.num_tokens == 1:
            self._attach_prompt_logprobs(output, request)
        if reason is not None:
            self._scheduler.finish(sequence)
        return output

    def _fail(self, sequence: Sequence) -> SequenceOutput:
        self._scheduler.finish(sequence)
        error = f"the model gave logits that are not finite after {sequence.num_tokens} new tokens"
        return SequenceOutput(sequence.request.request_id, sequence.index, [], finish_reason="error", error=error)

    def _finish_reason(self, sequence: Sequence, token: int) -> tuple[FinishReason | None, int | None]:
        params = sequence.request.params
        is_eos = token in self.info.eos_token_ids and not params.ignore_eos
        if is_eos or token in params.stop_token_ids:
            return "stop", token
        return ("length", None) if sequence.num_tokens >= params.max_tokens else (None, None)

    @staticmethod
    def _attach_prompt_logprobs(output: SequenceOutput, request: Request) -> None:
        if request.params.prompt_logprobs is not None and output.index == 0:
            output.prompt_logprobs, request.prompt_logprobs = request.prompt_logprobs, []
