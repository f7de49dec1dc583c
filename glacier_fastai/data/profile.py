"""What the values of some data are: their units, their range, the pixel size; kept with a model, and compared."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from ..core.fill import NO_VALUE
from ..core.ranges import QUANTILES
from ..recipe import Section

__all__ = ["LARGER", "QUANTILES", "Profile"]

LARGER = 1.3  # times as large as others that a pixel may be without a word


class Profile(Section):
    """What is known of the values of a scene, a store, or what a model was trained on; by band, read or stored ones."""

    units: dict[str, str] = {}
    quantiles: dict[str, tuple[float, ...]] = {}  # `core.ranges.QUANTILES` over pixels with data
    pixel_size: float | None = Field(None, gt=0)  # metres on the ground
    sensor: str = ""
    scaling: dict[str, tuple[float, float]] = {}  # scale and offset of the stored numbers, where they are not 1 and 0

    model_config = {**Section.model_config, "strict": False}  # JSON has lists, no tuples

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if any(len(q) != len(QUANTILES) or sorted(q) != [*q] for q in self.quantiles.values()):
            raise ValueError(f"quantiles are {len(QUANTILES)} numbers in rising order")
        if not all(1 / NO_VALUE < abs(scale) < NO_VALUE for scale, _ in self.scaling.values()):
            raise ValueError("a scale of 0, or beyond all use")
        return self
