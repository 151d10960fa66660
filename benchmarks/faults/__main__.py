"""What breaks servers, done to a real one on the demo model: each figure beside its target.

Usage: python -m benchmarks.faults [--short] [TEST ...]. Exit code 1 where a target is missed. Jumps of the wall
clock are not here: no timeout reads it, which tests/server/test_clocks.py holds.
"""

import argparse
import sys
import time
from collections.abc import Callable

from benchmarks.faults import connections, deaths, load
from benchmarks.faults.table import Row, render
from benchmarks.report import machine

Tests = dict[str, Callable[[], list[Row]]]

FULL: Tests = {
    "disconnects": lambda: load.disconnects(20_000),
    "killed_engine": lambda: deaths.killed_engine(20),
    "hung_engine": deaths.hung_engine,
    "killed_worker": deaths.killed_worker,
    "hung_worker": deaths.hung_worker,
    "spent_budget": deaths.spent_budget,
    "drained": deaths.drained,
    "zero_rate_readers": lambda: connections.zero_rate_readers(200),
    "slowloris": lambda: connections.slowloris(1000),
    "overload": lambda: load.overload(15),
    "full_pool": load.full_pool,
    "soak": lambda: load.soak(300, 300),
}
# Under a minute on two cores.
SHORT: Tests = {
    "disconnects": lambda: load.disconnects(1000, num_waves=2),
    "killed_engine": lambda: deaths.killed_engine(1),
    "hung_engine": deaths.hung_engine,
    "killed_worker": deaths.killed_worker,
    "hung_worker": deaths.hung_worker,
    "drained": deaths.drained,
    "slowloris": lambda: connections.slowloris(100),
    "full_pool": load.full_pool,
}


def main() -> int:
    """Run the tests; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="fewer and smaller tests")
    parser.add_argument("tests", nargs="*", metavar="TEST", help=f"of {', '.join(FULL)}; by default all")
    args = parser.parse_args()
    tests = SHORT if args.short else FULL
    rows: list[Row] = []
    for name in args.tests or tests:
        began = time.monotonic()
        found = tests[name]()
        rows += found
        print(f"{name}, {time.monotonic() - began:.0f} s\n{render(found)}\n", flush=True)
    num_missed = sum(not row.is_met for row in rows)
    print(f"{render(rows)}\n\n{machine()}: {num_missed} of {len(rows)} targets missed")
    return 1 if num_missed else 0


if __name__ == "__main__":
    sys.exit(main())
