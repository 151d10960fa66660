"""How to draw the tokens of one request, and when to stop. Validated once, at the door."""

import math
from typing import Final, Literal

import msgspec

from remuda.engine.errors import InvalidRequestError
from remuda.engine.grammar import Grammar

MAX_LOGPROBS: Final = 20
MAX_STOP_STRINGS: Final = 16
MAX_STOP_STRING_CHARS: Final = 256
MAX_STOP_TOKEN_IDS: Final = 256
MAX_LOGIT_BIAS: Final = 1024
MAX_CHOICES: Final = 128
MAX_NEW_TOKENS: Final = 2**31 - 1
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

Pooling = Literal["last", "mean"]
_POOLINGS: Final = ("last", "mean")


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of one request. Names and meanings follow the OpenAI API and vLLM's extras.

    temperature: 0 (and less than 1e-5) is greedy; above, logits are divided by it.
    top_p, top_k, min_p: keep the smallest set of mass `top_p`, the `top_k` likeliest (0: all), and
        tokens at least `min_p` times as likely as the likeliest. Applied in the order k, p, min_p,
        all after the temperature.
    repetition_penalty: > 1 discourages tokens of prompt and output (Keskar et al. 2019, CTRL, eq. 3.1).
    presence_penalty, frequency_penalty: subtracted once, and once per occurrence, for output tokens.
    logit_bias: added to the logits of the given token ids.
    seed: the tokens depend on it, the prompt and the parameters alone; None draws one.
    stop: strings that end the text. stop_token_ids: ids that end it. include_stop_str_in_output: what ended
        the text, string or id, is shown at its end.
    ignore_eos: go on past the model's end-of-sequence ids.
    min_tokens, max_tokens: bounds of the number of new tokens; `max_tokens=0` only reads the prompt.
    n: independent continuations of one prompt, which is read once.
    logprobs, prompt_logprobs: with the chosen token's log-probability (of the model's distribution,
        before temperature and penalties) give that many of the likeliest; None gives none.
    skip_special_tokens: leave special tokens out of the text.
    priority: among those who wait for a slot, the lowest goes first.
    pooling: give the prompt's hidden state after the last norm, of its last token or the mean over its
        tokens. Nothing is drawn then: `max_tokens` must be 0, and `n` 1.
    grammar: the texts that are allowed; the sequence may end only where one is complete, which goes before
        min_tokens, and ends by itself where it cannot go on.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    max_tokens: int = 16
    n: int = 1
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    priority: int = 0
    pooling: Pooling | None = None
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        self._take_plain_forms()
        self._check_types()
        _check_float("temperature", self.temperature, 0.0, 2.0)
        _check_float("top_p", self.top_p, 0.0, 1.0, low_open=True)
        _check_int("top_k", self.top_k, -1, INT64_MAX)
        _check_float("min_p", self.min_p, 0.0, 1.0)
        _check_float("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        _check_float("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_float("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if self.seed is not None:
            _check_int("seed", self.seed, INT64_MIN, INT64_MAX)
        _check_int("max_tokens", self.max_tokens, 0, MAX_NEW_TOKENS)
        _check_int("min_tokens", self.min_tokens, 0, self.max_tokens)
        _check_int("n", self.n, 1, MAX_CHOICES)
        _check_int("priority", self.priority, INT64_MIN, INT64_MAX)
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _check_int(name, getattr(self, name), 0, MAX_LOGPROBS)
        _check_count("stop", len(self.stop), MAX_STOP_STRINGS)
        for text in self.stop:
            if not 1 <= len(text) <= MAX_STOP_STRING_CHARS:
                raise InvalidRequestError(
                    f"stop: each string must have 1 to {MAX_STOP_STRING_CHARS} characters, one has {len(text)}",
                    param="stop",
                )
        _check_count("stop_token_ids", len(self.stop_token_ids), MAX_STOP_TOKEN_IDS)
        _check_count("logit_bias", len(self.logit_bias), MAX_LOGIT_BIAS)
        for bias in self.logit_bias.values():
            _check_float("logit_bias", bias, -100.0, 100.0)
        self._check_pooling()

    def _check_pooling(self) -> None:
        if self.pooling is None:
            return
        if self.pooling not in _POOLINGS:
            raise InvalidRequestError(f"pooling must be last or mean, not {self.pooling!r}", param="pooling")
        if self.max_tokens != 0 or self.n != 1 or self.prompt_logprobs is not None:
            message = "pooling needs max_tokens to be 0, n to be 1, and no prompt_logprobs"
            raise InvalidRequestError(message, param="pooling")

    def _take_plain_forms(self) -> None:
        """A stop string alone, and lists where tuples stand, are meant as the obvious."""
        for name in ("stop", "stop_token_ids"):
            value: object = getattr(self, name)
            if name == "stop" and isinstance(value, str):
                value = (value,)
            if not isinstance(value, tuple | list):
                raise InvalidRequestError(f"{name} must be a list, not {value!r}", param=name)
            msgspec.structs.force_setattr(self, name, tuple(value))

    def _check_types(self) -> None:
        """The constructor of a Struct takes anything; a wrong type must not get as far as a running batch."""
        for name, allowed in _TYPES.items():
            value = getattr(self, name)
            items = value if isinstance(value, tuple) else (value,)
            for item in items:
                # True is an int to Python, and a mistake here.
                if not isinstance(item, allowed) or (isinstance(item, bool) and bool not in allowed):
                    kind = type(item).__name__
                    raise InvalidRequestError(f"{name} has the wrong type, {kind}", param=name)
        for token, bias in self.logit_bias.items():
            if not isinstance(token, int) or not isinstance(bias, int | float):
                raise InvalidRequestError(f"logit_bias must map ids to numbers, not {token!r}", param="logit_bias")

    @property
    def is_penalised(self) -> bool:
        """The penalties ask which tokens the prompt and the output have."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise InvalidRequestError for an id of `logit_bias` or `stop_token_ids` outside [0, vocab_size)."""
        for name in ("logit_bias", "stop_token_ids"):
            for token in getattr(self, name):
                if not 0 <= token < vocab_size:
                    shown = _shown(token)
                    raise InvalidRequestError(
                        f"{name}: token id {shown} is outside the vocabulary [0, {vocab_size})", param=name
                    )


_NUMBER = (int, float)
_OPTIONAL_INT = (int, type(None))
# Of tuples, the type of each item.
_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "top_k": (int,),
    "min_p": _NUMBER,
    "repetition_penalty": _NUMBER,
    "presence_penalty": _NUMBER,
    "frequency_penalty": _NUMBER,
    "logit_bias": (dict,),
    "seed": _OPTIONAL_INT,
    "stop": (str,),
    "stop_token_ids": (int,),
    "include_stop_str_in_output": (bool,),
    "ignore_eos": (bool,),
    "min_tokens": (int,),
    "max_tokens": (int,),
    "n": (int,),
    "logprobs": _OPTIONAL_INT,
    "prompt_logprobs": _OPTIONAL_INT,
    "skip_special_tokens": (bool,),
    "priority": (int,),
    "pooling": (str, type(None)),
    "grammar": (Grammar, type(None)),
}


def _check_float(name: str, value: float, low: float, high: float, *, low_open: bool = False) -> None:
    below = value <= low if low_open else value < low
    if not math.isfinite(value) or below or value > high:
        bracket = "(" if low_open else "["
        raise InvalidRequestError(f"{name} must be in {bracket}{low:g}, {high:g}], not {value!r}", param=name)


def _check_int(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidRequestError(f"{name} must be in [{low}, {high}], not {_shown(value)}", param=name)


def _shown(value: int) -> str:
    """A number for a message: thousands of digits would be no help."""
    return str(value) if abs(value) <= INT64_MAX else "a larger number"


def _check_count(name: str, count: int, limit: int) -> None:
    if count > limit:
        raise InvalidRequestError(f"{name} may have at most {limit} entries, not {count}", param=name)
