"""How fast is the GPU path, against what the machine can do and against other projects' code?

Every speed stands behind a check of what was timed; a row whose check fails says WRONG and the exit code is 1.
Usage: python benchmarks/gpu.py [--only kernels,decode,…] [--layers N] [--rounds N] [--seconds N] [--json FILE]
"""

import argparse
import importlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from gpu_lab import Case, Lab, Row, WrongResult, machine_notes

from remuda.engine.errors import ConfigError

if TYPE_CHECKING:
    from gpu_shapes import Options

# Section to module, function and title, in the order in which they run.
_SECTIONS: Final = {
    "checks": ("gpu_checks", "run", "Correctness"),
    "kernels": ("gpu_kernels", "run", "Kernels"),
    "decode": ("gpu_decode", "run", "Decode step, whole model"),
    "prefill": ("gpu_prefill", "run", "Prefill, whole model"),
    "engine": ("gpu_load", "run", "Engine end to end"),
    "million": ("gpu_prefill", "run_million", "A prompt of a million tokens"),
    "peers": ("gpu_peers", "run", "Peers"),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(_SECTIONS), help="sections, with commas")
    parser.add_argument("--models", help="model shapes with commas, instead of 1.3B,130M")
    parser.add_argument("--batches", help="decode batches with commas")
    parser.add_argument("--slots", help="sequences of the end-to-end load that run at a time, with commas")
    parser.add_argument("--states", help="state dtypes of decode and engine, with commas: float32,bfloat16")
    parser.add_argument("--layers", type=int, help="layers, instead of the shapes' own")
    parser.add_argument("--rounds", type=int, default=9, help="measurements whose median is taken")
    parser.add_argument("--seconds", type=float, default=240, help="a section begins no further row after that")
    parser.add_argument("--prefill-chunk", default="", help="tokens, several with commas; default: the engine's")
    parser.add_argument("--max-batch-tokens", type=int, help="default: the engine's")
    parser.add_argument("--temperature", type=float, default=0.0, help="of what is timed; checks are greedy")
    parser.add_argument("--deterministic", action="store_true", help="the engine's deterministic mode")
    parser.add_argument("--profile", action="store_true", help="decode, prefill: the longest kernels, no speeds")
    parser.add_argument("--json", type=Path, help="append the tables to this file, one JSON object a line")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes; on a cpu: a dry run that times nothing")
    args = parser.parse_args()
    unknown = set(args.only.split(",")) - set(_SECTIONS)
    if unknown:
        parser.error(f"unknown sections: {', '.join(sorted(unknown))}; there are {', '.join(_SECTIONS)}")
    unknown = set((args.states or "").split(",")) - {"", "float32", "bfloat16", "float16"}
    if unknown:
        parser.error(f"unknown state dtypes: {', '.join(sorted(unknown))}")
    if args.device == "cpu" and not args.tiny:
        parser.error("--device cpu needs --tiny: the kernels are interpreted there")
    return args


def make_options(args: argparse.Namespace) -> "Options":
    from gpu_shapes import FULL, TINY, Options

    sizes = TINY if args.tiny else FULL
    changes: dict[str, Any] = {}
    if args.models:
        changes["models"] = tuple(args.models.split(","))
    if args.batches:
        changes["decode_batches"] = tuple(int(batch) for batch in args.batches.split(","))
    if args.slots:
        changes["load_slots"] = tuple(int(number) for number in args.slots.split(","))
    if args.states:
        changes["state_dtypes"] = tuple(getattr(torch, name) for name in args.states.split(","))
    return Options(
        sizes=replace(sizes, **changes),
        num_layers=args.layers,
        prefill_chunks=tuple(int(chunk) for chunk in args.prefill_chunk.split(",") if chunk) or (None,),
        max_batch_tokens=args.max_batch_tokens,
        temperature=args.temperature,
        is_profiling=args.profile,
        is_deterministic=args.deterministic,
    )


