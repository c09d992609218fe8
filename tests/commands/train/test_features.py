"""Features are computed once, and kept."""

import io
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from app import models
from app.commands.train import examples, features, listing
from app.commands.train.examples import Advance, TrainingSet
from app.commands.train.feature_store import FeatureStore
from app.commands.train.progress import TrainingProgress
from tests.commands.train.conftest import make, settings
from tests.conftest import slow

MODEL = models.resolve(settings())


class Counting(TrainingProgress):
    """TrainingProgress that know how many images were computed."""

    def __init__(self) -> None:
        self.computed = 0
        super().__init__(Console(file=io.StringIO()))

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Advance]:
        with super().bar(what, total) as advance:

            def count() -> None:
                self.computed += what == "features"
                advance()

            yield count


def read(folder: Path) -> TrainingSet:
    listed = listing.read(folder)
    return examples.read(listed, listed.classes, lambda: None)


def compute(found: TrainingSet, cache: Path) -> tuple[dict[bytes, features.Floats], int]:
    progress = Counting()
    # the converted model stays where it is: only features are elsewhere
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "FeatureStore", lambda _, key: FeatureStore(cache, key))
        return features.features([found], MODEL, settings(), progress), progress.computed


def test_each_image_is_computed_once_wherever_it_lies(tmp_path: Path) -> None:
    folder = make(tmp_path / "shapes", count=3)
    first, computed = compute(read(folder), tmp_path)
    assert computed == len(first) == 6
    assert {row.shape for row in first.values()} == {(1280,)}
    make(folder, count=4)
    again, computed = compute(read(folder.rename(tmp_path / "moved")), tmp_path)
    assert (computed, len(again)) == (2, 8)
    assert all(np.array_equal(again[digest], row) for digest, row in first.items())


def test_unreadable_images_are_left_out_and_reported(tmp_path: Path) -> None:
    folder = make(tmp_path / "shapes", count=2)
    (folder / "disc" / "notes.jpg").write_text("no picture")
    (folder / "disc" / "0.png").write_bytes((folder / "disc" / "0.png").read_bytes()[:200])
    found = read(folder)
    rows, _ = compute(found, tmp_path)
    assert len(rows) == len(found.found) == 3
    assert {path.name for path in found.unreadable} == {"notes.jpg", "0.png"}
    assert "notes.jpg (" in str(examples.unreadable(found))


@pytest.mark.parametrize(("damage", "again"), [("damaged", 0), slow("a folder", 2)])
def test_without_a_store_it_works_all_the_same(tmp_path: Path, damage: str, again: int) -> None:
    found = read(make(tmp_path / "shapes", count=1))
    path = tmp_path / "features" / f"{features.key(MODEL, settings())}.sqlite"
    path.parent.mkdir()
    path.write_bytes(b"no database" * 100) if damage == "damaged" else path.mkdir()
    for expected in (2, again):
        rows, computed = compute(found, tmp_path)
        assert (len(rows), computed) == (2, expected)


def test_what_an_interrupted_run_has_computed_is_kept(tmp_path: Path) -> None:
    row = np.arange(4, dtype=np.float32)

    def interrupted() -> None:
        with FeatureStore(tmp_path, "key") as store:
            store.add(b"digest", row)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with FeatureStore(tmp_path, "key") as store:
        assert np.array_equal(store.get([b"digest", b"other"])[b"digest"], row)
        assert store.get([b"other"]) == {}


def test_a_store_that_another_process_holds_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.commands.store.WAIT_S", 0.0)
    with FeatureStore(tmp_path, "key") as store:
        other = sqlite3.connect(tmp_path / "features" / "key.sqlite")
        other.execute("BEGIN EXCLUSIVE")
        store.add(b"digest", np.zeros(2, np.float32))
        assert store.get([b"digest"]) == {}
        other.close()


def test_what_features_depend_on_is_in_their_key() -> None:
    keys = {features.key(MODEL, settings(precision=precision)) for precision in ("float32", "float32")}
    assert len(keys) == 1
    keys.add(features.key(MODEL, settings(precision="float32", engine="torch")))
    keys.add(features.key(MODEL, settings(precision="float32", fast_decode=False)))
    assert len(keys) == 3
