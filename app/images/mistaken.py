"""Recognises what clients send in place of an image file, for error messages."""

import binascii
import codecs
import re
from urllib.parse import unquote_to_bytes

from app.images.formats import sniff

_HEAD = 4096  # bytes that decide whether a file may be text
_MOST = 2**20  # bytes that are read to be sure
_SURE = 16  # bytes outside ASCII: fewer may form UTF-8 by chance
_ASCII = bytes(range(128))
_REPLACEMENT = "\ufffd".encode()  # what a decoder writes for bytes that are no text
_BEFORE = re.compile(rb"(?:\xef\xbb\xbf|\xff\xfe|\xfe\xff|[ \t\r\n\v\f])+")
_TEXT_CODECS = ("latin-1", "cp1252")

_BASE64_HEAD = 512  # characters that show the format
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def describe(data: bytes, format: str | None) -> str | None:
    """What the bytes look like and what to send, or None. ``format`` is the one that ``sniff`` has found."""
    if format is None:
        return _describe_unknown(data)
    if format == "BMP" and int.from_bytes(data[2:6], "little") == len(data):
        return None  # the pixels of a plain picture may form UTF-8
    return _read_as_text() if _is_text(data) else None


def sniff_base64(text: bytes) -> str | None:
    """Return the format of an image in base64, judged by its beginning. It may be percent-encoded."""
    head = text[:_BASE64_HEAD].removeprefix(codecs.BOM_UTF8)
    if not head.isascii():
        return None
    digits = b"".join(unquote_to_bytes(head).translate(_URL_SAFE).split()).rstrip(b"=")
    try:
        return sniff(binascii.a2b_base64(digits[: len(digits) & ~3], strict_mode=True))
    except binascii.Error:
        return None


def _describe_unknown(data: bytes) -> str | None:
    head = data[:_HEAD]
    if (before := _BEFORE.match(head)) and (format := sniff(head[before.end() :])):
        return (
            f"the bytes look like a {format} image that begins at byte {before.end()}, behind white space or a"
            " byte-order mark; send the bytes of the file alone"
        )
    if format := sniff_base64(head):
        return f"the bytes look like a {format} image in base64; send the decoded bytes"
    if head.startswith(b"\x89PNG"):
        return "the bytes look like a PNG whose line breaks were converted; transfer the file as binary"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "the bytes look like UTF-16 text, not like an image; send the bytes of the file unchanged"
    text = _as_text(head)
    if text and ("\ufffd" in text or any(sniff(text.encode(codec, "replace")) for codec in _TEXT_CODECS)):
        return _read_as_text()
    return None


def _read_as_text() -> str:
    return (
        "the bytes look like an image that was read as text, which changes its bytes; read the file as binary, in"
        " JavaScript as a Blob or an ArrayBuffer, and send its bytes unchanged"
    )


def _is_text(data: bytes) -> bool:
    """Whether the beginning of a file is UTF-8 with characters outside ASCII, as no image is."""
    if _as_text(data[:_HEAD]) is None or _as_text(data[:_MOST]) is None:
        return False
    data = data[:_MOST]
    return _REPLACEMENT in data or len(data.translate(None, _ASCII)) >= _SURE


def _as_text(data: bytes) -> str | None:
    """The text of the bytes, the last of which may be incomplete. None if they are not UTF-8."""
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return None
