"""What every test shares: without a GPU, Triton kernels are interpreted. Set before anything imports them."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
