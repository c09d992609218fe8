"""Validation of settings' values. Each function returns the value to use, or raises ValueError with what to write."""

import re
from difflib import get_close_matches
from ipaddress import ip_network
from typing import NamedTuple

from pydantic import HttpUrl, ValidationError

_UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_RATE = re.compile(
    r"([1-9]\d{0,8})\s*(?:/|per\s)\s*([1-9]\d{0,4})?\s*(second|minute|hour|day)s?", re.ASCII | re.IGNORECASE
)
_DEFAULT_PORT = {"http": 80, "https": 443}
_APP_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@]*")
_NO_PAGES = ("ftp", "ws", "wss")
_ORIGIN_HOST = re.compile(r"[a-z0-9._-]+|\[[0-9a-f:.]+\]")


class Rate(NamedTuple):
    """A number of images per number of seconds."""

    images: int
    seconds: int


def rate(text: str) -> Rate:
    """Parse ``10/second``, ``600/minute`` or ``1000/2hours``."""
    found = _RATE.fullmatch(text.strip())
    if not found:
        raise ValueError(f"{text!r} is not a rate above 0; write it as 10/second, 600/minute or 1000/2hours")
    images, count, unit = found.groups()
    return Rate(int(images), int(count or 1) * _UNITS[unit.lower()])


def rate_limit(text: str) -> str:
    """A rate, or an empty string for none."""
    if text:
        rate(text)
    return text.strip()


def parts(text: str) -> tuple[str, ...]:
    """Split at commas. A value of nothing but commas is an error: for API keys it would mean no keys."""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if text and not found:
        raise ValueError(f"{text!r} contains only commas")
    return found


def keys(text: str) -> tuple[str, ...]:
    """Comma-separated API keys, at least one."""
    return parts(not_empty(text))


def not_empty(text: str) -> str:
    """Refuse an empty value where it would open the service to everyone."""
    if not text:
        raise ValueError("it is set but empty, which would let everyone in; unset it to require no key")
    return text


def model_name(text: str) -> str:
    """A model name, which must be one segment of a URL's path."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,128}", text) or text in (".", ".."):
        raise ValueError(
            f"{text!r} is not a model name; use 1 to 128 letters, digits, `.`, `_` and `-`, such as cats-2026, but"
            " neither `.` nor `..`"
        )
    return text


def device(text: str) -> str:
    """A device by torch's name, or ``auto``."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]+)?", text):
        raise ValueError(f"{text!r} is not a device; choose auto, cpu, mps, cuda, or one of several GPUs as cuda:1")
    return text


def prefix(text: str) -> str:
    """A path without a trailing slash; empty for the root."""
    path = text.rstrip("/")
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*", path) or {".", ".."} & set(path.split("/")):
        raise ValueError(
            f"{text!r} is not a path prefix; start it with / and use letters, digits, `.`, `_`, `~` and `-` between"
            " slashes, as in /vision"
        )
    return path


def route(text: str) -> str:
    """A path without a query. Braces would be path parameters."""
    if not re.fullmatch(r"/[^?#\s{}]*", text):
        raise ValueError(f"{text!r} is not a path; start it with / and use no space, ?, #, {{ or }}, as in /predict")
    return text


def origin(text: str) -> str:
    """An origin exactly as browsers send it, ``null``, or ``*``. Apps and extensions have schemes of their own."""
    if text in ("*", "null"):
        return text
    example = "such as https://page.example or http://localhost:3000"
    if "*" in text:
        raise ValueError(f"{text!r}: only * alone is a wildcard; list each origin, {example}")
    scheme, separator, _ = text.partition("://")
    if separator and scheme.lower() not in ("http", "https"):
        return _app_origin(text, scheme, example)
    try:
        url = HttpUrl(text)
    except ValidationError:
        raise ValueError(f"{text!r} is not an origin, {example}") from None
    bare = url.path in (None, "/") and not (url.username or url.password or url.query or url.fragment)
    if not bare or not url.port or not _ORIGIN_HOST.fullmatch(url.host or ""):
        raise ValueError(f"{text!r} is not an origin, {example}, without a path")
    port = "" if url.port == _DEFAULT_PORT[url.scheme] else f":{url.port}"
    if text != (sent := f"{url.scheme}://{url.host}{port}"):
        raise ValueError(f"{text!r} differs from what browsers send; write {sent}")
    return text


def _app_origin(text: str, scheme: str, example: str) -> str:
    """An origin such as ``capacitor://localhost``. Its host is not checked: each framework has rules of its own."""
    if scheme in _NO_PAGES or get_close_matches(scheme, _DEFAULT_PORT, cutoff=0.75):
        raise ValueError(f"{text!r} is not an origin, {example}: no page has the scheme {scheme}")
    if not _APP_ORIGIN.fullmatch(text):
        raise ValueError(
            f"{text!r} is not an origin, {example} or capacitor://localhost, with the scheme in lower case and no path"
        )
    return text


def network_hint(text: str) -> str:
    """What to write instead of an invalid IP address or network."""
    try:
        return f"write {ip_network(text, strict=False)}"
    except ValueError:
        return "write it as 10.0.0.7 or 10.0.0.0/8"


def current_protocol(name: str) -> str:
    """The current name of a protocol: ``v1`` was renamed to ``kserve-v1``, since it is not topk's own ``/v1``."""
    return "kserve-v1" if name == "v1" else name
