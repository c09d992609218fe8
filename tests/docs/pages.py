"""The documentation as data: its code blocks, its commands and its tables."""

import re
from typing import NamedTuple

from tests.conftest import REPOSITORY

PAGES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for pattern in ("README.md", "CONTRIBUTING.md", "docs/*.md", "deploy/*/README.md")
    for path in REPOSITORY.glob(pattern)
)
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced code block.

    ``needs`` says what a clone lacks, if the block's first line is a comment that begins with ``# needs``.
    """

    page: str
    language: str
    text: str

    @property
    def needs(self) -> str | None:
        return found[1] if (found := re.match(r"# needs (.*)\n", self.text)) else None


class Command(NamedTuple):
    """One command of a shell block, its continuation lines joined."""

    page: str
    line: str
    needs: str | None


def text(page: str) -> str:
    return (REPOSITORY / page).read_text()


def blocks(page: str, language: str = "") -> list[Block]:
    """A page's code blocks, of one language if it is given."""
    found = [Block(page, name, code) for _, name, code in _FENCE.findall(text(page))]
    return [block for block in found if language in ("", block.language)]


def shown(page: str, language: str, start: str) -> str:
    """The content of the one block of a page that starts with these characters."""
    [found] = [block.text for block in blocks(page, language) if block.text.startswith(start)]
    return found


def commands(*pages: str) -> list[Command]:
    """Every command in the shell blocks of these pages, or of all pages."""
    return [
        Command(block.page, line, block.needs)
        for page in pages or PAGES
        for block in blocks(page, "sh")
        for line in block.text.replace("\\\n", " ").splitlines()
        if line and not line.startswith("#")
    ]


def rows(page: str, header: str) -> dict[str, list[str]]:
    """The rows of the table whose first column has this header, by their first cell."""
    content = text(page)
    table = content[content.index(f"| {header} |") :].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]
    return {row[0]: row[1:] for row in cells}
