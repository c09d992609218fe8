"""The environment variables that settings are read from: those of the process, then those of ``.env``."""

import os
import re

from dotenv import dotenv_values

PREFIX, DOTENV = "TOPK_", ".env"

# Kubernetes sets such variables for every Service in the namespace. The Service may be called `topk`.
_SERVICE_LINK = re.compile(r".+_SERVICE_(HOST|PORT(_\w+)?)|.+_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?", re.I)
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://", re.I)


def environment() -> dict[str, str]:
    """The process's environment, then the variables of ``.env`` that it does not set, without service links."""
    variables = {**dotenv_values(DOTENV), **os.environ}
    return {name: value for name, value in variables.items() if value is not None and not is_service_link(name, value)}


def is_service_link(name: str, value: str | None) -> bool:
    """Whether Kubernetes sets such a variable: ``TOPK_SERVICE_HOST``, ``TOPK_PORT=tcp://...``, ``TOPK_PORT_80_TCP``."""
    if _SERVICE_LINK.fullmatch(name):
        return True
    return name.upper().endswith("_PORT") and bool(_SERVICE_URL.match(value or ""))
