"""The outputs of a batch, image by image."""

from collections.abc import Sequence

from app.engine import Engine, Pixels, Row, Want


def forward(engine: Engine, images: Sequence[Pixels], wants: Sequence[Want], alone: bool = False) -> list[Row]:
    rows = engine.forward(images, wants, alone)
    assert len(rows) == len(rows.scores) == len(rows.finite) == len(images)
    return [rows.row(place, want.k) for place, want in enumerate(wants)]
