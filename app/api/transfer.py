"""Content-Transfer-Encoding of the parts of a form (RFC 2045, 6), decoded while they stream."""

import binascii
from typing import Protocol

from app.api.documents import Base64Decoder
from app.api.excerpts import shown
from app.errors import MalformedRequest


class TransferDecoder(Protocol):
    def decode(self, data: bytes) -> bytes:
        """The bytes of the next piece. Raises ValueError."""

    def end(self) -> bytes:
        """The last bytes. Raises ValueError."""


class _Plain:
    def decode(self, data: bytes) -> bytes:
        return data

    def end(self) -> bytes:
        return b""


class _QuotedPrintable:
    def __init__(self) -> None:
        self._rest = b""

    def decode(self, data: bytes) -> bytes:
        data = self._rest + data
        escape = data.find(b"=", max(0, len(data) - 2))  # =41, or the end of a line
        end = escape if escape >= 0 else len(data)
        self._rest = data[end:]
        return binascii.a2b_qp(data[:end])

    def end(self) -> bytes:
        return binascii.a2b_qp(self._rest)


def decoder(encoding: str) -> TransferDecoder:
    """The decoder of one part. Raises MalformedRequest for an unknown encoding."""
    match encoding.lower():
        case "" | "7bit" | "8bit" | "binary":
            return _Plain()
        case "base64":
            return Base64Decoder()
        case "quoted-printable":
            return _QuotedPrintable()
    raise MalformedRequest(f"Content-Transfer-Encoding {shown(encoding)} is not supported; send base64, or omit it")
