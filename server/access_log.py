"""The access log: one line for each request that has ended, by the logger `remuda.access`."""

import logging
from typing import Any

from remuda.engine.log_format import FIELDS
from remuda.server.request_record import PROBES, RequestRecord

logger = logging.getLogger("remuda.access")


def log_access(record: RequestRecord) -> None:
    """Log one request."""
    level = logging.DEBUG if record.route in PROBES and record.status < 400 else logging.INFO
    if logger.isEnabledFor(level):
        logger.log(level, "%s %s %d", record.method, record.path, record.status, extra={FIELDS: _fields(record)})


def _fields(record: RequestRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "request_id": record.request_id,
        "client": record.client,
        "method": record.method,
        "path": record.path,
        "status": record.status,
        "total_ms": _milliseconds(record.total_s),
    }
    meter = record.meter
    if meter is not None:
        fields |= {
            "prompt_tokens": record.num_prompt_tokens,
            "completion_tokens": record.num_output_tokens,
            "queue_ms": _milliseconds(meter.queued_s),
            "ttft_ms": _milliseconds(record.first_token_s),
            "finish_reasons": list(record.finish_reasons),
            "abort_reason": record.abort_reason,
        }
    if record.is_background:
        fields["background"] = True
    return fields


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)
