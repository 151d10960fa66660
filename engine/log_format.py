"""How this program writes its logs to stderr: lines of text, or one JSON object a line. For every process."""

import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec

LogFormat = Literal["text", "json"]

# The attribute of a record with which a logger adds named values: a dict of what JSON can hold.
FIELDS: Final = "fields"


class JsonFormatter(logging.Formatter):
    """One JSON object: time, level, logger, message, the record's own fields, and an exception's text."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        value: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            value["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(value).decode()


class TextFormatter(logging.Formatter):
    """`time level name: message`, then the record's own fields as `name=value`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line, before an exception's text."""
        line = super().formatMessage(record)
        fields = getattr(record, FIELDS, {})
        named = (f"{name}={_plain(value)}" for name, value in fields.items() if value is not None)
        return " ".join([line, *named])


def configure_logging(level: str, log_format: LogFormat = "text") -> None:
    """Send the root logger to stderr, unless this process has configured it already."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])


def _plain(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
