"""Draws docs/playground.png: the page with the cat, `python -m tests.browser.picture`."""

import io
import os
import tempfile

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.browser.conftest import expect_cat, opened
from tests.conftest import CAT, CHROMIUM, REPOSITORY, Server

OUT = REPOSITORY / "docs" / "playground.png"
SIZE = {"width": 1180, "height": 935}
WIDTH = 880  # pixels of the file
COLOURS = 200


def main() -> None:
    cache = tempfile.TemporaryDirectory(prefix="topk-picture-")
    os.environ["TOPK_CACHE_DIR"] = cache.name  # the tests' processes need it
    server = Server("--model", "efficientnet_lite0")
    try:
        with sync_playwright() as playwright:
            chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = chromium.new_page(viewport=SIZE, reduced_motion="reduce")
            for _ in range(3):  # the first answers are slow everywhere
                opened(page, server.url).set_input_files("#file", CAT)
                expect_cat(page)
            shot = Image.open(io.BytesIO(page.screenshot()))
            chromium.close()
    finally:
        server.stop()
        cache.cleanup()
    small = shot.convert("RGB").resize((WIDTH, WIDTH * shot.height // shot.width), Image.Resampling.LANCZOS)
    small.quantize(COLOURS).save(OUT, optimize=True)


if __name__ == "__main__":
    main()
