"""Radiance of thermal bands as the temperature of a black body."""

from __future__ import annotations

import numpy as np

from .scene import Declared, Scene

__all__ = ["BrightnessTemperature"]


class BrightnessTemperature(Scene):
    """A scene of thermal radiance in kelvin: ``K2 / ln(K1 / radiance + 1)``.

    The inverse of Planck's law for a sensor's band: https://doi.org/10.1016/j.rse.2009.01.007.
    """

    def __init__(
        self,
        scene: Scene,  # whose numbers become radiance by their scale and offset
        k1: float,  # of the sensor, in the unit of the radiance
        k2: float,  # of the sensor, kelvin
    ):
        self._begin_as(scene)
        self.scene, self.k1, self.k2, self.dtype = scene, k1, k2, np.dtype("float32")
        self.declared = [Declared(unit="kelvin")] * len(scene.bands)

    def _read(self, index, row, col, height, width):
        numbers, valid = self.scene.read_window(index, row, col, height, width)
        scale, offset = np.array([self.scene.declared[i][:2] for i in index]).T[:, :, None, None]
        radiance = numbers * scale + offset
        valid &= (radiance > 0).all(0)
        return (self.k2 / np.log1p(self.k1 / np.where(valid, radiance, 1.0))).astype(np.float32), valid
