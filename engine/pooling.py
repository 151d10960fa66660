"""Pooled hidden states of prompts: the last token's, or the mean over a prompt that comes in chunks.

Works on either runner's device: nothing is waited for before `PendingPooled.read`.
"""

from dataclasses import dataclass

import torch

from remuda.engine.packing import PackedStep
from remuda.engine.sequence import Request
from remuda.engine.transfer import download


@dataclass(frozen=True)
class PendingPooled:
    """The vector, (hidden_size,) float32, of a prompt that ends with this step: on the host once that is over."""

    request: Request
    vector: torch.Tensor

    def read(self) -> None:
        """Give it to the request, whose state has gone bad where it is not finite."""
        values = self.vector.numpy()
        self.request.is_healthy &= bool(torch.isfinite(self.vector).all())
        self.request.embedding = values.astype("<f4").tobytes()


def pool_prompts(step: PackedStep, hidden: torch.Tensor) -> list[PendingPooled]:
    """Pool what the step has read. hidden: (L, hidden_size), the step's outputs."""
    pending = []
    for chunk, rows in step.pooled_chunks():
        request = chunk.request
        if request.params.pooling == "mean":
            # In float64 the sum is the same, but for its last bits, however the prompt was split.
            total = hidden[rows].sum(0, dtype=torch.float64)
            request.hidden_sum = total if request.hidden_sum is None else request.hidden_sum + total
        if not chunk.is_last:
            continue
        vector = hidden[rows.stop - 1]
        if request.hidden_sum is not None:
            vector, request.hidden_sum = request.hidden_sum / request.num_prompt_tokens, None
        pending.append(PendingPooled(request, download(vector.float())))
    return pending
