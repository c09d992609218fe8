"""Files as text: their names, and what is left out of folders."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.images.files import Skipped

_MOST_NAMES = 10  # in one message
_NOT_UTF_8 = re.compile("[\ud800-\udfff]")
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What could control a terminal, change the order of other characters, or is a byte that is not UTF-8."""


def printable(name: Path | str) -> str:
    """A name as text for people. What would control a terminal, or is not UTF-8, becomes U+FFFD.

    Joiners, soft hyphens and spaces of every kind are part of a name.
    """
    return UNSAFE.sub("\N{REPLACEMENT CHARACTER}", str(name))


def exact(name: Path | str) -> str:
    """A name for JSON: as it is, or ``printable`` if it is not UTF-8."""
    text = str(name)
    return printable(text) if _NOT_UTF_8.search(text) else text


def shorten(names: Iterable[str], separator: str = ", ") -> str:
    """The first names, and the number of the others."""
    names = list(names)
    more = [f"and {len(names) - _MOST_NAMES:,} more"] if len(names) > _MOST_NAMES else []
    return separator.join(names[:_MOST_NAMES] + more)


def left_out(skipped: "Skipped") -> list[str]:
    """Sentences about what is left out of folders: how much, and why."""
    parts = [*_parts(skipped)]
    sentences = [f"skipped {', '.join(parts)}"] if parts else []
    if skipped.unreadable:
        reasons = (f"{printable(path)} ({why})" for path, why in sorted(skipped.unreadable.items()))
        what = _count(len(skipped.unreadable), "file or folder", "files and folders")
        sentences.append(f"could not read {what}: {shorten(reasons)}")
    return sentences


def _parts(skipped: "Skipped") -> Iterator[str]:
    if skipped.others:
        yield _count(skipped.others, "file that is not an image", "files that are not images")
    if skipped.system:
        names = shorten(printable(name) for name in sorted(skipped.system))
        yield f"{_count(skipped.system.total(), 'system file or folder', 'system files and folders')} ({names})"
    if skipped.loops:
        yield _count(skipped.loops, "link to a folder that contains it", "links to folders that contain them")
    if skipped.repeated:
        yield _count(skipped.repeated, "folder that was already read", "folders that were already read")
    if skipped.broken:
        paths = shorten(printable(path) for path in sorted(skipped.broken))
        yield f"{_count(len(skipped.broken), 'broken link', 'broken links')} ({paths})"


def _count(n: int, one: str, many: str) -> str:
    return f"{n:,} {one if n == 1 else many}"
