"""Lays a plan out as the flat arrays of one step. Numpy alone: the runners bring them to their device."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from remuda.engine.scheduler import Plan, PrefillChunk
from remuda.engine.sequence import Sequence, row_seed

Ints = npt.NDArray[np.int64]
Slots32 = npt.NDArray[np.int32]

# Rows whose log-probabilities are computed at once: their logits take 50 MB for a vocabulary of 50,000.
LOGPROB_ROWS: Final = 256


@dataclass(frozen=True)
class PackedStep:
    """One step of T rows: B that take the step kernels, then the tokens of P longer chunks.

    The B rows are the `num_decoding` sequences that decode, whose tokens were drawn before, then the chunks
    of one token. chunks: in the order of their rows. prompt_ids: (T - num_decoding,). slots, fresh: (B + P,).
    cu_seqlens: (P+1,). output_rows: (L,), the rows whose hidden state is wanted. sequences: who is given a
    token, and output_of: (R,), by which of the L outputs.
    """

    num_decoding: int
    num_decode: int
    chunks: list[PrefillChunk]
    prompt_ids: Ints
    slots: Slots32
    fresh: npt.NDArray[np.bool_]
    cu_seqlens: Slots32
    output_rows: Ints
    sequences: list[Sequence]
    output_of: Ints

    def chunk_seeds(self) -> list[int]:
        """`row_seed` of each chunk, whose state is rounded once, after its last token."""
        return [row_seed(c.request.sequences[0].key, -c.end) for c in self.chunks]

    def chunk_of_drawn(self) -> Ints:
        """(R - num_decoding,): after which chunk each sequence is drawn for that ends a prompt; none is scored."""
        ended = np.array([i for i, chunk in enumerate(self.chunks) if chunk.is_last], dtype=np.int64)
        return ended[self.output_of[self.num_decoding :] - self.num_decoding]

    def scored_chunks(self) -> Iterator[tuple[PrefillChunk, slice]]:
        """The chunks whose prompt log-probabilities are asked for, each with its outputs among the L."""
        for chunk, rows in self._outputs_of_chunks():
            if chunk.request.params.prompt_logprobs is not None:
                yield chunk, rows

    def pooled_chunks(self) -> Iterator[tuple[PrefillChunk, slice]]:
        """The chunks of prompts whose pooled hidden state is asked for, each with its outputs among the L."""
        for chunk, rows in self._outputs_of_chunks():
            if chunk.request.params.pooling is not None:
                yield chunk, rows

    def _outputs_of_chunks(self) -> Iterator[tuple[PrefillChunk, slice]]:
        first = self.num_decoding
        for chunk in self.chunks:
            end = first + _num_output_rows(chunk)
            yield chunk, slice(first, end)
            first = end


def pack(plan: Plan) -> PackedStep:
    """The arrays of a plan. A chunk of one token is a row like those that decode: the step kernels are faster."""
    num_decoding = len(plan.decode)
    chunks = [c for c in plan.prefill if c.end - c.start == 1]
    num_decode = num_decoding + len(chunks)
    chunks += [c for c in plan.prefill if c.end - c.start > 1]
    rows, output_of, sequences = list(range(num_decoding)), list(range(num_decoding)), list(plan.decode)
    row = num_decoding
    for chunk in chunks:
        row += chunk.end - chunk.start
        rows += range(row - _num_output_rows(chunk), row)
        if chunk.is_last and chunk.request.params.max_tokens > 0:
            live = [s for s in chunk.request.sequences if not s.is_finished]
            output_of += [len(rows) - 1] * len(live)
            sequences += live
    lengths = [0] + [c.end - c.start for c in chunks[num_decode - num_decoding :]]
    pieces = [chunk.request.prompt[chunk.start : chunk.end] for chunk in chunks]
    return PackedStep(
        num_decoding=num_decoding,
        num_decode=num_decode,
        chunks=chunks,
        prompt_ids=np.concatenate(pieces, dtype=np.int64) if pieces else np.zeros(0, dtype=np.int64),
        slots=np.concatenate([plan.slots, np.array([c.slot for c in chunks], dtype=np.int32)]),
        fresh=np.array([False] * num_decoding + [c.start == 0 for c in chunks], dtype=np.bool_),
        cu_seqlens=np.cumsum(lengths, dtype=np.int32),
        output_rows=np.array(rows, dtype=np.int64),
        sequences=sequences,
        output_of=np.array(output_of, dtype=np.int64),
    )


def _num_output_rows(chunk: PrefillChunk) -> int:
    """Hidden rows that a chunk is asked for: all for log-probabilities or a mean, else the last of the prompt."""
    params = chunk.request.params
    if params.prompt_logprobs is not None or params.pooling == "mean":
        return chunk.end - chunk.start
    return int(chunk.is_last)
