"""What was fitted to the out-of-fold predictions of an ensemble, as files keep it; without torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from ..bands import CLASSES
from ..recipe import Section

__all__ = ["NONE", "Calibration"]

Logit = Annotated[float, Field(ge=-1e3, le=1e3)]
PerClass = Annotated[tuple[Logit, ...], Field(strict=False, min_length=len(CLASSES), max_length=len(CLASSES))]
NONE = (0.0,) * len(CLASSES)
Power = Annotated[float, Field(ge=0, le=10)]
LogRatio = Annotated[float, Field(ge=-20, le=20)]
Spread = Annotated[float, Field(ge=-1e6, le=1e6)]


class Calibration(Section):
    """What was fitted to out-of-fold predictions (`core.calibration`). By default it changes nothing."""

    temperature: Annotated[float, Field(ge=1e-3, le=1e3)] = 1.0
    bias: PerClass = NONE
    offsets: PerClass = Field(NONE, description="added to the log probabilities before the class is chosen")
    area: Annotated[tuple[float, float], Field(strict=False)] | None = Field(
        None, description="low and high of the intervals of connected ice"
    )
    glacier: Annotated[tuple[Power, LogRatio, Power, Spread, Spread], Field(strict=False)] | None = Field(
        None, description="intervals of ice within outlines, `core.areas.GlacierFit`; without, those of connected ice"
    )

    @field_validator("area", "glacier")
    @classmethod
    def _ascending(cls, numbers: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if numbers and not numbers[-2] <= numbers[-1]:
            raise ValueError("use two numbers in ascending order, low and high")
        return numbers
