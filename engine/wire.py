"""The messages between API workers and the engine process: msgpack-encoded tagged structs, little behaviour."""

from array import array
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from remuda.engine.config import EngineInfo
from remuda.engine.errors import RemudaError, UnhealthyStateError
from remuda.engine.sampling_params import SamplingParams

# A worker's first message: from then on it hears how the engine is.
HELLO: Final = b""

# "stop": a stop token or an end-of-sequence id; "length": max_tokens; "error": this sequence
# failed and `error` says why.
FinishReason = Literal["stop", "length", "error"]


def pack_ids(token_ids: Sequence[int]) -> bytes:
    """Each as four bytes in this machine's order: as numbers of msgpack they would all become objects again, whose
    32 bytes each an interpreter does not readily give back. Raises OverflowError for what is no int32.
    """
    return array("i", token_ids).tobytes()


class AddRequest(msgspec.Struct, frozen=True, tag="add"):
    """Queue one request: `params.n` sequences over one prompt. packed_prompt: of its token ids, by `pack_ids`."""

    request_id: str
    packed_prompt: bytes
    params: SamplingParams

    @property
    def prompt(self) -> "array[int]":
        """The token ids."""
        return array("i", self.packed_prompt)


class AbortRequest(msgspec.Struct, frozen=True, tag="abort"):
    """End a request, or the sequence `index` of it; unknown ids are ignored (it may have just ended)."""

    request_id: str
    index: int | None = None


class StatsRequest(msgspec.Struct, frozen=True, tag="stats"):
    """Ask for an EngineStats. The loop itself answers, between two steps: an answer proves that it goes round."""


class WorkerGone(msgspec.Struct, frozen=True, tag="gone"):
    """The API worker of that name has died: end its requests, and heed nothing that it still has under way."""

    worker: str


ToEngine = AddRequest | AbortRequest | StatsRequest | WorkerGone


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Log-probability (nats) of a token, and of the likeliest at that place, best first."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


class SequenceOutput(msgspec.Struct, array_like=True, gc=False):
    """What one step brought to one sequence.

    `stop_token` is the id that ended it (it is then the last of `token_ids`). `prompt_logprobs` comes
    once, with sequence 0: one entry per prompt token, None for the first, in the first output after
    the prompt was read; between processes as `prompt_logprob_pieces`, see logprob_pieces.py. `queued_s` comes with
    it: seconds that the request waited for a slot. `embedding`: little-endian float32 values, in the only output
    of a request with `pooling`. is_grammar_error: the sequence failed by the grammar that the request asked for.
    """

    request_id: str
    index: int
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    finish_reason: FinishReason | None = None
    stop_token: int | None = None
    error: str | None = None
    queued_s: float | None = None
    embedding: bytes | None = None
    is_grammar_error: bool = False
    prompt_logprob_pieces: list[bytes] | None = None


def output_error(output: SequenceOutput, params: SamplingParams) -> RemudaError:
    """The error of a sequence that failed, of a request with these parameters."""
    reason = output.error or "the engine could not go on with this request"
    if output.is_grammar_error and params.grammar is not None:
        return params.grammar.error(reason)
    return UnhealthyStateError(reason)


class StepOutputs(msgspec.Struct, tag="step"):
    """Everything that one engine step has for one worker, in one message, with the engine's gauges."""

    outputs: list[SequenceOutput]
    num_running: int = 0
    num_waiting: int = 0
    num_free_slots: int = 0


class RequestRejected(msgspec.Struct, frozen=True, tag="rejected"):
    """A request that was never queued. `kind` is the class name of the error in `remuda.engine.errors`."""

    request_id: str
    kind: str
    message: str
    param: str | None = None


class EngineLoading(msgspec.Struct, frozen=True, tag="loading"):
    """Progress of the start: `fraction` in [0, 1]."""

    stage: str
    fraction: float


class EngineReady(msgspec.Struct, frozen=True, tag="ready"):
    """The engine serves."""

    info: EngineInfo


class EngineFailed(msgspec.Struct, frozen=True, tag="failed"):
    """The engine could not start, or ends. `kind` as in RequestRejected."""

    kind: str
    message: str


class EngineStats(msgspec.Struct, frozen=True, tag="stats"):
    """The engine process now. Counts are since its start.

    resident_bytes: its memory on the host. device_bytes: what it has allocated of a GPU, states and weights
    among it; None where it runs on a CPU.
    """

    num_running: int
    num_waiting: int
    num_free_slots: int
    num_steps: int
    num_prompt_tokens: int
    num_output_tokens: int
    num_aborts: int
    resident_bytes: int
    device_bytes: int | None = None


FromEngine = StepOutputs | RequestRejected | EngineLoading | EngineReady | EngineFailed | EngineStats
