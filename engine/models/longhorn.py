"""Longhorn (arXiv 2407.14207): the layer's data flow, as in the design's formulas. The kernels do the work."""

from functools import partial
from typing import Any, NamedTuple

import torch

from remuda.engine.backend import KernelBackend
from remuda.engine.config import ModelConfig
from remuda.engine.models.base import ForwardBatch, LayerState, StateSpec, StateTensor
from remuda.kernels.rows import rows_for


class _Layer(NamedTuple):
    norm_weight: torch.Tensor
    norm_bias: torch.Tensor | None
    in_proj: Any
    conv: Any
    x_proj: Any
    dt_head: Any
    skip: torch.Tensor
    out_proj: Any


class Longhorn:
    """A Longhorn language model over one kernel backend.

    weights: canonical names (`backbone.…`, and `lm_head.weight` where the head is untied), any float
    dtype; entries are removed as they are packed, so that no weight is held twice.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: dict[str, torch.Tensor],
        backend: KernelBackend,
        *,
        device: torch.device,
        dtype: torch.dtype,
        state_dtype: torch.dtype,
    ) -> None:
        self.config = config
        self.backend, self.device = backend, device
        self.dtype, self.state_dtype = dtype, state_dtype
        self.num_parameters = sum(weight.numel() for weight in weights.values())

        def take(name: str) -> torch.Tensor:
            return weights.pop(name).to(device=device, dtype=dtype)

        def maybe(name: str) -> torch.Tensor | None:
            return take(name) if name in weights else None

        self._embedding = take("backbone.embedding.weight")
        head = self._embedding if config.tie_word_embeddings else take("lm_head.weight")
        self._lm_head = backend.linear.pack(head, None)
        self._norm_weight, self._norm_bias = take("backbone.norm_f.weight"), maybe("backbone.norm_f.bias")
        self._layers = []
        for index in range(config.num_hidden_layers):
            prefix = f"backbone.layers.{index}."
            mixer = prefix + "mixer."
            self._layers.append(
                _Layer(
                    norm_weight=take(prefix + "norm.weight"),
                    norm_bias=maybe(prefix + "norm.bias"),
                    in_proj=backend.linear.pack(take(mixer + "in_proj.weight"), maybe(mixer + "in_proj.bias")),
                    conv=backend.conv.pack(take(mixer + "conv1d.weight"), maybe(mixer + "conv1d.bias")),
                    x_proj=backend.linear.pack(take(mixer + "x_proj.weight"), None),
                    dt_head=backend.linear.pack(take(mixer + "dt_head.weight"), take(mixer + "dt_head.bias")),
                    skip=take(mixer + "D"),
                    out_proj=backend.linear.pack(take(mixer + "out_proj.weight"), maybe(mixer + "out_proj.bias")),
                )
            )
        self._fused_decode = self._fuse()
        assert not weights, f"unused weights: {sorted(weights)}"
        self.state_spec = state_spec(config, backend, dtype, state_dtype)

    def forward(self, batch: ForwardBatch, state: list[LayerState]) -> torch.Tensor:
        """See `Model.forward`."""
        config = self.config
        rows = batch.output_rows
        if self._fused_decode is not None and batch.num_decode == len(batch.token_ids) <= self._max_fused_rows:
            normed: torch.Tensor = self._fused_decode(batch.token_ids, state, *batch.decode, batch.decode_seeds)
            return normed if rows is None else normed[rows]
        residual = self._embedding[batch.token_ids]
        if config.residual_in_fp32:
            residual = residual.float()
        hidden = self._run_layers(residual, batch, state)
        if rows is None:
            return self._norm(hidden, residual, self._norm_weight, self._norm_bias)
        if len(rows) == 0:
            return self._norm_weight.new_empty((0, config.hidden_size))
        return self._norm(hidden[rows], residual[rows], self._norm_weight, self._norm_bias)

    def logits(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """See `Model.logits`."""
        logits: torch.Tensor = self.backend.linear.linear_float32(hidden, self._lm_head, out)
        return logits

    def _fuse(self) -> Any:
        """The backend's whole decode step over these layers, or None."""
        module = self.backend.longhorn_decode
        if module is None or not module.can_fuse(self.dtype):
            return None
        self._max_fused_rows: int = module.max_rows(self.state_dtype)
        config = self.config
        return module.FusedDecode(
            [module.DecodeLayer(*layer) for layer in self._layers],
            self._embedding,
            (self._norm_weight, self._norm_bias),
            width=config.conv_kernel,
            eps=config.layer_norm_epsilon,
            is_rms=config.rms_norm,
            residual_dtype=torch.float32 if config.residual_in_fp32 else self.dtype,
        )

    def _run_layers(self, residual: torch.Tensor, batch: ForwardBatch, state: list[LayerState]) -> torch.Tensor:
        """All layers, kernel by kernel. Updates residual (T, hidden_size) in place and returns its last addend."""
        hidden: torch.Tensor | None = None
        for index, (layer, layer_state) in enumerate(zip(self._layers, state, strict=True)):
            u = self._norm(hidden, residual, layer.norm_weight, layer.norm_bias)
            hidden = self._mix(index, layer, u, batch, layer_state)
        assert hidden is not None
        return hidden

    def _norm(
        self,
        hidden: torch.Tensor | None,
        residual: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        normed: torch.Tensor = self.backend.norm.add_norm(
            hidden,
            residual,
            weight,
            bias,
            self.config.layer_norm_epsilon,
            is_rms=self.config.rms_norm,
            out_dtype=self.dtype,
        )
        return normed

    def _mix(
        self, index: int, layer: _Layer, u: torch.Tensor, batch: ForwardBatch, state: LayerState
    ) -> torch.Tensor:
        """Mixer `index` over the packed rows `u` (T, hidden_size): decode rows take the step kernels."""
        config, linear = self.config, self.backend.linear.linear
        x, z = linear(u, layer.in_proj).split(config.intermediate_size, dim=1)
        x = self._conv(x, layer, batch, state["conv"])
        n = config.state_size
        dt, k, q = linear(x, layer.x_proj).split([config.time_step_rank, n, n], dim=1)
        dt = linear(dt, layer.dt_head)
        y = self._recurrence((x, dt, k, q, z), index, layer, batch, state["h"])
        hidden: torch.Tensor = linear(y, layer.out_proj)
        return hidden

    def _conv(self, x: torch.Tensor, layer: _Layer, batch: ForwardBatch, conv_state: torch.Tensor) -> torch.Tensor:
        conv, b, out = self.backend.conv, batch.num_decode, rows_for(x, None)
        if b:
            conv.step(x[:b], layer.conv, conv_state, *batch.decode, out=out[:b])
        if b < len(x):
            conv.prefill(x[b:], layer.conv, conv_state, batch.cu_seqlens, *batch.prefill, out=out[b:])
        return out

    def _recurrence(
        self, rows: tuple[torch.Tensor, ...], index: int, layer: _Layer, batch: ForwardBatch, h: torch.Tensor
    ) -> torch.Tensor:
        longhorn, b, out = self.backend.longhorn, batch.num_decode, rows_for(rows[0], None)
        if b:
            first, rounding = (row[:b] for row in rows), _rounding(batch.decode_seeds, index)
            longhorn.step(*first, layer.skip, h, *batch.decode, **rounding, out=out[:b])
        if b < len(batch.token_ids):
            rest, rounding = (row[b:] for row in rows), _rounding(batch.prefill_seeds, index)
            longhorn.prefill(*rest, layer.skip, h, batch.cu_seqlens, *batch.prefill, **rounding, out=out[b:])
        return out


def _rounding(seeds: torch.Tensor | None, index: int) -> dict[str, Any]:
    """How layer `index` rounds its state. The CPU kernels, whose states are float32, know no such keywords."""
    return {} if seeds is None else {"seeds": seeds, "salt": index}


def state_spec(
    config: ModelConfig, backend: KernelBackend, dtype: torch.dtype, state_dtype: torch.dtype
) -> StateSpec:
    """Per layer: the conv inputs [D, W-1] in the model's dtype, and h [D, N] in the state's."""
    channels, width, size = config.intermediate_size, config.conv_kernel, config.state_size
    conv = StateTensor(
        name="conv",
        shape=(channels, width - 1),
        storage_shape=backend.conv.state_shape(channels, width),
        dtype=dtype,
        to_canonical=partial(backend.conv.to_canonical, D=channels),
        from_canonical=backend.conv.from_canonical,
    )
    h = StateTensor(
        name="h",
        shape=(channels, size),
        storage_shape=backend.longhorn.state_shape(channels, size),
        dtype=state_dtype,
        to_canonical=partial(backend.longhorn.to_canonical, D=channels),
        from_canonical=backend.longhorn.from_canonical,
    )
    return StateSpec(layers=((conv, h),) * config.num_hidden_layers)
