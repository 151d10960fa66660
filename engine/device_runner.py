"""The runner for a GPU: tokens never leave the device between steps, and a launched step is read later.

Decode steps and short prompts are replayed graphs; steps with longer prompts run kernel by kernel, all rows
together. The only wait is `read`'s.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from remuda.engine.device_logprobs import PendingDrawn, PendingPrompt, score, score_drawn, score_prompts
from remuda.engine.device_sampling import DeviceSampling, plan_starts
from remuda.engine.models.base import ForwardBatch, Model, Slots
from remuda.engine.packing import LOGPROB_ROWS, PackedStep, pack
from remuda.engine.pooling import PendingPooled, pool_prompts
from remuda.engine.prompt_graphs import PromptGraphs, PromptShape
from remuda.engine.runner import NO_TOKEN, StepResult, fork_state, pad_batch
from remuda.engine.sampling_params import MAX_LOGPROBS
from remuda.engine.scheduler import Plan
from remuda.engine.sequence import Sequence
from remuda.engine.state_pool import StatePool
from remuda.engine.step_graphs import StepGraphs, decode_sizes, padded
from remuda.engine.transfer import upload
from remuda.engine.wire import TokenLogprobs
from remuda.kernels.slots import PAD_SLOT

# Steps whose pinned memory is in use at a time: one under way, and one being launched.
_NUM_STAGES: Final = 2


@dataclass(frozen=True)
class StepBuffers:
    """All that a decode step reads or writes besides weights, pool and table, for up to `max_rows` rows.

    slots: (max_rows,) int32. fresh: (max_rows,) bool, all false. logits: (max_rows, padded V) float32. work:
    (max_rows, V) float32. tokens: (max_rows,) int64, NO_TOKEN where the logits were not finite. no_token: ().
    """

    slots: torch.Tensor
    fresh: torch.Tensor
    logits: torch.Tensor
    work: torch.Tensor
    tokens: torch.Tensor
    no_token: torch.Tensor

    @classmethod
    def create(cls, max_rows: int, vocab_size: int, padded_vocab_size: int, device: torch.device) -> "StepBuffers":
        """All rows are pad rows."""
        return cls(
            slots=torch.full((max_rows,), PAD_SLOT, dtype=torch.int32, device=device),
            fresh=torch.zeros(max_rows, dtype=torch.bool, device=device),
            logits=torch.zeros((max_rows, padded_vocab_size), dtype=torch.float32, device=device),
            work=torch.zeros((max_rows, vocab_size), dtype=torch.float32, device=device),
            tokens=torch.zeros(max_rows, dtype=torch.int64, device=device),
            no_token=torch.tensor(NO_TOKEN, device=device),
        )


class _Stage:
    """Pinned memory of one step: the slots that it sends, and the tokens that come back."""

    def __init__(self, max_rows: int, device: torch.device) -> None:
        is_cuda = device.type == "cuda"
        self.slots = torch.zeros(max_rows, dtype=torch.int32, pin_memory=is_cuda)
        self.tokens = torch.zeros(max_rows, dtype=torch.int64, pin_memory=is_cuda)
        self.slots_array = self.slots.numpy()
        self.tokens_array = self.tokens.numpy()
        # torch leaves it without types.
        self.event = torch.cuda.Event() if is_cuda else None  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class _Launched:
    stage: _Stage
    sequences: list[Sequence]
    drawn: list[PendingDrawn]
    prompts: list[PendingPrompt | PendingPooled]

    def read(self) -> StepResult:
        if self.stage.event is not None:
            self.stage.event.synchronize()
        for prompt in self.prompts:
            prompt.read()
        tokens: list[int] = self.stage.tokens_array[: len(self.sequences)].tolist()
        if not self.drawn:
            return StepResult(self.sequences, tokens)
        logprobs: list[TokenLogprobs | None] = [None] * len(tokens)
        for drawn in self.drawn:
            drawn.read(logprobs)
        return StepResult(self.sequences, tokens, logprobs)


class DeviceRunner:
    """Draws by the backend's `sample` kernels. At most one step may be under way when another is launched.

    prompt_shapes: of steps whose prompts are read by a graph.
    """

    def __init__(
        self, model: Model, pool: StatePool, max_rows: int, prompt_shapes: tuple[PromptShape, ...] = ()
    ) -> None:
        assert model.backend.sample is not None
        config, device = model.config, model.device
        self._model = model
        self._pool = pool
        self._device = device
        self._sampling = DeviceSampling(model.backend.sample, pool.num_slots, config.vocab_size, device)
        self._buffers = StepBuffers.create(max_rows, config.vocab_size, config.padded_vocab_size, device)
        self._stages = [_Stage(max_rows, device) for _ in range(_NUM_STAGES)]
        self._num_launched = 0
        # Float32 states are stored as they are.
        self._is_rounded = model.state_dtype != torch.float32
        self.sizes = decode_sizes(max_rows)
        self.graphs = StepGraphs(self._decode, self.sizes)
        self.prompts = PromptGraphs(model, pool, prompt_shapes, has_seeds=self._is_rounded)
        self.graph_bytes = 0

    @property
    def is_cuda(self) -> bool:
        """Steps run on a GPU, as graphs where they can."""
        return self._device.type == "cuda"

    @torch.inference_mode()
    def launch(self, plan: Plan) -> "_Launched":
        """See `Runner.launch`."""
        stage = self._stages[self._num_launched % _NUM_STAGES]
        prompts: list[PendingPrompt | PendingPooled] = []
        if plan.prefill:
            step = pack(plan)
            sequences = step.sequences
            if plan.is_guided:
                self._sampling.set_masks(sequences)
            shape = self.prompts.shape_of(step)
            if shape is None:
                prompts = self._run_mixed(step)
            else:
                self._run_apart(plan, step, shape, stage)
        else:
            if plan.is_guided:
                self._sampling.set_masks(plan.decode)
            self._run_decode(plan, stage)
            sequences = plan.decode
        num_rows = len(sequences)
        logits = self._buffers.logits[:num_rows, : self._model.config.vocab_size]
        drawn = score_drawn(logits, self._buffers.tokens, sequences)
        stage.tokens[:num_rows].copy_(self._buffers.tokens[:num_rows], non_blocking=True)
        if stage.event is not None:
            stage.event.record()
        self._num_launched += 1
        return _Launched(stage, sequences, drawn, prompts)

    @torch.inference_mode()
    def warm_up(self, num_decode: int, num_prefill: int, num_seqs: int = 1) -> None:
        """See `Runner.warm_up`."""
        batch = pad_batch(num_decode, num_prefill, num_seqs, self._device, has_seeds=self._is_rounded)
        hidden = self._model.forward(batch, self._pool.layers)[: len(self._buffers.slots)]
        pads = torch.full((len(hidden),), PAD_SLOT, dtype=torch.int32, device=self._device)
        self._draw(hidden, pads)
        self._sampling.warm_up(pads)

    @torch.inference_mode()
    def warm_up_scores(self) -> None:
        """Compute as many log-probabilities as are ever held at once, of rows that mean nothing."""
        config = self._model.config
        for num_rows in (1, LOGPROB_ROWS):
            hidden = torch.zeros((num_rows, config.hidden_size), dtype=self._model.dtype, device=self._device)
            logits = self._model.logits(hidden)[:, : config.vocab_size]
            targets = torch.zeros(num_rows, dtype=torch.int64, device=self._device)
            score(logits, targets, MAX_LOGPROBS)

    @torch.inference_mode()
    def capture(self, progress: Callable[[float], None]) -> None:
        """Make the graphs. Before any launch."""
        torch.cuda.synchronize(self._device)
        # Capturing gives back what is cached, which is not to be taken for less than nothing.
        torch.cuda.empty_cache()
        before = torch.cuda.mem_get_info(self._device)[0]
        # The graphs share their memory: they run one after the other.
        pool = torch.cuda.graph_pool_handle()
        self.graphs.capture(pool, lambda fraction: progress(fraction / 2))
        self.prompts.graphs.capture(pool, lambda fraction: progress(0.5 + fraction / 2))
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        self.graph_bytes = before - torch.cuda.mem_get_info(self._device)[0]

    def _run_decode(self, plan: Plan, stage: _Stage) -> None:
        num_rows = len(plan.decode)
        size = padded(self.sizes, num_rows)
        stage.slots_array[:num_rows] = plan.slots
        stage.slots_array[num_rows:size] = PAD_SLOT
        self._buffers.slots[:size].copy_(stage.slots[:size], non_blocking=True)
        self.graphs.run(size)

    def _decode(self, size: int) -> None:
        """One token for each of the first `size` rows of the buffers. What a graph holds."""
        slots = self._buffers.slots[:size]
        none = slots[:0]
        batch = ForwardBatch(
            token_ids=self._sampling.last_tokens(slots),
            num_decode=size,
            decode=Slots(slots, slots, self._buffers.fresh[:size]),
            prefill=Slots(none, none, self._buffers.fresh[:0]),
            cu_seqlens=none,
            output_rows=None,
            decode_seeds=self._sampling.seeds(slots) if self._is_rounded else None,
        )
        self._draw(self._model.forward(batch, self._pool.layers), slots)

    def _draw(self, hidden: torch.Tensor, slots: torch.Tensor, first: int = 0) -> None:
        """Draw for hidden states (R, M) and slots (R,) into R rows of the buffers, from row `first` on."""
        buffers, rows = self._buffers, slice(first, first + len(hidden))
        logits = self._model.logits(hidden, out=buffers.logits[rows])
        tokens, healthy = self._sampling.sample(logits, slots, buffers.work)
        torch.where(healthy, tokens, buffers.no_token, out=buffers.tokens[rows])

    def _run_apart(self, plan: Plan, step: PackedStep, shape: PromptShape, stage: _Stage) -> None:
        """Decode rows by their graph, then prompt chunks by theirs. Draws into the buffers."""
        if plan.decode:
            self._run_decode(plan, stage)
        hidden = self.prompts.run(step, shape)
        starts = plan_starts(step)
        slots = np.array([s.slot for s in step.sequences[step.num_decoding :]], dtype=np.int32)
        after, drawn, *begun = upload([step.chunk_of_drawn(), slots, *starts.arrays()], self._device)
        self._begin(step, begun, self.prompts.token_ids(step))
        if len(after):
            self._draw(hidden[after], drawn, first=step.num_decoding)

    def _begin(self, step: PackedStep, begun: list[torch.Tensor], prompt_ids: torch.Tensor) -> None:
        """Once the prompts are read and before anything is drawn: the sequences that begin, and their siblings."""
        self._sampling.start(begun, prompt_ids)
        for chunk in step.chunks:
            if chunk.is_last:
                fork_state(self._pool, chunk)

    def _run_mixed(self, step: PackedStep) -> list[PendingPrompt | PendingPooled]:
        """Decode rows and prompt chunks together, kernel by kernel. Draws into the buffers."""
        a, b = step.num_decoding, step.num_decode
        starts = plan_starts(step)
        prompt_ids, slots, rest, fresh, rest_fresh, cu_seqlens, rows, output_of, drawn, seeds, *begun = upload(
            [
                step.prompt_ids,
                *(step.slots[:b], step.slots[b:]),
                *(step.fresh[:b], step.fresh[b:]),
                step.cu_seqlens,
                step.output_rows,
                step.output_of,
                np.array([s.slot for s in step.sequences], dtype=np.int32),
                np.array(step.chunk_seeds() if self._is_rounded else [], dtype=np.int64),
                *starts.arrays(),
            ],
            self._device,
        )
        decode_seeds, prefill_seeds = self._split_seeds(slots[:a], seeds, b - a)
        batch = ForwardBatch(
            token_ids=torch.cat([self._sampling.last_tokens(slots[:a]), prompt_ids]),
            num_decode=b,
            decode=Slots(slots, slots, fresh),
            prefill=Slots(rest, rest, rest_fresh),
            cu_seqlens=cu_seqlens,
            output_rows=rows,
            decode_seeds=decode_seeds,
            prefill_seeds=prefill_seeds,
        )
        hidden = self._model.forward(batch, self._pool.layers)
        self._begin(step, begun, prompt_ids)
        prompts: list[PendingPrompt | PendingPooled] = [*score_prompts(step, hidden, self._model)]
        prompts += pool_prompts(step, hidden)
        if step.sequences:
            self._draw(hidden[output_of], drawn)
        return prompts

    def _split_seeds(
        self, decoding: torch.Tensor, seeds: torch.Tensor, num_short: int
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Of the rows that take the step kernels, and of the longer chunks."""
        if not self._is_rounded:
            return None, None
        return torch.cat([self._sampling.seeds(decoding), seeds[:num_short]]), seeds[num_short:]
