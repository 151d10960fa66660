"""Numbers in words: the line after an answer, and `/stats`."""

from dataclasses import dataclass, field

from remuda.clients.chat.turn import Turn, TurnStats


def status_line(stats: TurnStats, state_bytes: int | None, *, is_stopped: bool = False) -> str:
    """Tokens, tokens/s, time to first token, context length, the state's bytes; what is not known is left out."""
    if stats.first_text is None and not is_stopped:
        return "waiting for the first token"
    about = "" if stats.usage is not None else "about "
    parts = [f"{about}{stats.num_tokens:,} tokens"]
    if stats.tokens_per_s is not None:
        parts.append(f"{about}{stats.tokens_per_s:,.1f}/s")
    if stats.first_text is not None:
        parts.append(f"first after {stats.first_text:.2f} s")
    if stats.context is not None:
        parts.append(f"context {stats.context:,}")
    if state_bytes is not None:
        parts.append(f"state {megabytes(state_bytes)}, constant")
    if is_stopped:
        parts.append("stopped")
    elif stats.finish_reason == "length":
        parts.append("cut by max_tokens")
    return " · ".join(parts)


def megabytes(num_bytes: int) -> str:
    """With three significant digits."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes / 1e3:.3g} kB"


@dataclass
class Totals:
    """Of the answers of this session. first_texts: seconds to the first token of each that had one."""

    num_turns: int = 0
    num_prompt_tokens: int = 0
    num_tokens: int = 0
    first_texts: list[float] = field(default_factory=list)
    last: TurnStats | None = None

    def add(self, turn: Turn) -> None:
        """An answer with any text."""
        if not turn.text:
            return
        stats = self.last = turn.stats
        self.num_turns += 1
        self.num_tokens += stats.num_tokens
        self.num_prompt_tokens += stats.usage.prompt_tokens if stats.usage is not None else 0
        if stats.first_text is not None:
            self.first_texts.append(stats.first_text)

    def lines(self, model: str, state_bytes: int | None) -> list[str]:
        """For `/stats`."""
        lines = [f"model: {model}", f"answers: {self.num_turns}, with {self.num_tokens:,} tokens"]
        lines.append(f"prompt tokens read: {self.num_prompt_tokens:,}")
        if self.first_texts:
            middle = sorted(self.first_texts)[len(self.first_texts) // 2]
            lines.append(f"time to first token, median: {middle:.2f} s")
        if self.last is not None:
            lines.append(f"last answer: {status_line(self.last, None)}")
        if state_bytes is not None:
            lines.append(f"state of a conversation: {state_bytes:,} bytes, however long it is")
        return lines