def run_cases(cases: Iterator[Case], deadline: float) -> Iterator[Row]:
    """A row a case; what fails is a row too. Ends early where a section cannot be set up."""
    while True:
        case = None
        try:
            # May set up a model, and frees the one before, which `case` holds no longer.
            case = next(cases, None)
            if case is None:
                return
            if time.monotonic() > deadline:
                yield {"case": f"{case.name}, and what follows", "check": "skipped: --seconds"}
                return
            found = case.run()
        except WrongResult as error:
            yield {"case": _name(case), "check": f"WRONG: {_line(error)}"}
        except (torch.OutOfMemoryError, ConfigError) as error:
            yield {"case": _name(case), "check": f"does not fit: {_line(error)}"}
        except Exception as error:
            # One broken case must not cost the others their time on the machine; the exit code tells of it.
            logging.exception("%s", _name(case))
            yield {"case": _name(case), "check": f"FAILED: {type(error).__name__}: {_line(error)}"}
        else:
            for row in found if isinstance(found, list) else [found]:
                yield {"case": case.name, "check": "ok"} | row


def _name(case: Case | None) -> str:
    return case.name if case else "setting up a model"


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:80]


def tabulate(rows: list[Row]) -> list[Row]:
    """The same columns for every row, the check last; as text what two decimals would make zero."""
    columns = [name for row in rows for name in row if name != "check"]
    ordered = [*dict.fromkeys(columns), "check"]

    def cell(name: str, row: Row) -> Any:
        value = row.get(name, "")
        if not isinstance(value, float):
            return value
        return f"{value:.1e}" if "error" in name else f"{value:,.3f}" if "ms" in name else value

    return [{name: cell(name, row) for name in ordered} for row in rows]


def publish(title: str, rows: list[Row], notes: list[str], path: Path | None) -> None:
    from report import machine, report

    report(title, tabulate(rows), notes)
    sys.stdout.flush()
    if path is not None:
        with path.open("a") as file:
            record = {"benchmark": title, "machine": machine(), "notes": notes, "rows": rows}
            file.write(json.dumps(record) + "\n")


def run_section(name: str, lab: Lab, options: "Options", seconds: float, path: Path | None) -> bool:
    """Print the section's table; whether nothing in it was wrong."""
    module, function, title = _SECTIONS[name]
    cases = getattr(importlib.import_module(module), function)(lab, options)
    began, rows = time.monotonic(), []
    for row in run_cases(cases, began + seconds):
        shown = ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                          for key, value in row.items() if key != "case")  # fmt: skip
        print(f"[{time.monotonic() - began:6.1f} s] {name}: {row['case']}: {shown}", file=sys.stderr, flush=True)
        rows.append(row)
        lab.release()
    copy, gemm = lab.ceilings.copy / 1e9, lab.ceilings.gemm / 1e12
    ceilings = f"ceilings of this run: copy {copy:,.0f} GB/s, bf16 product {gemm:,.0f} TFLOP/s"
    publish(title, rows, [*machine_notes(lab), ceilings], path)
    return not any(str(row["check"]).startswith(("WRONG", "FAILED")) for row in rows)


def main() -> None:
    args = parse()
    if args.device == "cpu":
        # Before triton is loaded.
        os.environ["TRITON_INTERPRET"] = "1"
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device; --device cpu --tiny is a dry run")
    lab = Lab(torch.device(args.device), rounds=2 if args.device == "cpu" else args.rounds)
    notes = machine_notes(lab)
    publish("Ceilings", [row | {"check": "ok"} for row in lab.measure_ceilings()], notes, args.json)
    lab.release()
    options, wanted, is_right = make_options(args), args.only.split(","), True
    for name in _SECTIONS:
        if name in wanted:
            is_right &= run_section(name, lab, options, args.seconds, args.json)
    sys.exit(0 if is_right else 1)


if __name__ == "__main__":
    main()
