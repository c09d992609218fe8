"""Names of files for people and for JSON, and sentences about what is left out."""

import os
from collections import Counter
from pathlib import Path

import pytest

from app.commands.filenames import exact, left_out, printable
from app.images.files import Skipped
from tests.names import HUMAN


@HUMAN
def test_a_human_name_is_shown_as_it_is(name: str) -> None:
    assert (printable(name), exact(Path(name))) == (name, name)


@pytest.mark.parametrize("character", ["\0", "\x1b", "\n", "\x7f", "\x85", "\x9b", "\u2028", "\u202e", "\u2066"])
def test_what_controls_a_terminal_is_shown_as_a_replacement_and_is_exact_in_json(character: str) -> None:
    name = f"a{character}b"
    assert (printable(name), exact(name)) == ("a\N{REPLACEMENT CHARACTER}b", name)


def test_a_name_that_is_not_utf_8_is_shown_as_a_replacement_everywhere() -> None:
    name = os.fsdecode(b"caf\xe9\x1b.jpg")
    shown = "caf\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}.jpg"
    assert (printable(Path(name)), exact(Path(name))) == (shown, shown)


def test_nothing_left_out_needs_no_words() -> None:
    assert left_out(Skipped()) == []


def test_every_reason_is_stated_with_its_number() -> None:
    skipped = Skipped(
        others=1200,
        loops=2,
        repeated=1,
        system=Counter({"Thumbs.db": 3, "._*": 4}),
        broken=[Path("b"), Path("a\n")],
        unreadable={Path(f"{i:02}"): "Permission denied" for i in range(12)},
    )
    first, second = left_out(skipped)
    assert first == (
        "skipped 1,200 files that are not images, 7 system files and folders (._*, Thumbs.db),"
        " 2 links to folders that contain them, 1 folder that was already read, 2 broken links (a\ufffd, b)"
    )
    assert second.startswith("could not read 12 files and folders: 00 (Permission denied), 01 (Permission denied), ")
    assert second.endswith(", 09 (Permission denied), and 2 more")
