"""The classes of ImageNet-1k: torchvision's labels and the WordNet ids (wnids), in the order of the logits."""

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources
from unicodedata import normalize


@dataclass(frozen=True, slots=True)
class Label:
    """One class: its label, unique within the model, and its WordNet id, if it has one."""

    label: str
    wnid: str | None = None


def normalized(name: str) -> str:
    """A name in Unicode's form NFC, in which names are compared: macOS separates letters from their accents."""
    return normalize("NFC", name)


@cache
def imagenet1k() -> tuple[Label, ...]:
    """The 1000 classes of ILSVRC-2012. Labels are unique, although ImageNet uses some names twice (crane)."""
    text = (resources.files("app") / "imagenet" / "imagenet1k.csv").read_text(encoding="utf-8")
    return tuple(Label(row["label"], row["wnid"]) for row in csv.DictReader(text.splitlines()))
