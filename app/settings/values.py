"""What settings may hold: each function gives a value back as it is used, or raises ValueError in plain words."""

import re
from ipaddress import ip_network
from typing import NamedTuple
from urllib.parse import urlsplit

_UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_RATE = re.compile(
    r"([1-9]\d{0,8})\s*(?:/|per\s)\s*([1-9]\d{0,4})?\s*(second|minute|hour|day)s?", re.ASCII | re.IGNORECASE
)
_ORIGIN = re.compile(r"https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?")
_USUAL_PORT = {"http": ":80", "https": ":443"}


class Rate(NamedTuple):
    """So many images in so many seconds."""

    images: int
    seconds: int


def rate(text: str) -> Rate:
    """``10/second``, ``600/minute``, ``1000/2hours``."""
    found = _RATE.fullmatch(text.strip())
    if not found:
        raise ValueError(f"{text!r} is not one rate above 0, such as 10/second, 600/minute or 1000/2hours")
    images, count, unit = found.groups()
    return Rate(int(images), int(count or 1) * _UNITS[unit.lower()])


def rate_limit(text: str) -> str:
    """A rate, or nothing."""
    if text:
        rate(text)
    return text.strip()


def parts(text: str) -> tuple[str, ...]:
    """What stands between commas."""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if text and not found:
        raise ValueError(f"{text!r} holds nothing but commas")  # an open server, were this taken for no keys
    return found


def keys(text: str) -> tuple[str, ...]:
    """API keys between commas; at least one, since a server without any serves everybody."""
    return parts(given(text))


def given(text: str) -> str:
    """What must not be empty where it is set."""
    if not text:
        raise ValueError("it is set but empty, which would serve everybody; unset it to ask for no key")
    return text


def model_name(text: str) -> str:
    """What may stand in a URL as one segment."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,128}", text) or text in (".", ".."):
        raise ValueError(
            f"{text!r} is no name for a model, such as cats-2026: it has letters, digits, `.`, `_` and `-`, at most"
            " 128, and is neither `.` nor `..`"
        )
    return text


def device(text: str) -> str:
    """A device by torch's name for it, or ``auto``."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]+)?", text):
        raise ValueError(f"{text!r} is no device: auto, cpu, mps, cuda, or one of several GPUs as cuda:1")
    return text


def prefix(text: str) -> str:
    """A path without the slash at its end, empty where it is the root."""
    path = text.rstrip("/")
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*", path) or {".", ".."} & set(path.split("/")):
        raise ValueError(
            f"{text!r} is no prefix, such as /vision: it begins with / and has letters, digits, `.`, `_`, `~` and `-`"
            " between slashes"
        )
    return path


def route(text: str) -> str:
    """A path as it stands: braces would be parameters."""
    if not re.fullmatch(r"/[^?#\s{}]*", text):
        raise ValueError(f"{text!r} is no path, such as /predict: it begins with / and has no space, ?, #, {{ or }}")
    return text


def origin(text: str) -> str:
    """An origin as browsers send it, or ``*``."""
    if text == "*":
        return text
    such = "such as https://page.example or http://localhost:3000"
    if "*" in text:
        raise ValueError(f"{text!r}: only * alone stands for others; name each origin, {such}")
    if not text.isascii():
        raise ValueError(f"{text!r}: browsers send such a host in ASCII, as xn--...; write it so")
    plain = text.lower()
    plain = plain.removesuffix(_USUAL_PORT.get(plain.partition(":")[0], ""))
    if not _ORIGIN.fullmatch(plain) or not _sound(plain):
        raise ValueError(f"{text!r} is no origin, {such}, without a path")
    if text != plain:
        raise ValueError(f"{text!r} is not how browsers send it: write {plain}")
    return text


def network(text: str) -> str:
    """An address, or a network of them."""
    try:
        ip_network(text)
    except ValueError:
        try:
            advice = f"; write {ip_network(text, strict=False)}"
        except ValueError:
            advice = ", such as 10.0.0.7 or 10.0.0.0/8"
        raise ValueError(f"{text!r} is no address or network{advice}") from None
    return text


def _sound(url: str) -> bool:
    """Whether the address and the port of a URL can be any."""
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False
