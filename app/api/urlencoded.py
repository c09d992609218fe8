"""Bodies of the type ``application/x-www-form-urlencoded``: forms with images as text, and files sent by mistake."""

from urllib.parse import unquote_plus

from app.api.documents import Body, percent_decoded
from app.api.encoded import is_text
from app.api.forms import Form, Upload
from app.errors import UnsupportedMediaType

TYPE = "application/x-www-form-urlencoded"
_MOST_FIELDS = 128
_OPTION_BYTES = 256
_STRIPPED = b"\r\n\0"  # the bytes that curl -d removes from a file


def images_and_options(form: Form, content: Body) -> tuple[list[Upload], list[tuple[str, str]]]:
    """The images and the other fields of a body. No images if none is base64 or a ``data:`` URL."""
    images: list[Upload] = []
    options: list[tuple[str, str]] = []
    for field in content.split(b"&", _MOST_FIELDS) if content.isascii() else ():
        name, _, value = field.partition(b"=")
        if len(name) > _OPTION_BYTES:
            continue
        if not form.holds_image(key := unquote_plus(name.decode("ascii"))):
            options.append((key, unquote_plus(value[:_OPTION_BYTES].decode("ascii"))))
        elif value:
            images.append(Upload(_unescaped(value)))
    found = any(isinstance(image.content, bytes) and is_text(image.content) for image in images)
    return (images if found else []), options


def _unescaped(value: Body) -> bytes:
    """The text of an image. A ``+`` is a space only if the client escapes pluses: many send base64 as it is."""
    if b"%2B" in value or b"%2b" in value:
        value = value.replace(b"+", b" ")
    try:
        return percent_decoded(value.decode("ascii"))
    except ValueError:
        return bytes(value)


def check(content: Body) -> None:
    """Recognise a file that ``curl -d`` has damaged. Raises UnsupportedMediaType.

    curl removes line breaks and zeros. Every image file contains some of them, also one sent with --data-binary.
    """
    if not any(byte in content for byte in _STRIPPED):
        raise UnsupportedMediaType(
            "the body is application/x-www-form-urlencoded and no image file; with curl, send the file with"
            " -F file=@FILE or --data-binary @FILE, because -d removes line breaks"
        )
