"""`gpu.py` without its fast scan: a prompt's bits are those of its tokens one by one, however it is cut."""

from functools import partial

from remuda.kernels.longhorn import gpu
from remuda.kernels.longhorn.gpu import from_canonical, state_shape, step, to_canonical

__all__ = ["from_canonical", "prefill", "state_shape", "step", "to_canonical"]

prefill = partial(gpu.prefill, exact_order=True)
