"""The errors that a user can cause, as one small tree. Each message names the value and the limit."""


class RemudaError(Exception):
    """Base of every error that Remuda raises on purpose."""


class ConfigError(RemudaError, ValueError):
    """An option, or a combination of options, that cannot be honoured."""


class CheckpointError(RemudaError):
    """A checkpoint that cannot be found, read or understood; the message names the file or tensor."""


class InvalidRequestError(RemudaError, ValueError):
    """A request that cannot be honoured as it stands; `param` names the offending field."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class QueueFullError(RemudaError):
    """The queue of waiting requests is at its limit; the same request may succeed later."""


class EngineDeadError(RemudaError):
    """The engine process ended, or answered with a failure, while the request was running."""


class UnhealthyStateError(RemudaError):
    """A sequence's logits are no longer finite; only that sequence ends."""
