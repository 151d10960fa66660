"""The offline door: text or token ids in, text out, in this process, by the same core that serves HTTP."""

import itertools
import operator
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

from remuda.engine.checkpoint.find import find_checkpoint
from remuda.engine.config import EngineConfig, EngineInfo
from remuda.engine.errors import ConfigError, InvalidRequestError, RemudaError
from remuda.engine.sampling_params import SamplingParams
from remuda.engine.start import Progress, start_engine
from remuda.engine.text_stream import TextStream
from remuda.engine.tokenizer import check_tokenizer_fits, load_tokenizer
from remuda.engine.wire import FinishReason, SequenceOutput, TokenLogprobs, output_error

Prompt = str | list[int]


@dataclass
class Completion:
    """One continuation. `logprobs` has one entry per token where they were asked for."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None


@dataclass
class RequestOutput:
    """A prompt with its `n` completions. `prompt_logprobs`: one entry per prompt token, None for the first.

    embedding: the pooled hidden state, where the parameters ask for it by `pooling`.
    """

    prompt_token_ids: list[int]
    completions: list[Completion]
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    embedding: list[float] | None = None


class _Run:
    """One request under way: gathers tokens, decodes text, and tells when a stop string ends a sequence."""

    def __init__(self, engine: "Engine", request_id: str, prompt: Prompt, params: SamplingParams) -> None:
        ids = (
            engine.tokenizer.encode(prompt, add_bos=engine.tokenizer.add_bos)
            if isinstance(prompt, str)
            else prompt
        )
        self.request_id = request_id
        self.output = RequestOutput(ids, [Completion(i) for i in range(params.n)])
        self.error: RemudaError | None = None
        self._params = params
        self._new_text: list[str] = []
        self._engine = engine
        self._streams = [TextStream(engine.tokenizer, params, ids) for _ in range(params.n)]
        engine.core.add(request_id, ids, params)

    @property
    def is_finished(self) -> bool:
        return self.error is not None or all(c.finish_reason is not None for c in self.output.completions)

    def take_text(self) -> str:
        """The text since the last call; of a request with one sequence. Raises the error that ended it."""
        text, self._new_text = "".join(self._new_text), []
        if not text and self.error is not None:
            raise self.error
        return text

    def take(self, output: SequenceOutput) -> None:
        """Add what a step brought."""
        completion = self.output.completions[output.index]
        if completion.finish_reason is not None:
            # The same step may bring a token more to a sequence that a stop string has just ended.
            return
        if output.finish_reason == "error":
            self._engine.core.abort(self.request_id)
            self.error = output_error(output, self._params)
            return
        delta = self._streams[output.index].push(output.token_ids, output.finish_reason, output.stop_token)
        completion.text += delta.text
        completion.token_ids += output.token_ids
        completion.logprobs += output.logprobs or []
        completion.finish_reason = output.finish_reason
        if output.prompt_logprobs is not None:
            self.output.prompt_logprobs = output.prompt_logprobs
        if output.embedding is not None:
            self.output.embedding = array("f", output.embedding).tolist()
        if delta.stopped and output.finish_reason != "stop":
            completion.finish_reason = "stop"
            self._engine.core.abort(self.request_id, output.index)
        self._new_text.append(delta.text)


class Engine:
    """A loaded model that completes prompts.

    >>> engine = Engine("demo")
    >>> engine.generate("Once upon a time", SamplingParams(max_tokens=20))[0].completions[0].text

    Raises ConfigError or CheckpointError where it cannot start. Not safe for concurrent threads.
    """

    def __init__(
        self, model: str | EngineConfig = "demo", *, progress: Progress | None = None, **options: Any
    ) -> None:
        if isinstance(model, EngineConfig):
            if options:
                raise ConfigError(f"give an EngineConfig or options, not both: {', '.join(options)}")
            config = model
        else:
            try:
                config = EngineConfig(model=model, **options)
            except TypeError as error:
                raise ConfigError(str(error)) from error
        self.core = start_engine(config, progress)
        self.tokenizer = load_tokenizer(find_checkpoint(config.model), config.tokenizer)
        check_tokenizer_fits(self.tokenizer, self.core.info.vocab_size)
        self._ids = itertools.count()
        self._runs: dict[str, _Run] = {}

    @property
    def info(self) -> EngineInfo:
        """What was started: model, backend, dtypes, slots."""
        return self.core.info

    def generate(
        self,
        prompts: Prompt | list[str] | list[list[int]],
        params: SamplingParams | list[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Complete one prompt or many, batched, and return the results in the order of the prompts.

        A prompt is a text or a list of token ids. `params` is one for all, or one for each.
        Raises InvalidRequestError for a prompt or a parameter that cannot be honoured; then nothing runs on.
        """
        many = _as_list(prompts)
        each = params if isinstance(params, list) else [params or SamplingParams()] * len(many)
        if len(each) != len(many):
            raise ConfigError(f"{len(each)} sampling parameters were given for {len(many)} prompts")
        runs: list[_Run] = []
        waiting = deque(zip(many, each, strict=True))
        num_ended = 0
        try:
            while waiting or num_ended < len(runs):
                while waiting and self.core.num_waiting < self.core.info.max_queue:
                    runs.append(self._start(*waiting.popleft()))
                self._step()
                # Requests end about in their order: those at the front are looked at once.
                while num_ended < len(runs) and runs[num_ended].is_finished:
                    num_ended += 1
        finally:
            self._end(runs)
        for run in runs:
            if run.error is not None:
                raise run.error
        return [run.output for run in runs]

    def generate_stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[str]:
        """Complete one prompt and yield its text as it comes; `n` must be 1. Leaving the loop aborts."""
        params = params or SamplingParams()
        if params.n != 1:
            raise ConfigError(f"a stream has one continuation, n is {params.n}")
        run = self._start(prompt, params)
        try:
            while not run.is_finished:
                self._step()
                if text := run.take_text():
                    yield text
            if text := run.take_text():
                yield text
        finally:
            self._end([run])

    def _start(self, prompt: Prompt, params: SamplingParams) -> _Run:
        run = _Run(self, f"offline-{next(self._ids)}", prompt, params)
        self._runs[run.request_id] = run
        return run

    def _step(self) -> None:
        """One step for everybody: a stream that is open beside this call gets its share too."""
        for output in self.core.step():
            self._runs[output.request_id].take(output)

    def _end(self, runs: list[_Run]) -> None:
        for run in runs:
            self.core.abort(run.request_id)
            del self._runs[run.request_id]
        if not self._runs:
            # A step may be under way in which those who have ended still had a row.
            while self.core.has_work:
                self.core.step()


def _as_list(prompts: Prompt | list[str] | list[list[int]]) -> list[Prompt]:
    """The prompts as a list of texts and lists of ids. Raises InvalidRequestError for a mixture of levels."""
    if isinstance(prompts, str):
        return [prompts]
    if prompts and all(isinstance(item, SupportsIndex) for item in prompts):
        return [[operator.index(item) for item in prompts if isinstance(item, SupportsIndex)]]
    many: list[Prompt] = []
    for position, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            many.append(prompt)
        elif isinstance(prompt, Iterable) and all(isinstance(token, SupportsIndex) for token in prompt):
            many.append([operator.index(token) for token in prompt])
        else:
            kind = type(prompt).__name__
            raise InvalidRequestError(
                f"prompt {position} is neither text nor token ids, but {kind}", param="prompt"
            )
    return many
