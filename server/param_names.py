"""Errors of a shared function under the field names of the endpoint that calls it."""

from collections.abc import Iterator
from contextlib import contextmanager

from remuda.engine.errors import InvalidRequestError


@contextmanager
def renamed(field: str, to: str) -> Iterator[None]:
    """Within the block, an InvalidRequestError about `field`, or a part of it, is raised about `to`."""
    try:
        yield
    except InvalidRequestError as error:
        name, dot, rest = (error.param or "").partition(".")
        if name != field:
            raise
        message = str(error)
        if message.startswith(field):
            message = to + message[len(field) :]
        raise InvalidRequestError(message, param=to + dot + rest, code=error.code) from error
