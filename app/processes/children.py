"""Child processes that run a module of this package. The first thing they do is ``signals.leave_to_parent``."""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import app
from app.processes import signals


def start(
    module: str,
    *arguments: str,
    descriptors: Sequence[int] = (),
    stdout: int | None = None,
    environment: Mapping[str, str] = MappingProxyType({}),
    own_group: bool = False,
) -> "subprocess.Popen[bytes]":
    """Start ``python -m module arguments`` with these descriptors of ours; its standard input is a pipe.

    ``environment`` is added to ours. With ``own_group`` it leads a process group, to be killed with its children.
    """
    with signals.held_back():
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=stdout,
            pass_fds=descriptors,
            env=_environment() | dict(environment),
            process_group=0 if own_group else None,
        )


def _environment() -> dict[str, str]:
    """With it and ``-P`` a child finds the package that we are, and no other in the working directory."""
    home = str(Path(app.__file__).parents[1])
    if home in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        return dict(os.environ)
    path = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path}
