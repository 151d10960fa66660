"""An engine process for the supervisor's tests: keeps the launch contract, and misbehaves as its argument says.

Arguments: how to behave, and a file to which a line is added at each start.
"""

import os
import sys
import time

import msgspec
import zmq

from remuda.engine.wire import EngineFailed, EngineReady
from tests.server.fake_info import INFO


def main(behaviour: str, record: str) -> int:
    """Obey, or not."""
    with open(record, "a") as file:
        file.write(f"{os.getpid()} {os.environ['OMP_NUM_THREADS']} {os.environ['NUMBA_THREADING_LAYER']}\n")
    if behaviour == "crash":
        return 3
    order = msgspec.json.decode(sys.stdin.buffer.readline())
    status = EngineFailed("ConfigError", "no such thing") if behaviour == "fail" else EngineReady(INFO)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 500
        router.bind(order["address"])
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        poller.register(sys.stdin.fileno(), zmq.POLLIN)
        while True:
            events = dict(poller.poll())
            if router in events:
                worker, frame = router.recv_multipart()
                if frame == b"":
                    router.send_multipart([worker, msgspec.msgpack.encode(status)])
                if behaviour == "die":
                    time.sleep(0.05)
                    return 7
            elif behaviour == "deaf":
                time.sleep(0.05)
            else:
                return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
