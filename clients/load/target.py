"""Asks a server what it is: its model, what it understands beyond OpenAI's API, and which token ids it knows."""

from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit, urlunsplit

import aiohttp
import msgspec
import numpy as np

from remuda.clients.answers import UNREADABLE
from remuda.clients.load.errors import LoadError, UsageError
from remuda.clients.load.words import WORDS
from remuda.clients.report.results import Target

# As `owned_by` of `/v1/models` names them: servers that know `ignore_eos` and `continuous_usage_stats`.
_WITH_EXTRAS: Final = frozenset({"remuda", "vllm"})
_WITH_IGNORE_EOS: Final = _WITH_EXTRAS | {"sglang"}
_TIMEOUT: Final = aiohttp.ClientTimeout(total=30)


@dataclass(frozen=True)
class Found:
    """ids: token ids that may stand in a prompt, None where the server does not say. tokens_per_word: of WORDS.

    metrics_url: None where there are none.
    """

    target: Target
    has_ignore_eos: bool
    has_running_usage: bool
    ids: np.ndarray | None
    tokens_per_word: float
    metrics_url: str | None
    notes: list[str]


def base_url(url: str) -> str:
    """Without a path of `/v1` and a slash at the end. Raises UsageError for what is no http URL."""
    parts = http_parts(url, "--url")
    if parts.query or parts.fragment or parts.username or parts.password:
        raise UsageError(f"--url {url!r} is not http://HOST:PORT")
    return urlunsplit(parts._replace(path=parts.path.rstrip("/").removesuffix("/v1")))


def http_parts(url: str, flag: str) -> SplitResult:
    """Of an http URL. Raises UsageError for another, naming the flag that gave it."""
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise UsageError(f"{flag} {url!r}: {error}") from error
    if not is_good:
        raise UsageError(f"{flag} {url!r} is not http://HOST:PORT")
    return parts


def is_same_server(url: str, other: str) -> bool:
    """Whether what is meant for `url`, as a key is, may be sent to `other`."""
    one, two = urlsplit(url), urlsplit(other)
    return (one.scheme, one.netloc) == (two.scheme, two.netloc)


async def discover(
    session: aiohttp.ClientSession,
    url: str,
    model: str | None,
    vocab_size: int | None,
    metrics_session: aiohttp.ClientSession,
    metrics_url: str,
) -> Found:
    """Ask `url`; by `metrics_session` whether metrics are there. Raises LoadError where `url` cannot be reached or
    refuses.
    """
    models = await _models(session, url, model)
    card = next((card for card in models if card.get("id") == model), models[0] if models else {})
    owner = str(card.get("owned_by"))
    name = model or card.get("id")
    if not name:
        raise LoadError(f"{url} does not list a model; name one by --model")
    info = await _get_json(session, f"{url}/info")
    known = _scalars(info) if info and "slot_bytes" in info else None
    vocab_size = vocab_size or _int(known, "vocab_size")
    tokens = await _tokenize(session, url, str(name))
    ids = np.arange(vocab_size) if vocab_size else np.unique(tokens) if tokens else None
    notes = []
    if not await _is_there(metrics_session, metrics_url):
        notes.append(f"no metrics at {metrics_url}: nothing is known of the server's slots and memory")
    return Found(
        target=Target(url=url, model=str(name), info=known),
        has_ignore_eos=owner in _WITH_IGNORE_EOS,
        has_running_usage=owner in _WITH_EXTRAS,
        ids=ids,
        tokens_per_word=len(tokens) / len(WORDS) if tokens else 1.0,
        metrics_url=None if notes else metrics_url,
        notes=notes,
    )


async def _models(session: aiohttp.ClientSession, url: str, model: str | None) -> list[dict[str, Any]]:
    try:
        async with session.get(f"{url}/v1/models", timeout=_TIMEOUT) as response:
            status, page = response.status, await response.read()
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        raise LoadError(f"cannot reach {url}: {error or type(error).__name__}") from error
    if status in (401, 403):
        raise LoadError(f"{url} answers {status}: it wants a key; set --api-key or REMUDA_API_KEY")
    try:
        rows = msgspec.json.decode(page)["data"] if status == 200 else []
        return [row for row in rows if isinstance(row, dict)]
    except (*UNREADABLE, KeyError, TypeError) as error:
        if model is None:
            raise LoadError(f"{url}/v1/models is not a list of models; name one by --model") from error
        return []


async def _get_json(session: aiohttp.ClientSession, url: str) -> dict[str, Any] | None:
    try:
        async with session.get(url, timeout=_TIMEOUT) as response:
            found = msgspec.json.decode(await response.read()) if response.status == 200 else None
    except (TimeoutError, aiohttp.ClientError, OSError, *UNREADABLE):
        return None
    return found if isinstance(found, dict) else None


async def _tokenize(session: aiohttp.ClientSession, url: str, model: str) -> list[int]:
    """Ids of the words of WORDS; none where the server has no `/tokenize`."""
    body = msgspec.json.encode({"model": model, "prompt": " ".join(WORDS), "add_special_tokens": False})
    try:
        async with session.post(f"{url}/tokenize", data=body, timeout=_TIMEOUT) as response:
            found = msgspec.json.decode(await response.read()) if response.status == 200 else {}
    except (TimeoutError, aiohttp.ClientError, OSError, *UNREADABLE):
        return []
    tokens = found.get("tokens") if isinstance(found, dict) else None
    return [token for token in tokens if isinstance(token, int)] if isinstance(tokens, list) else []


async def _is_there(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url, timeout=_TIMEOUT) as response:
            page = await response.read()
            return response.status == 200 and b"# TYPE" in page
    except (TimeoutError, aiohttp.ClientError, OSError):
        return False


def _scalars(info: dict[str, Any]) -> dict[str, str | int | float | bool | None]:
    return {key: value for key, value in info.items() if value is None or isinstance(value, str | int | float)}


def _int(info: dict[str, str | int | float | bool | None] | None, key: str) -> int | None:
    value = (info or {}).get(key)
    return value if isinstance(value, int) else None
