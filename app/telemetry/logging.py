"""Structured logging to standard error, as text on a terminal and as JSON elsewhere."""

import logging
import sys
from collections.abc import Callable
from typing import Any

import structlog

from app.telemetry.stderr import Lines


def configure_logging(format: str, level: str) -> None:
    """One stream of structured lines on stderr: text on a terminal, JSON elsewhere, uvicorn's lines included."""
    text = format == "text" or (format == "auto" and sys.stderr.isatty())
    shared: list[Callable[..., Any]] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    ending: list[Callable[..., Any]] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if text:
        ending.append(
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                exception_formatter=structlog.dev.plain_traceback,  # the rich one prints every local, keys included
            )
        )
    else:
        ending += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    handler = Lines(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=ending, foreign_pre_chain=shared))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # what it says of clients and of itself is ours to say
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what it says of hostile files is ours to answer
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # of broken forms, the same
    for noisy in ("httpx2", "httpcore2", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("opentelemetry.exporter").setLevel(logging.ERROR)  # each retry is a warning
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
