"""Tells of every Triton kernel that is compiled while it is on: after the warm-up, each is a fault of it."""

import logging
from typing import Any

logger = logging.getLogger(__name__)


def watch_compilations(is_on: bool) -> None:
    """From now on, log a warning for each kernel that is compiled in this process, or do not."""
    # Without a GPU it need not be installed.
    from triton import knobs

    knobs.runtime.jit_post_compile_hook = _warn if is_on else None


def _warn(*, repr: str, **_: Any) -> None:
    logger.warning("a kernel was compiled after the warm-up, and a request waited for it: %s", repr)
