"""``topk predict --explain``: the photograph with its class activation map."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from app.commands.predict.pictures import EDGE, targets
from app.errors import ModelError, ReportError
from app.images.heatmap import COLOUR
from tests import tiny
from tests.commands.runner import topk
from tests.conftest import CAT

TINY = tiny.model()
WHITE = (255, 255, 255)


def explain(image: Path, target: Path, *options: object) -> dict[str, Any]:
    """The ``explanation`` of an image whose picture is written to ``target``."""
    ran = topk("predict", image, *TINY, "--explain", target, *options, "--json")
    assert (ran.returncode, ran.stderr) == (0, "")
    found: dict[str, Any] = json.loads(ran.stdout)["explanation"]
    return found


def pixels(path: Path) -> npt.NDArray[np.int64]:
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image).astype(np.int64)


def blank(path: Path, size: tuple[int, int], **options: object) -> Path:
    """A picture of one grey, over which the opacity of the colour can be read."""
    Image.new("RGB", size, (128, 128, 128)).save(path, **options)
    return path


def test_the_colour_is_where_the_map_is(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(noise).resize((400, 300), Image.Resampling.NEAREST).save(tmp_path / "a.png")
    found = explain(tmp_path / "a.png", tmp_path / "map.png", "--explain-class", "7")
    before, after = pixels(tmp_path / "a.png"), pixels(tmp_path / "map.png")
    grid, (left, top, right, bottom) = np.array(found["grid"]), found["box"]
    rows, columns = grid.shape
    opacity = np.abs(after - before).sum(2) / np.abs(np.array(COLOUR) - before).sum(2)
    ys = (top + (np.arange(rows) + 0.5) * (bottom - top) / rows).astype(int)
    xs = (left + (np.arange(columns) + 0.5) * (right - left) / columns).astype(int)
    wanted = 0.7 * np.maximum(grid, 0) / grid.max()
    assert found["class_id"] == 7
    assert np.corrcoef(opacity[np.ix_(ys, xs)].ravel(), wanted.ravel())[0, 1] > 0.9
    assert abs(opacity[np.ix_(ys, xs)] - wanted).mean() < 0.1


def test_only_the_crop_is_changed_and_framed(tmp_path: Path) -> None:
    found = explain(blank(tmp_path / "a.png", (400, 300)), tmp_path / "map.png")
    left, top, right, bottom = map(round, found["box"])
    before, after = pixels(tmp_path / "a.png"), pixels(tmp_path / "map.png")
    changed = (before != after).any(axis=2)
    assert changed[top:bottom, left:right].mean() > 0.5
    changed[top:bottom, left:right] = False
    assert not changed.any()
    assert tuple(after[150, left]) == tuple(after[150, right - 1]) == tuple(after[top, 200]) == WHITE


def test_a_photograph_is_upright(tmp_path: Path) -> None:
    upright, rotated = tmp_path / "upright.png", tmp_path / "rotated.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(CAT) as cat:
        cat.save(upright)
        cat.transpose(Image.Transpose.ROTATE_90).save(rotated, exif=exif)
    wanted, found = explain(upright, tmp_path / "a.png"), explain(rotated, tmp_path / "b.png")
    assert found["box"] == wanted["box"]
    assert np.abs(pixels(tmp_path / "a.png") - pixels(tmp_path / "b.png")).max() <= 5
    assert pixels(tmp_path / "a.png").shape == (300, 451, 3)


def test_a_large_photograph_is_scaled_down_with_its_box(tmp_path: Path) -> None:
    found = explain(blank(tmp_path / "a.jpg", (3000, 2000)), tmp_path / "map.png")
    after = pixels(tmp_path / "map.png")
    assert after.shape == (683, EDGE, 3)
    left, top, right, _ = (round(edge * EDGE / 3000) for edge in found["box"])
    assert tuple(after[341, left]) == tuple(after[341, right - 1]) == tuple(after[top, 512]) == WHITE
    assert tuple(after[341, left - 1]) == (128, 128, 128)


def test_several_photographs_get_a_folder(tmp_path: Path) -> None:
    content = CAT.read_bytes()
    for name in ("a/cat.jpg", "b/cat.jpg", "b/torn.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content[: 3000 if "torn" in name else None])
    ran = topk("predict", tmp_path / "a", tmp_path / "b", "-", *TINY, "--explain", tmp_path / "maps", stdin=content)
    assert ran.returncode == 1
    assert "torn.jpg: the JPEG is truncated" in ran.stderr
    written = sorted((tmp_path / "maps").iterdir())
    assert [path.name for path in written] == ["cat.jpg.2.png", "cat.jpg.png", "stdin.png"]
    assert len({path.read_bytes() for path in written}) == 1
    Image.open(io.BytesIO(written[0].read_bytes())).verify()


@pytest.mark.parametrize(
    ("target", "files", "error", "message"),
    [
        ("a.jpg", ["x.jpg"], ModelError, "must be a file that ends with .png or a folder, got a.jpg"),
        ("a.png", ["x.jpg", "y.jpg"], ModelError, "a.png is one picture, but there are 2 images; name a folder"),
        ("x.png", ["./x.png"], ModelError, "would overwrite the image x.png"),
        (".", ["x", "x.png"], ModelError, "would overwrite the image x.png"),
        ("none/a.png", ["x.jpg"], ReportError, "no such folder for the picture: none"),
        ("none/maps", ["x.jpg"], ReportError, "the folder none/maps cannot be made: No such file or directory"),
        ("file", ["x.jpg"], ReportError, "the folder file cannot be made: File exists"),
    ],
)
def test_a_place_that_does_not_fit_is_refused_before_the_work(
    target: str, files: list[str], error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(error, match=message):
        targets(Path(target), [Path(file) for file in files])
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_names_that_differ_only_in_case_get_numbers() -> None:
    """They are one name on some file systems."""
    found = targets(Path.cwd(), [Path("cat.jpg"), Path("b/CAT.jpg"), Path("cat.jpg.2")])
    assert [path.name for path in found] == ["cat.jpg.png", "CAT.jpg.2.png", "cat.jpg.2.2.png"]


def test_a_picture_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("none/a.png")
    ran = topk("predict", CAT, *TINY, "--explain", tmp_path / "a.png")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == f"topk: {tmp_path}/a.png cannot be written: No such file or directory\n"
