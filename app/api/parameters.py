"""Parameters of header fields, such as ``filename``, in all the ways that names are encoded.

Browsers send UTF-8 as it is, and a quotation mark as ``%22``. Other clients encode by RFC 5987 and 2231
(``filename*``), RFC 7578 (percent-encoding) and, as in mail, RFC 2047.
"""

import re
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from urllib.parse import unquote_to_bytes

from app.errors import MalformedRequest

PARAMETERS = 32  # of one header

_PARAMETER = re.compile(r';\s*([^\s=;"]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)')
_EXTENDED = re.compile(r"([^*]+)\*(?:(\d{1,3})(\*)?)?")  # filename*, filename*0 and filename*0*
_ESCAPED = re.compile(r'\\([\\"])')  # other backslashes are those of Windows paths
_WINDOWS_PATH = re.compile(r"(?:[A-Za-z]:\\|\\{1,2})(?:.*\\)?", re.DOTALL)


def parameters(header: str) -> dict[str, str]:
    """The parameters of a header's value, not decoded. Raises MalformedRequest if there are very many."""
    if header.count(";") > PARAMETERS:
        raise MalformedRequest(f"a header has more than {PARAMETERS} parameters")
    return {name.lower(): _unquoted(value) for name, value in _PARAMETER.findall(header)}


def decoded(values: dict[str, str], name: str) -> str:
    """The text of a parameter; empty if it is absent. Of ``filename`` and ``filename*``, the latter counts."""
    sections = []
    for key, value in values.items():
        if (found := _EXTENDED.fullmatch(key)) and found[1] == name:
            sections.append((int(found[2] or 0), bool(found[3]) or not found[2], value))
    extended = _joined(sections) if sections else None
    text = _text(values.get(name, "")) if extended is None else extended
    return text.encode(errors="replace").decode()  # some charsets produce lone surrogates, which JSON cannot hold


def file_name(text: str) -> str:
    """The name of a file without its folder: old browsers send the path on Windows."""
    path = _WINDOWS_PATH.match(text)
    return text[path.end() :] if path else text


def _unquoted(value: str) -> str:
    quoted = len(value) > 1 and value[0] == value[-1] == '"'
    return _ESCAPED.sub(r"\1", value[1:-1]) if quoted else value.strip()


def _joined(sections: list[tuple[int, bool, str]]) -> str | None:
    """The value of a parameter in sections (RFC 2231): its number, whether it is encoded, its text. None if invalid."""
    charset, content = "utf-8", b""
    for number, (_, encoded, text) in enumerate(sorted(sections)):
        if encoded and number == 0:
            found = text.split("'", 2)
            if len(found) != 3:
                return None
            charset, text = found[0] or charset, found[2]
        content += unquote_to_bytes(text) if encoded else text.encode("latin-1")
    try:
        return content.decode(charset)
    except (LookupError, ValueError):
        return None


def _text(text: str) -> str:
    """A value, received as latin-1: UTF-8, words in the encoding of mail headers, or percent-encoded UTF-8."""
    if not text.isascii():
        try:
            return text.encode("latin-1").decode()
        except UnicodeDecodeError:
            return text
    if "=?" in text and "?=" in text:
        return _mail_words(text)
    try:
        plain = unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        plain = text
    return text.replace("%22", '"') if plain.isascii() else plain


def _mail_words(text: str) -> str:
    """A text with encoded words (RFC 2047), or the text itself if they are invalid."""
    words, end, rest = text.rpartition("?=")
    try:
        return str(make_header(decode_header(words + end))) + rest
    except (HeaderParseError, LookupError, ValueError):
        return text
