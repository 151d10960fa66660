"""Runs other people's clients and test suites against a real server on the demo model, and prints a table.

python conformance/run.py [--ci] [--write] [SUITE ...]; exit code 1 where a result is not the expected one.
"""

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from environments import MissingToolError, prepare, python_of, version_of
from results import Outcome, judge, read_expected
from suites import HERE, MODEL_NAMES, SUITES, WORK, Suite

TEXTS: Final = HERE.parent / "tests" / "data" / "longhorn-stories" / "val.jsonl"
DOCUMENT: Final = HERE.parent / "docs" / "api.md"
_TABLE: Final = re.compile(r"(?<=<!-- conformance -->\n).*?(?=<!-- end -->)", re.DOTALL)
_START_S: Final = 300
_SUITE_S: Final = 900


def main() -> int:
    """Run the suites that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ci", action="store_true", help="only those that run in CI")
    parser.add_argument("--write", action="store_true", help="put the table into docs/api.md; all must run")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=", ".join(suite.name for suite in SUITES))
    options = parser.parse_args()
    if unknown := set(options.suites) - {suite.name for suite in SUITES}:
        parser.error(f"no such suite: {', '.join(sorted(unknown))}")
    named = [suite for suite in SUITES if not options.suites or suite.name in options.suites]
    outcomes = run([suite for suite in named if suite.is_in_ci or not options.ci])
    table = format_table(outcomes)
    print(f"\n{table}")
    if options.write:
        if len(outcomes) != len(SUITES):
            sys.exit("the table in the document has all suites: run all to write it")
        DOCUMENT.write_text(_TABLE.sub(lambda _: table, DOCUMENT.read_text()))
    surprises = [f"{suite.name}: {text}" for suite, outcome in outcomes for text in outcome.surprises]
    print("\n".join(surprises) or "As expected.")
    return 1 if surprises else 0


def run(suites: list[Suite]) -> list[tuple[Suite, Outcome]]:
    """Prepare, serve, and run one suite after the other."""
    WORK.mkdir(parents=True, exist_ok=True)
    ready = []
    for suite in suites:
        print(f"preparing {suite.name}", flush=True)
        try:
            prepare(suite)
        except MissingToolError as error:
            print(f"\n***** {suite.name} IS NOT RUN: {error} *****\n", flush=True)
            continue
        ready.append(suite)
    expected = read_expected(HERE / "expected.toml")
    outcomes = []
    with serving() as url:
        for suite in ready:
            print(f"running {suite.name}", flush=True)
            report = report_of(suite, _environment(suite, url))
            outcomes.append((suite, judge(report, expected.get(suite.name, []))))
    return outcomes


def report_of(suite: Suite, environment: dict[str, str]) -> Path:
    """Run a suite; returns its JUnit report. Its output is kept beside that."""
    report, log = WORK / f"{suite.name}.xml", WORK / f"{suite.name}.log"
    report.unlink(missing_ok=True)
    if suite.environment == "node":
        reporter = ["--test-reporter=junit", f"--test-reporter-destination={report}"]
        command = ["node", "--test", *reporter, *suite.arguments]
    else:
        pytest = ["-m", "pytest", "-p", "no:cacheprovider", "-q", "-rP", "--tb=short", f"--junitxml={report}"]
        command = [str(python_of(suite.environment)), *pytest, *suite.arguments]
    with log.open("w") as output:
        subprocess.run(
            command, cwd=suite.directory, env=environment, stdout=output, stderr=output, timeout=_SUITE_S
        )
    if not report.is_file():
        sys.exit(f"{suite.name} wrote no report; its output is in {log}")
    return report


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """A server on the demo model; gives its URL."""
    names = [part for name in MODEL_NAMES for part in ("--served-model-name", name)]
    command = [sys.executable, "-c", "from remuda.server.cli import main; main()", "serve", "demo"]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([*command, "--port", "0", "--num-slots", "8", *names], stderr=log)
        try:
            deadline = time.monotonic() + _START_S
            while (found := re.search(r"ready at (http://\S+)", _text_of(log))) is None:
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"the server did not start:\n{_text_of(log)}")
                time.sleep(0.1)
            yield found[1]
            if process.poll() is not None:
                sys.exit(f"the server ended:\n{_text_of(log)}")
        finally:
            process.terminate()
            process.wait(60)


def format_table(outcomes: list[tuple[Suite, Outcome]]) -> str:
    """A row for each suite, in Markdown."""
    lines = ["| Suite | Version | Passed | Expected failures | Skipped |", "|---|---|---|---|---|"]
    for suite, outcome in outcomes:
        reasons = "; ".join(f"{count}: {reason}" for reason, count in outcome.expected.items()) or "0"
        version = f"{suite.package} {version_of(suite)}"
        cells = [suite.name, version, str(outcome.num_passed), reasons, str(outcome.num_skipped)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _environment(suite: Suite, url: str) -> dict[str, str]:
    """What the suites are told; nothing of theirs is to look for other servers."""
    figures = {"REMUDA_NLL": _engine_nll()} if suite.name == "lm-eval" else {}
    return {
        **os.environ,
        "PYTHONPATH": "",
        "REMUDA_URL": f"{url}/v1",
        "TEST_API_BASE_URL": f"{url}/v1",
        "OPENAI_BASE_URL": f"{url}/v1",
        "OPENAI_API_KEY": "none",
        "HF_HUB_OFFLINE": "1",
        "LANGSMITH_TRACING": "false",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LLM_USER_PATH": str(WORK / "llm"),
        **figures,
    }


def _engine_nll() -> str:
    """What lm-eval's figure is held against."""
    command = [sys.executable, str(HERE / "engine_nll.py"), str(TEXTS)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _text_of(log: "tempfile._TemporaryFileWrapper[str]") -> str:
    log.seek(0)
    return log.read()


if __name__ == "__main__":
    sys.exit(main())
