import email
import io
from pathlib import Path

import pytest
from PIL import Image

from app.commands.bench.bodies import bodies, form, generated, read
from app.errors import LoadTestError
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
    found = {body.content_type: body.content for body in read(tmp_path)}
    assert found.keys() == {"image/png", "image/jpeg"}
    assert found["image/jpeg"] == CAT.read_bytes()


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadTestError, match="no images"):
        bodies(tmp_path, multipart=False)


def test_a_form_holds_the_image_as_its_field_file() -> None:
    [body] = generated(1)
    sent = form(body)
    message = email.message_from_bytes(f"Content-Type: {sent.content_type}\r\n\r\n".encode() + sent.content)
    [part] = message.get_payload()
    assert part.get_param("name", header="Content-Disposition") == "file"
    assert (part.get_content_type(), part.get_payload(decode=True)) == ("image/jpeg", body.content)
