"""The API process stays light: nothing that it imports brings torch or the kernels along."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["app", "cli", "serve", "engine_process", "offline"])
def test_no_torch(module: str) -> None:
    code = (
        f"import remuda.server.{module}, sys; "
        "heavy = {'torch', 'numba', 'triton'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
