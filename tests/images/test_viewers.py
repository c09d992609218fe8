"""Each kind of image in docs/api.md looks to topk as it looks in a viewer."""

import base64
import io
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from playwright.sync_api import Page, sync_playwright

from tests import hostile
from tests.conftest import CHROMIUM
from tests.hostile import encode
from tests.images.test_metadata import bmp
from tests.images.test_pillow import crop, heif, on_white, reference
from tests.images.test_scans import jpeg
from tests.images.tiffs import tiff

MAGICK = shutil.which("magick") or shutil.which("convert-im6")
TIFF2RGBA = shutil.which("tiff2rgba")
TOLERANCE = 2.0  # mean difference in grey levels: decoders round chroma and premultiplied colours in their own ways

pytestmark = pytest.mark.slow


def scene() -> Image.Image:
    """A picture of 300x260 with smooth and sharp parts."""
    y, x = np.mgrid[:260, :300]
    waves = np.dstack([127 + 120 * np.sin(x / 17), 127 + 120 * np.cos(y / 23 + x / 90), (x + y) * 255 / 560])
    waves[80:140, 100:200] = (230, 40, 20)
    return Image.fromarray(waves.astype(np.uint8))


SCENE = scene()
COLOUR = np.asarray(SCENE).astype(np.int64)
GREY = np.asarray(SCENE.convert("L")).astype(np.int64)
ALPHA = np.tile(np.linspace(0, 255, 300).astype(np.int64), (260, 1))
CLEAR = Image.fromarray(np.dstack([COLOUR, ALPHA]).astype(np.uint8))
TURNED = hostile.exif((0x0112, 3, 1, 6))
SECOND = {"save_all": True, "append_images": [Image.new("RGB", SCENE.size, "blue")]}
PREMULTIPLIED = np.dstack([COLOUR * ALPHA[..., None] // 255, ALPHA])

WEB = {
    "JPEG": encode(SCENE, "JPEG", quality=90),
    "progressive JPEG": encode(SCENE, "JPEG", quality=90, progressive=True),
    "grey JPEG": encode(SCENE.convert("L"), "JPEG", quality=90),
    "JPEG without an end": jpeg("baseline"),
    "JPEG with an orientation": encode(SCENE, "JPEG", quality=90, exif=TURNED),
    "PNG": encode(SCENE, "PNG"),
    "PNG of 16 bits": encode(Image.fromarray((GREY * 257).astype(np.uint16)), "PNG"),
    "PNG with a palette": encode(SCENE.quantize(64), "PNG"),
    "transparent palette": encode(SCENE.quantize(64), "PNG", transparency=3),
    "PNG with alpha": encode(CLEAR, "PNG"),
    "PNG with an orientation": encode(SCENE, "PNG", exif=TURNED),
    "PNG with large text": encode(SCENE, "PNG", icc_profile=b"x" * 2_000_000),
    "WebP": encode(SCENE, "WEBP", quality=90),
    "lossless WebP with alpha": encode(CLEAR, "WEBP", lossless=True),
    "animated WebP": encode(SCENE, "WEBP", lossless=True, **SECOND),
    "GIF": encode(SCENE.quantize(200), "GIF"),
    "animated GIF": encode(SCENE.quantize(200), "GIF", **SECOND),
    "BMP": encode(SCENE, "BMP"),
    "BMP whose alpha is 0": bmp(40, 0, 0),
    "AVIF": encode(SCENE, "AVIF", quality=90),
}
LIBTIFF = {
    "RGB": tiff(COLOUR, 8, 2, deflate=True),
    "tiles": tiff(COLOUR, 8, 2, tile=(64, 48)),
    "planes": tiff(COLOUR, 8, 2, separate=True),
    "16 bits": tiff(COLOUR * 257, 16, 2, ">"),
    "1 bit": encode(SCENE.convert("1"), "TIFF", compression="group4"),
    "4 bits": tiff(GREY // 16, 4, 1),
    "WhiteIsZero": tiff(255 - GREY, 8, 0),
    "WhiteIsZero of 16 bits": tiff(65_535 - GREY * 257, 16, 0),
    "palette": encode(SCENE.quantize(64), "TIFF"),
    "CMYK": encode(SCENE.convert("CMYK"), "TIFF"),
    "JPEG": encode(SCENE, "TIFF", compression="jpeg"),
    "LZW with a predictor": tiff(COLOUR, 8, 2, deflate=True, predictor=2),
    "associated alpha": tiff(PREMULTIPLIED, 8, 2, tags={338: [1]}),
    "alpha": tiff(np.dstack([COLOUR, ALPHA]), 8, 2, tags={338: [2]}),
}
# ImageMagick 6 ignores MaxSampleValue, WhiteIsZero of 12 bits, and the sign of 8 and 32 bits; libtiff and ImageMagick
# take a sample that is described as not alpha for alpha
IMAGEMAGICK = {
    "10 bits": tiff(GREY * 1023 // 255, 10, 1),
    "12 bits": tiff(COLOUR * 4095 // 255, 12, 2),
    "14 bits": tiff(GREY * 16_383 // 255, 14, 1, ">"),
    "32 bits": tiff(GREY * (2**32 // 256), 32, 1),
    "signed 16 bits": tiff(GREY * 257 - 32_768, 16, 1, kind="i"),
    "CMYK with alpha": tiff(np.dstack([np.asarray(SCENE.convert("CMYK")), 0 * ALPHA + 255]), 8, 5, tags={338: [2]}),
    "grey with associated alpha": tiff(np.dstack([GREY * ALPHA // 255, ALPHA]), 8, 1, tags={338: [1]}),
    "floats of 32 bits": tiff(COLOUR / 255, 32, 2, kind="f"),
    "floats of 64 bits": tiff(GREY / 255, 64, 1, ">", "f"),
    "floats of 16 bits": tiff(GREY / 255, 16, 1, kind="f"),
    "16 bits with alpha": tiff(np.dstack([COLOUR, ALPHA]) * 257, 16, 2, tags={338: [2]}),
    "CMYK of 16 bits": tiff(np.asarray(SCENE.convert("CMYK")).astype(np.int64) * 257, 16, 5),
}
TO_LAB = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
PILLOW = {
    "AVIF with alpha": encode(CLEAR, "AVIF", quality=95),  # Chromium stretches the alpha
    "extra sample": tiff(np.dstack([COLOUR, ALPHA]), 8, 2, tags={338: [0]}),
    "five samples": tiff(np.dstack([COLOUR, ALPHA, ALPHA]), 8, 2, tags={338: [0, 0]}),
    "L*a*b*": encode(ImageCms.applyTransform(SCENE, TO_LAB), "TIFF"),
    "BMP of 8 bits": encode(SCENE.quantize(64), "BMP"),
    "CMYK JPEG": encode(SCENE.convert("CMYK"), "JPEG", quality=90),
    "1x1": encode(SCENE.resize((1, 1)), "PNG"),
    "10000x2": encode(SCENE.resize((10_000, 2)), "PNG"),
}


def assert_shown(data: bytes, shown: Image.Image) -> None:
    assert np.abs(crop(data) - reference(on_white(shown))).mean() <= TOLERANCE


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        with browser:
            yield browser.new_page()


DRAW = """async data => {
  const image = new Image();
  image.src = data;
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  canvas.getContext("2d").drawImage(image, 0, 0);
  return canvas.toDataURL("image/png").split(",")[1];
}"""


@pytest.mark.browser
@pytest.mark.parametrize("kind", WEB)
def test_image_looks_as_in_chromium(kind: str, page: Page) -> None:
    url = "data:image/png;base64," + base64.b64encode(WEB[kind]).decode()  # Chromium goes by the content
    assert_shown(WEB[kind], Image.open(io.BytesIO(base64.b64decode(page.evaluate(DRAW, url)))))


@pytest.mark.skipif(not TIFF2RGBA, reason="libtiff-tools is not installed")
@pytest.mark.parametrize("kind", LIBTIFF)
def test_tiff_looks_as_in_libtiff(kind: str, tmp_path: Path) -> None:
    (tmp_path / "in.tif").write_bytes(LIBTIFF[kind])
    subprocess.run([str(TIFF2RGBA), "in.tif", "out.tif"], cwd=tmp_path, check=True)
    with Image.open(tmp_path / "out.tif") as shown:
        assert_shown(LIBTIFF[kind], shown)


def magick(data: bytes, format: str) -> Image.Image:
    command = [str(MAGICK), f"{format}:-", "-auto-orient", "-colorspace", "sRGB", "-depth", "8", "png:-"]
    return Image.open(io.BytesIO(subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout))


imagemagick = pytest.mark.skipif(not MAGICK, reason="imagemagick is not installed")


@imagemagick
@pytest.mark.parametrize("kind", IMAGEMAGICK)
def test_tiff_looks_as_in_imagemagick(kind: str) -> None:
    assert_shown(IMAGEMAGICK[kind], magick(IMAGEMAGICK[kind], "tiff"))


@heif
@imagemagick
def test_heic_looks_as_in_imagemagick() -> None:
    data = encode(SCENE, "HEIF", quality=90)
    assert_shown(data, magick(data, "heic"))


@pytest.mark.parametrize("kind", PILLOW)
def test_image_looks_as_in_pillow(kind: str) -> None:
    assert_shown(PILLOW[kind], Image.open(io.BytesIO(PILLOW[kind])))
