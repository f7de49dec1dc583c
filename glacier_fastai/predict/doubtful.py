"""Places of a map where looking pays most, as boxes for a person to go through in a GIS."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

import geopandas
import numpy as np
import shapely
from pyproj import CRS

from ..bands import IGNORE
from ..core.doubt import BLOCK, DoubtSums
from ..data.scenes.scene import Place
from ..errors import note
from .outlines import crs_of_areas, write_layer
from .sink import Strip
from .styles import write_styles

__all__ = ["DOUBTFUL", "Doubtful"]

DOUBTFUL = "doubtful"  # name of the layer


class Doubtful:
    """Sums up doubt while a map comes, and writes its most doubtful places when all of it has come.

    A place is a box of 16 x 16 pixels. Doubt is 1 - p, p the calibrated probability of the class that the map shows;
    its sum is how much of a box is expected to be wrong. Boxes are ranked by it: those that are uncertain, and most of
    them. No box lies on another, and near one that was taken doubt counts half, so that places lie apart.
    """

    def __init__(
        self,
        path: str | os.PathLike,  # GeoPackage to write
        source: Place,  # size and grid of the scene
        many: int,  # places, at most
        notes: list[str],  # see `errors.note`
    ):
        self.path, self.source, self.many, self.notes = Path(path), source, many, notes
        self.near = crs_of_areas(source, self.path.name)
        self.sums = DoubtSums(source.height, source.width)

    def __enter__(self) -> Self:
        return self

    def write(self, strip: Strip) -> None:
        """Take the next rows."""
        known = strip.classes != IGNORE
        shown = np.where(known, strip.classes, 0)[None].astype(np.intp)
        self.sums.add(strip.row, 1 - np.take_along_axis(strip.probs, shown, 0)[0], known)

    def table(self) -> geopandas.GeoDataFrame:
        """Return a row for each place: rank, mean uncertainty, area expected to be wrong, `checked` to be ticked."""
        height, width = self.source.height, self.source.width
        found = self.sums.places(self.many)
        right, bottom = (np.minimum(x + 2 * BLOCK, n) for x, n in ((found.col, width), (found.row, height)))
        boxes = shapely.box(found.col, found.row, right, bottom)
        t = self.source.transform
        placed = (
            geopandas.GeoSeries(boxes).affine_transform([t.a, t.b, t.d, t.e, t.c, t.f]).set_crs(CRS(self.source.crs))
        )
        km2 = placed.to_crs(self.near).area.to_numpy() / 1e6
        pixel = km2 / ((right - found.col) * (bottom - found.row))
        columns = {
            "rank": np.arange(1, len(boxes) + 1),
            "uncertainty": found.wrong / found.known,
            "wrong_km2": found.wrong * pixel,
            "checked": np.zeros(len(boxes), bool),
        }
        return geopandas.GeoDataFrame(columns, geometry=placed)

    def __exit__(self, kind, value, trace) -> None:
        if kind is None:
            table = self.table()
            if len(table) < self.many:
                note(f"{self.path.name}: the map has {len(table)} places in doubt, not {self.many}", self.notes)
            write_layer(table, self.path, DOUBTFUL, "Polygon")
            write_styles(self.path, "doubtful")
