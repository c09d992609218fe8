"""Child processes that run a module of this package. A child calls ``signals.leave_to_parent`` first."""

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
    """Start ``python -m module arguments``, which inherits ``descriptors``. Its standard input is a pipe.

    ``environment`` is added to this process's. With ``own_group`` the child leads a process group, so that it can be
    killed together with its own children.
    """
    with signals.blocked():
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=stdout,
            pass_fds=descriptors,
            env=_environment() | dict(environment),
            process_group=0 if own_group else None,
        )


def _environment() -> dict[str, str]:
    """The environment with which, together with ``-P``, a child imports this package and not one in its directory."""
    home = str(Path(app.__file__).parents[1])
    if home in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        return dict(os.environ)
    path = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path}
