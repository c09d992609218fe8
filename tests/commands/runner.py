"""``topk`` in this process, through typer's runner."""

import logging
import resource
import subprocess

import structlog
from typer.testing import CliRunner

from app.commands.cli import app


def topk(*arguments: object, stdin: bytes | None = None, columns: int = 80) -> subprocess.CompletedProcess[str]:
    """Run a command as its process would, and restore the logging and the limits that it has changed."""
    root = logging.getLogger()
    handlers, level, config = root.handlers, root.level, structlog.get_config()
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    command = [str(argument) for argument in arguments]
    try:
        result = CliRunner(env={"COLUMNS": str(columns)}).invoke(app, command, input=stdin, prog_name="topk")
    finally:
        root.handlers = handlers
        root.setLevel(level)
        structlog.configure(**config)
        resource.setrlimit(resource.RLIMIT_NOFILE, files)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return subprocess.CompletedProcess(command, result.exit_code, result.stdout, result.stderr)
