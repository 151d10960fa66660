"""Prints what the offline engine gives a file of texts: the negative log-likelihood of all its tokens, in nats."""

import json
import math
import sys
from pathlib import Path

from remuda.engine import Engine, SamplingParams


def main(path: str) -> None:
    """path: a file of JSON lines, each with a `text`."""
    texts = [json.loads(line)["text"] for line in Path(path).read_text().splitlines()]
    results = Engine("demo").generate(texts, SamplingParams(max_tokens=0, prompt_logprobs=0))
    entries = [entry for result in results for entry in result.prompt_logprobs or [] if entry is not None]
    print(-math.fsum(entry.logprob for entry in entries))


if __name__ == "__main__":
    main(sys.argv[1])
