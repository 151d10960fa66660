"""How much host memory the server's processes hold, without the engine, which tells of itself."""

import os

import psutil

_ENGINE_MODULE = "remuda.engine.process"


def server_resident_bytes(parent_pid: int | None) -> int:
    """Resident bytes of the process that runs the server and of all that it started, but for the engine.

    parent_pid: that process, where it is not this one. Processes that end meanwhile count as nothing.
    """
    root = psutil.Process(os.getpid() if parent_pid is None else parent_pid)
    return sum(map(_resident, [root, *root.children(recursive=True)]))


def _resident(process: psutil.Process) -> int:
    try:
        if _ENGINE_MODULE in process.cmdline():
            return 0
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0
