"""Log-probabilities computed on the device and read with the step's tokens, without a wait of their own."""

from dataclasses import dataclass

import numpy as np
import torch

from remuda.engine.models.base import Model
from remuda.engine.packing import LOGPROB_ROWS, PackedStep
from remuda.engine.scheduler import PrefillChunk
from remuda.engine.sequence import Request, Sequence
from remuda.engine.transfer import download, upload
from remuda.engine.wire import TokenLogprobs


@dataclass(frozen=True)
class Scores:
    """On the host once the step is over: K targets with their log-probabilities, and the C likeliest of each row.

    is_finite: (1,), whether all logits were.
    """

    targets: torch.Tensor
    chosen: torch.Tensor
    values: torch.Tensor
    ids: torch.Tensor
    is_finite: torch.Tensor

    def read(self, num_top: list[int]) -> list[TokenLogprobs]:
        """One entry a row, with its `num_top` likeliest."""
        rows = zip(
            num_top,
            self.targets.tolist(),
            self.chosen.tolist(),
            self.ids.tolist(),
            self.values.tolist(),
            strict=True,
        )
        return [
            TokenLogprobs(token, value, list(zip(ids[:top], values[:top], strict=True)))
            for top, token, value, ids, values in rows
        ]


def score(logits: torch.Tensor, targets: torch.Tensor, num_top: int) -> Scores:
    """logits: (K, V) float32; targets: (K,) int64."""
    logprobs = torch.log_softmax(logits, dim=1)
    chosen = logprobs.gather(1, targets[:, None])[:, 0]
    values, ids = torch.topk(logprobs, min(num_top, logprobs.shape[1]), dim=1)
    is_finite = torch.isfinite(logits.sum())[None]
    return Scores(*(download(t) for t in (targets, chosen, values, ids, is_finite)))


@dataclass(frozen=True)
class PendingDrawn:
    """Log-probabilities of drawn tokens: rows of the step, and how many of the likeliest each asks for."""

    rows: list[int]
    num_top: list[int]
    scores: Scores

    def read(self, into: list[TokenLogprobs | None]) -> None:
        """Fill in the entries of these rows."""
        for row, entry in zip(self.rows, self.scores.read(self.num_top), strict=True):
            into[row] = entry


@dataclass(frozen=True)
class PendingPrompt:
    """Log-probabilities of some of a prompt's tokens."""

    request: Request
    scores: Scores

    def read(self) -> None:
        """Append them to the request."""
        num_top = self.request.params.prompt_logprobs or 0
        self.request.prompt_logprobs += self.scores.read([num_top] * len(self.scores.targets))
        self.request.is_healthy &= bool(self.scores.is_finite)


def score_drawn(logits: torch.Tensor, tokens: torch.Tensor, sequences: list[Sequence]) -> list[PendingDrawn]:
    """Score the tokens (R,) that were drawn from logits (R, V) for the sequences that ask for it.

    A negative token, where the logits were not finite, is scored as 0; nobody is told.
    """
    asked = [(i, p.logprobs) for i, s in enumerate(sequences) if (p := s.request.params).logprobs is not None]
    pending = []
    for first in range(0, len(asked), LOGPROB_ROWS):
        rows, num_top = (list(column) for column in zip(*asked[first : first + LOGPROB_ROWS], strict=True))
        (index,) = upload([np.array(rows, dtype=np.int64)], logits.device)
        pending.append(PendingDrawn(rows, num_top, score(logits[index], tokens[index].clamp(min=0), max(num_top))))
    return pending


def score_prompts(step: PackedStep, hidden: torch.Tensor, model: Model) -> list[PendingPrompt]:
    """Score the prompt tokens that are asked for by the step's hidden states (L, hidden_size)."""
    pending: list[PendingPrompt] = []
    for chunk, rows in step.scored_chunks():
        pending += _score_chunk(chunk, hidden[rows], model)
    return pending


def _score_chunk(chunk: PrefillChunk, hidden: torch.Tensor, model: Model) -> list[PendingPrompt]:
    """Row i of `hidden` (end - start, M) predicts prompt token start + i + 1; the last may predict none."""
    request, pending = chunk.request, []
    ids = request.prompt[chunk.start + 1 : chunk.end + 1].astype(np.int64)
    (targets,) = upload([ids], hidden.device)
    for first in range(0, len(ids), LOGPROB_ROWS):
        block = targets[first : first + LOGPROB_ROWS]
        logits = model.logits(hidden[first : first + len(block)])[:, : model.config.vocab_size]
        pending.append(PendingPrompt(request, score(logits, block, request.params.prompt_logprobs or 0)))
    return pending
