"""Log lines that lead to traces."""

import json
import logging
import sys
from datetime import UTC, datetime

from opentelemetry import trace

from mesh import telemetry
from mesh.settings import Settings


class _AddContext(logging.Filter):
    """Puts the service and the trace on every record."""

    def filter(self, record: logging.LogRecord) -> bool:
        current = trace.get_current_span().get_span_context()
        record.service = telemetry.service()
        record.trace_id = trace.format_trace_id(current.trace_id) if current.is_valid else ""
        record.span_id = trace.format_span_id(current.span_id) if current.is_valid else ""
        return True


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "service": getattr(record, "service", ""),
            "trace_id": getattr(record, "trace_id", ""),
            "span_id": getattr(record, "span_id", ""),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def setup(settings: Settings) -> None:
    """Sends log lines to stderr in the form that FEED_LOG_FORMAT asks for."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_AddContext())
    handler.setFormatter(
        _Json()
        if _as_json(settings)
        else logging.Formatter(
            "%(asctime)s %(levelname)-7s %(service)-13s %(message)s  %(trace_id)s"
        )
    )
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    # Every request is in a trace and a metric already.
    for noisy in ("uvicorn.access", "httpx", "alembic.runtime"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _as_json(settings: Settings) -> bool:
    if settings.log_format == "auto":
        return not sys.stderr.isatty()
    return settings.log_format == "json"
