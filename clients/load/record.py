"""What is noted of one request while it runs, by the clock of `time.perf_counter`; no network."""

from array import array
from dataclasses import dataclass, field

from remuda.clients.report.results import RequestResult


@dataclass
class Record:
    """Times are absolute. origin: from where latencies count: `due` in an open loop, in a closed one
    `sent`, which it becomes where it is 0.

    gaps: one for each token after the first. The tokens of one read came together: each has its share of the time
    since the read before, so that gaps add up to the time from the first token to the last.
    """

    due: float
    prompt_tokens: int = 0
    sent: float = 0.0
    # When the answer's status came.
    taken: float | None = None
    origin: float = 0.0
    first: float | None = None
    last: float = 0.0
    end: float | None = None
    output_tokens: int = 0
    gaps: "array[float]" = field(default_factory=lambda: array("d"))
    finish_reason: str | None = None
    error: str | None = None
    message: str = ""
    # The server's own count of output tokens, where it sent one.
    usage_tokens: int | None = None
    # By events, that is: less than the usage where an event brought several tokens.
    seen_tokens: int = 0

    def take(self, num_tokens: int, now: float) -> None:
        """So many tokens came at `now`."""
        self.seen_tokens += num_tokens
        if self.first is None:
            self.first = now
            self.gaps.extend([0.0] * (num_tokens - 1))
        else:
            self.gaps.extend([(now - self.last) / num_tokens] * num_tokens)
        self.last = now

    def fail(self, kind: str, message: str) -> None:
        """The first failure counts."""
        if self.error is None:
            self.error, self.message = kind, " ".join(message.split())[:200]

    @property
    def is_ok(self) -> bool:
        """It ended well."""
        return self.error is None and self.end is not None

    @property
    def ttft(self) -> float | None:
        """Seconds to the first token."""
        return None if self.first is None else self.first - self.origin

    @property
    def itl(self) -> float | None:
        """Mean gap, None of fewer than two tokens."""
        return sum(self.gaps) / len(self.gaps) if self.gaps else None

    @property
    def e2e(self) -> float | None:
        """Seconds to the end of a request that ended well."""
        return self.end - self.origin if self.end is not None and self.error is None else None

    @property
    def tpot(self) -> float | None:
        """(e2e − ttft) / (output tokens − 1)."""
        if self.e2e is None or self.ttft is None or self.output_tokens < 2:
            return None
        return (self.e2e - self.ttft) / (self.output_tokens - 1)

    def result(self, stage: int, start: float) -> RequestResult:
        """As a row; start: of the run."""
        return RequestResult(
            stage=stage,
            due=self.due - start,
            sent=self.sent - start,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            ttft=self.ttft,
            itl=self.itl,
            e2e=self.e2e,
            finish_reason=self.finish_reason,
            error=self.error,
        )
