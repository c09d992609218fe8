import email
import io
from pathlib import Path

import pytest
from PIL import Image

from app.commands.bench.bodies import bodies, form, generated, read
from app.errors import LoadTestError
from app.images.files import Skipped
from tests.conftest import CAT


def test_generated_images_are_varied_and_always_the_same() -> None:
    first, second = list(generated(6)), list(generated(6))
    assert first == second
    assert len({body.content for body in first}) == 6
    for body in first:
        assert 60_000 < len(body.content) < 150_000
        assert max(Image.open(io.BytesIO(body.content)).size) in (480, 500)


def test_a_folder_gives_its_images_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "cat").write_bytes(CAT.read_bytes())
    (tmp_path / "readme.txt").write_text("no image")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    found = {body.content_type: body.content for body in read(tmp_path, Skipped())}
    assert found.keys() == {"image/png", "image/jpeg"}
    assert found["image/jpeg"] == CAT.read_bytes()


def test_a_folder_without_images_is_refused_with_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(LoadTestError, match="no images"):
        bodies(tmp_path, multipart=False)
    (tmp_path / "torn.jpg").write_bytes(b"no picture")
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    (tmp_path / "__MACOSX").mkdir()
    with pytest.raises(LoadTestError) as raised:
        bodies(tmp_path, multipart=False)
    assert raised.value.detail == (
        f"no images in {tmp_path}; skipped 1 file that is not an image, 1 system file or folder (__MACOSX);"
        f" could not read 1 file or folder: {tmp_path}/gone.jpg (no such file)"
    )


def test_what_is_left_out_of_a_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "store" / "cat.jpg").write_bytes(CAT.read_bytes())
    (tmp_path / "in" / "old").symlink_to("../store")
    (tmp_path / "in" / "loop").symlink_to("..")
    (tmp_path / "in" / "desktop.ini").touch()
    found, notes = bodies(tmp_path / "in", multipart=False)
    assert [body.content for body in found] == [CAT.read_bytes()]
    assert notes == ["skipped 1 system file or folder (desktop.ini), 1 link to a folder that contains it"]


def test_a_form_holds_the_image_as_its_field_file() -> None:
    [body] = generated(1)
    sent = form(body)
    message = email.message_from_bytes(f"Content-Type: {sent.content_type}\r\n\r\n".encode() + sent.content)
    [part] = message.get_payload()
    assert part.get_param("name", header="Content-Disposition") == "file"
    assert (part.get_content_type(), part.get_payload(decode=True)) == ("image/jpeg", body.content)
