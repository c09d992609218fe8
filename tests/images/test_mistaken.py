"""What looks like an image that was changed on its way is refused, and the reason says how; images are left alone."""

import base64
import codecs

import pytest
from PIL import Image

from app import images
from app.errors import UndecodableImage, UnsupportedMediaType
from tests.hostile import encode, picture

FORMATS = ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"]
BEFORE = [codecs.BOM_UTF8, b"\r\n", b"\n", b" ", b"\t\r\n\r\n ", codecs.BOM_UTF8 + b"\r\n", codecs.BOM_UTF16_LE]


def reason(data: bytes) -> str:
    with pytest.raises(UnsupportedMediaType) as caught:
        images.read_header(data, 50_000_000)
    return caught.value.detail


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("before", BEFORE, ids=repr)
def test_bytes_before_an_image_are_named_with_its_format(format: str, before: bytes) -> None:
    found = reason(before + picture(format))
    assert f"like a {format} image that begins at byte {len(before)}" in found
    assert "send the bytes of the file alone" in found


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("side", [8, 64])
def test_an_image_with_replacement_characters_was_read_as_text(format: str, side: int) -> None:
    data = encode(Image.effect_noise((side, side), 90).convert("RGB"), format)
    read = data.decode("utf-8", "replace")
    assert "\ufffd" in read
    for end in (len(read), len(read) - 1, -(-len(read) // 2)):
        found = reason(read[:end].encode())
        assert "read as text" in found
        assert "send its bytes unchanged" in found


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_so_was_one_that_is_encoded_twice(format: str, encoding: str) -> None:
    assert "read as text" in reason(picture(format).decode(encoding, "replace").encode())


def test_utf_16_is_named() -> None:
    assert "UTF-16" in reason(picture("PNG").decode("cp437").encode("utf-16"))


@pytest.mark.parametrize("changed", [(b"\r\n", b"\n"), (b"\n", b"\r\n")])
def test_a_png_transferred_as_text_is_named(changed: tuple[bytes, bytes]) -> None:
    assert "line breaks were converted" in reason(picture("PNG").replace(*changed))


def test_base64_is_named() -> None:
    assert "like a JPEG image in base64; send the decoded bytes" in reason(base64.b64encode(picture("JPEG")))


@pytest.mark.parametrize("data", [b"hello", b"<html>", b"\xff\xfd", bytes(50), "naïve".encode(), b"aGVsbG8="])
def test_anything_else_gets_the_list_of_formats(data: bytes) -> None:
    assert reason(data).startswith("the bytes are not a JPEG")


@pytest.mark.parametrize("colour", [(239, 191, 189), (189, 191, 239), (65, 169, 195), (0, 0, 0)])
@pytest.mark.parametrize("format", ["PNG", "GIF", "WEBP", "BMP", "JPEG"])
def test_a_plain_picture_whose_pixels_form_utf_8_is_an_image(colour: tuple[int, int, int], format: str) -> None:
    data = encode(Image.new("RGB", (40, 40), colour), format)
    assert images.read_header(data, 50_000_000).format == format


def test_a_truncated_image_is_still_a_truncated_image() -> None:
    with pytest.raises(UndecodableImage):
        images.read_header(picture("PNG")[:20], 50_000_000)
