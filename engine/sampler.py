"""Draws one token per row of logits. Each row depends on its own parameters, key and position alone."""

from dataclasses import dataclass
from typing import Final

import torch

from remuda.engine.guide import Words, banned, masks
from remuda.engine.sampling_params import SamplingParams
from remuda.engine.sequence import Sequence, TokenCounts
from remuda.engine.wire import TokenLogprobs
from remuda.kernels.sample.table import GREEDY_BELOW

# Enough candidates for most filters; rows whose filters leave more are drawn again from 16 times as many.
_NUM_CANDIDATES: Final = 256


@dataclass(frozen=True)
class Sampled:
    """One drawn token. `is_healthy` is false where the logits were not finite; then the token is 0."""

    token: int
    is_healthy: bool
    logprobs: TokenLogprobs | None


class Sampler:
    """eos_token_ids end a sequence, and are held back until its `min_tokens`."""

    def __init__(self, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids

    def sample(self, logits: torch.Tensor, sequences: list[Sequence]) -> list[Sampled]:
        """logits: (R, padded vocabulary) float32, changed in place; row i is for sequences[i].

        Greedy rows take the largest logit, ties to the lowest id.
        """
        logits = logits[:, : self._vocab_size]
        # One pass instead of two: a sum is finite unless an entry is not, or they are beyond any use.
        healthy = torch.isfinite(logits.sum(dim=1)).tolist()
        raw = {
            i: torch.log_softmax(logits[i], dim=0)
            for i, sequence in enumerate(sequences)
            if sequence.request.params.logprobs is not None and healthy[i]
        }
        words = _masks_by_row(sequences, healthy)
        for i, sequence in enumerate(sequences):
            if healthy[i] and _is_adjusted(sequence):
                self._adjust(logits[i], sequence, words.get(i))
        tokens: list[int] = logits.argmax(dim=1).tolist()
        drawn = [i for i, s in enumerate(sequences) if healthy[i] and not _is_greedy(s.request.params)]
        for kind in (False, True):
            rows = [i for i in drawn if _is_filtered(sequences[i].request.params) is kind]
            if rows:
                params = [sequences[i].request.params for i in rows]
                uniforms = torch.tensor(
                    [sequences[i].uniform() for i in rows], dtype=torch.float64, device=logits.device
                )
                draw = _draw_filtered if kind else _draw
                for i, token in zip(rows, draw(logits[rows], params, uniforms), strict=True):
                    tokens[i] = token
        results = []
        for i, (sequence, token) in enumerate(zip(sequences, tokens, strict=True)):
            if sequence.counts is not None and healthy[i]:
                sequence.counts.drawn[token] += 1
            logprobs = None
            if i in raw:
                logprobs = token_logprobs(raw[i][None], [token], sequence.request.params.logprobs or 0)[0]
            results.append(Sampled(token if healthy[i] else 0, healthy[i], logprobs))
        return results

    def start(self, sequence: Sequence, device: torch.device) -> None:
        """Count the prompt's tokens, where the sequence's penalties will ask for them."""
        if sequence.request.params.is_penalised:
            in_prompt = torch.zeros(self._vocab_size, dtype=torch.bool)
            in_prompt[torch.from_numpy(sequence.request.prompt).long()] = True
            drawn = torch.zeros(self._vocab_size, dtype=torch.int32, device=device)
            sequence.counts = TokenCounts(in_prompt.to(device), drawn)

    def _adjust(self, row: torch.Tensor, sequence: Sequence, words: Words | None) -> None:
        """Penalties, biases, held-back stop tokens and grammars, in place on one row (V,).

        words: the mask of a sequence that follows a grammar.
        """
        params = sequence.request.params
        counts = sequence.counts
        if counts is not None:
            if params.repetition_penalty != 1:
                seen = counts.in_prompt | (counts.drawn > 0)
                penalty = params.repetition_penalty
                row.copy_(torch.where(seen, torch.where(row > 0, row / penalty, row * penalty), row))
            row.sub_(params.frequency_penalty * counts.drawn + params.presence_penalty * (counts.drawn > 0))
        if params.logit_bias:
            row[list(params.logit_bias)] += torch.tensor(list(params.logit_bias.values()), device=row.device)
        if words is not None:
            row.masked_fill_(torch.from_numpy(banned(words, len(row))).to(row.device), -torch.inf)
        elif sequence.num_tokens < params.min_tokens:
            held = params.stop_token_ids if params.ignore_eos else params.stop_token_ids + self._eos_token_ids
            row[list(held)] = -torch.inf


def _masks_by_row(sequences: list[Sequence], healthy: list[bool]) -> dict[int, Words]:
    """The masks of the healthy rows whose sequences follow grammars."""
    guided = [(i, s, s.guide) for i, s in enumerate(sequences) if s.guide is not None and healthy[i]]
    if not guided:
        return {}
    found = masks([guide for _, _, guide in guided], [sequence.num_tokens for _, sequence, _ in guided])
    return {i: words for (i, _, _), words in zip(guided, found, strict=True)}


def _is_adjusted(sequence: Sequence) -> bool:
    params = sequence.request.params
    is_biased = bool(params.logit_bias) or sequence.num_tokens < params.min_tokens
    return is_biased or sequence.counts is not None or sequence.guide is not None


def _is_greedy(params: SamplingParams) -> bool:
    return params.temperature < GREEDY_BELOW


def _is_filtered(params: SamplingParams) -> bool:
    return params.top_k > 0 or params.top_p < 1 or params.min_p > 0


def _draw(logits: torch.Tensor, params: list[SamplingParams], uniforms: torch.Tensor) -> list[int]:
    """Invert the cumulative distribution of each row of logits (R, V) at its number of `uniforms` (R,)."""
    logits = logits / _column(params, "temperature", logits.device)
    return _invert(torch.softmax(logits, dim=1), uniforms).tolist()


def _draw_filtered(logits: torch.Tensor, params: list[SamplingParams], uniforms: torch.Tensor) -> list[int]:
    """`_draw` among what top_k, then top_p, then min_p leave of each row."""
    logits = logits / _column(params, "temperature", logits.device)
    tokens = [0] * len(params)
    open_rows, count = list(range(len(params))), _NUM_CANDIDATES
    while open_rows:
        count = min(count, logits.shape[1])
        probs, order, is_enough = _candidates(logits[open_rows], [params[i] for i in open_rows], count)
        drawn = order.gather(1, _invert(probs, uniforms[open_rows])[:, None])[:, 0].tolist()
        for i, token in zip(open_rows, drawn, strict=True):
            tokens[i] = token
        open_rows = [i for i, enough in zip(open_rows, is_enough.tolist(), strict=True) if not enough]
        count *= 16
    return tokens


def _candidates(
    logits: torch.Tensor, params: list[SamplingParams], count: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The `count` likeliest of each row (R, V), best first: mass after the filters (R, count), ids (R, count), and
    whether they hold all that the filters leave (R,). The first always keeps its mass."""
    values, order = torch.topk(logits, count, dim=1)
    probs = torch.exp(values - torch.logsumexp(logits, dim=1, keepdim=True)).double()
    device = logits.device
    top_k = torch.tensor([p.top_k if p.top_k > 0 else logits.shape[1] for p in params], device=device)[:, None]
    probs = torch.where(torch.arange(count, device=device) < top_k, probs, 0.0)
    # top_p applies to the mass that top_k left; where top_k left more than the candidates, all are looked at.
    left = torch.where(top_k <= count, probs.sum(dim=1, keepdim=True), 1.0)
    is_enough = (top_k[:, 0] <= count) | (count == logits.shape[1])
    top_p, min_p = _column(params, "top_p", device).double(), _column(params, "min_p", device).double()
    # Sums of float32 probabilities may miss 1 by rounding: top_p = 1 keeps everything.
    before = probs.cumsum(dim=1) - probs
    is_cut = (before >= top_p * left) & (top_p < 1)
    is_cut |= probs < min_p * probs[:, :1]
    is_cut[:, 0] = False
    is_enough |= (top_k[:, 0] > logits.shape[1] - 1) & is_cut[:, -1]
    return torch.where(is_cut, 0.0, probs), order, is_enough


def _column(params: list[SamplingParams], name: str, device: torch.device) -> torch.Tensor:
    """A field of each row's parameters, (R, 1) float32."""
    return torch.tensor([getattr(p, name) for p in params], dtype=torch.float32, device=device)[:, None]


def _invert(probs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The first index of each row (R, C) whose cumulative mass passes `uniforms` of the whole, (R,).

    Never one of mass zero: the product may round up to the whole, and then the last of some mass is it.
    """
    mass = probs.cumsum(dim=1, dtype=torch.float64)
    index = torch.searchsorted(mass, uniforms[:, None] * mass[:, -1:], right=True)
    last = torch.where(probs > 0, torch.arange(probs.shape[1], device=probs.device), 0).amax(dim=1, keepdim=True)
    return torch.minimum(index, last)[:, 0]


def token_logprobs(logprobs: torch.Tensor, tokens: list[int], num_top: int) -> list[TokenLogprobs]:
    """Describe `tokens` under the rows (R, V) of log-probabilities, with the `num_top` likeliest of each row."""
    chosen = logprobs.gather(1, torch.tensor(tokens, device=logprobs.device)[:, None])[:, 0].tolist()
    values, ids = torch.topk(logprobs, min(num_top, logprobs.shape[1]), dim=1)
    return [
        TokenLogprobs(token, value, list(zip(top_ids, top_values, strict=True)))
        for token, value, top_ids, top_values in zip(tokens, chosen, ids.tolist(), values.tolist(), strict=True)
    ]
