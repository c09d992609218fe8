"""The names of torchvision's and timm's models, read from the packages' source files.

Importing either package takes seconds. Reading its sources takes milliseconds, so a misspelt name fails at once.
"""

import difflib
import importlib.util
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from app.errors import ModelError
from app.models import embedded
from app.models.names import TIMM

_BUILDER = re.compile(r"^@register_model\b.*\n(?:[@\s)].*\n)*?def (\w+)\((?:[^)]*?\bweights: Optional\[(\w+)\])?", re.M)
_ENUM = re.compile(r"^class (\w+)\(WeightsEnum\):\n((?: .*\n|\n)+)", re.M)
_ENTRY = re.compile(r"^ {4}(\w+) = ", re.M)
_DEPRECATED = re.compile(r"^register_model_deprecations\(__name__, \{(.*?)^\}", re.M | re.S)
_OLD_NAME = re.compile(r"^\s*['\"](\w+)['\"]\s*:", re.M)


def check(spec: str) -> None:
    """Raise ModelError if torchvision or timm has no such model or, for torchvision, no such weights entry.

    Imports neither package. A package whose sources are missing is not checked here.
    """
    architecture, _, entry = spec.partition(":")
    if spec.startswith(TIMM):
        name = entry.partition(".")[0]
        if (names := timm_names()) and name not in names:
            raise unknown_timm(entry, names)
    elif architecture != embedded.NAME and (zoo := torchvision_entries()):
        if architecture not in zoo:
            raise unknown(architecture, zoo)
        if entry and zoo[architecture] and entry not in zoo[architecture]:
            raise unknown_entry(architecture, entry, zoo[architecture])


def unknown(architecture: str, names: Iterable[str]) -> ModelError:
    """Return the error for a name that torchvision does not have, with the nearest of ``names``."""
    hint = _nearest(architecture, [*names, embedded.NAME])
    return ModelError(f"there is no model {architecture!r}{hint} `topk models` lists the models that can be served")


def unknown_entry(architecture: str, entry: str, entries: Iterable[str]) -> ModelError:
    """Return the error for a weights entry that torchvision does not have for an architecture."""
    return ModelError(f"{architecture} has no weights {entry!r}; choose one of {', '.join(entries)}")


def unknown_timm(name: str, names: Iterable[str]) -> ModelError:
    """Return the error for a name that timm does not have, with the nearest of ``names``."""
    hint = _nearest(name.partition(".")[0], names)
    return ModelError(f"timm has no model {name!r}{hint} `topk models --timm '*'` lists its models")


def torchvision_entries() -> dict[str, tuple[str, ...]]:
    """torchvision's classification architectures, each with the names of its weights entries."""
    sources = list(_sources("torchvision"))
    enums = {name: tuple(_ENTRY.findall(body)) for text in sources for name, body in _ENUM.findall(text)}
    return {name: enums.get(enum, ()) for text in sources for name, enum in _BUILDER.findall(text)}


def timm_names() -> frozenset[str]:
    """timm's architectures, and the old names that it still accepts."""
    sources = list(_sources("timm"))
    current = {name for text in sources for name, _ in _BUILDER.findall(text)}
    old = {name for text in sources for table in _DEPRECATED.findall(text) for name in _OLD_NAME.findall(table)}
    return frozenset(current | old)


def _sources(package: str) -> Iterator[str]:
    """The text of each module in ``package.models``, subpackages excluded."""
    spec = importlib.util.find_spec(package)
    for location in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(location, "models").glob("*.py")):
            yield path.read_text(encoding="utf-8")


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.lower(), names)
    return f"; did you mean {' or '.join(near)}?" if near else ";"
