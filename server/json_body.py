"""Reads a request's body as strict JSON: what is ambiguous or unbounded in it is a 400, not a guess."""

import asyncio
import json
import re
from collections.abc import Callable, Coroutine
from typing import Any, Final

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from remuda.server.errors import ApiError, ClientGoneError, api_error

BODY_TIMEOUT_S: Final = 30.0
# Objects, lists and names of one body together; and its strings. Each costs a microsecond or two of the event
# loop, and a conversation of ten thousand messages has fewer.
MAX_PARTS: Final = 65_536
# Larger bodies are parsed in a thread (about 5 ms of work).
_OFF_LOOP_BYTES: Final = 256 * 1024
_MARKS: Final = (b"{", b"[", b":")
# Possessive: nothing is kept to come back to, however long the string is.
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
# An escape that may begin a lone surrogate; bodies without one need no second look.
_SURROGATE_ESCAPE: Final = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_json(body: bytes) -> Any:
    """The value of a JSON text.

    Raises ApiError (400) for invalid UTF-8 or JSON, NaN and infinities, duplicate keys, lone surrogates,
    integers of thousands of digits, nesting beyond the interpreter's recursion limit, and too many parts.
    """
    _check_num_parts(body)
    try:
        value = json.loads(body.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
        if _SURROGATE_ESCAPE.search(body):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise _invalid(f"it is not UTF-8 (byte {error.start})") from error
    except UnicodeEncodeError as error:
        raise _invalid("a string holds half of a surrogate pair") from error
    except json.JSONDecodeError as error:
        raise _invalid(f"{error.msg} at line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise _invalid("it is nested too deeply") from error
    except ValueError as error:
        # int() refuses literals beyond sys.get_int_max_str_digits().
        raise _invalid("an integer has too many digits") from error
    return value


def _check_num_parts(body: bytes) -> None:
    """Marks in strings are text: where there are many, strings are left out, of which there may not be many."""
    num_quotes = body.count(b'"') - body.count(b'\\"')
    if num_quotes > 2 * MAX_PARTS or (
        _num_marks(body) > MAX_PARTS and _num_marks(_STRING.sub(b"", body)) > MAX_PARTS
    ):
        raise _invalid(f"it has more than {MAX_PARTS} objects, lists, names or strings")


def num_parts(text: bytes) -> int:
    """Objects, lists and names, or strings where they are more, of a JSON text, if it is one."""
    rest, num_strings = _STRING.subn(b"", text)
    return max(_num_marks(rest), num_strings)


def _num_marks(body: bytes) -> int:
    return sum(map(body.count, _MARKS))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _invalid("an object has the same key twice")
    return value


def _refuse_constant(name: str) -> Any:
    raise _invalid(f"{name} is not JSON")


def _invalid(reason: str) -> ApiError:
    return ApiError(400, f"the body is not valid JSON: {reason}", code="invalid_json")


class StrictRequest(Request):
    """A request whose body must arrive in time and be strict JSON."""

    async def body(self) -> bytes:
        """All bytes of the body.

        Raises ApiError: 408 where they take longer than BODY_TIMEOUT_S, 499 where the client leaves before.
        """
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                return await super().body()
        except ClientDisconnect as error:
            # FastAPI makes a 400 of what is no HTTPException.
            raise api_error(ClientGoneError("the client has closed its connection")) from error
        except TimeoutError as error:
            message = f"the body did not arrive within {BODY_TIMEOUT_S:g} s"
            raise ApiError(408, message, headers={"connection": "close"}) from error

    async def json(self) -> Any:
        """The body's value, by `parse_json`."""
        body = await self.body()
        if len(body) > _OFF_LOOP_BYTES:
            return await asyncio.to_thread(parse_json, body)
        return parse_json(body)


class StrictRoute(APIRoute):
    """A route whose handler sees a StrictRequest, and only bodies declared as plain JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's hook for a custom request class."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            _check_headers(request)
            return await handler(StrictRequest(request.scope, request.receive))

        return strict


def _check_headers(request: Request) -> None:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        shown = repr(content_type[:80]) if content_type else "missing"
        raise ApiError(400, f"the Content-Type must be application/json, it is {shown}")
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise ApiError(400, f"the Content-Encoding {encoding[:80]!r} is not supported")
