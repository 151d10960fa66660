"""How many cores this process may really use, and the environment in which torch and numba use them well.

No torch: the environment counts only before it is loaded, and the parent of the engine process asks too.
"""

import math
import os
from pathlib import Path
from typing import Final

# Threads that wait spin this long before they sleep: much less makes every kernel wake them, much more
# keeps a core from other processes. THP: torch's large blocks, such as weights, on pages of 2 MB.
_DEFAULTS: Final = {"GOMP_SPINCOUNT": "20000", "THP_MEM_ALLOC_ENABLE": "1"}


def available_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores by affinity and by the container's CPU quota (cgroup v2), at least 1.

    More threads than this would wait for each other at every barrier of every kernel.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except OSError:
        return cores
    return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))


def engine_environment() -> dict[str, str]:
    """This process's environment, with what an engine wants where the user has set nothing."""
    cores = str(available_cores())
    wanted = _DEFAULTS | {"OMP_NUM_THREADS": cores, "NUMBA_NUM_THREADS": cores}
    return wanted | dict(os.environ) | {"NUMBA_THREADING_LAYER": "omp"}
