"""Child processes that run a module of this package. The first thing they do is ``signals.leave_to_parent``."""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import app
from app import signals


def start(
    module: str, *arguments: str, descriptors: Sequence[int] = (), stdout: int | None = None
) -> "subprocess.Popen[bytes]":
    """``python -m module arguments``, with these descriptors of ours; its standard input is a pipe."""
    with signals.held_back():
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=stdout,
            pass_fds=descriptors,
            env=_environment(),
        )


def _environment() -> dict[str, str]:
    """With it and ``-P`` a child finds the package that we are, and no other in the working directory."""
    home = str(Path(app.__file__).parents[1])
    if home in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        return dict(os.environ)
    path = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path}
