import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from glacier_fastai.core.ranges import QUANTILES
from glacier_fastai.data.profile import Profile
from glacier_fastai.errors import BundleError, DataNote
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.ensemble import Ensemble, Member
from glacier_fastai.model.fit import check_fit, known_profile

BANDS = ("green", "swir1", "thermal")


def profile(*ranges, unit="reflectance", bands=BANDS, **about):
    """Values spread evenly over ranges, one for each band."""
    ends = [np.interp(QUANTILES, (0, 1), r) for r in ranges]
    units = dict(zip(bands, [unit, unit, "kelvin" if unit == "reflectance" else unit], strict=False))
    return Profile(units=units, quantiles={b: tuple(q) for b, q in zip(bands, ends, strict=True)}, **about)


KNOWN = profile((0.0, 1.2), (0.0, 0.3), (240, 300), pixel_size=30.0, sensor="landsat8")
LIKE = profile((0.05, 1.0), (0.0, 0.25), (250, 295), pixel_size=30.0, sensor="landsat8")


def bundle(bands=BANDS, known=KNOWN, mean=(0.0,), std=(1.0,)):
    n = len(bands)
    weights = {"w": torch.zeros(1)}
    return ModelBundle(weights, "unet", {}, bands, mean * (n // len(mean)), std * (n // len(std)), profile=known)


def said(model, found, **kwargs):
    notes = []
    with warnings.catch_warnings(record=True, action="always") as heard:
        check_fit(model, "s.tif", found, notes, **kwargs)
    assert [str(w.message) for w in heard if w.category is DataNote] == notes
    return notes


def test_like_data_pass_without_a_word():
    assert said(bundle(), LIKE) == []
    assert said(bundle(), KNOWN) == []


@pytest.mark.parametrize(
    ("unit", "match"),
    [("dn", "unknown units.*trained on.*reflectance.*give the scale and offset"), ("metre", "metre.*convert")],
)
def test_other_units_are_refused(unit, match):
    other = profile((300, 9000), (100, 3000), (2000, 9000), unit=unit)
    with pytest.raises(BundleError, match=rf"^s\.tif: .*green, swir1, thermal.*{match}"):
        check_fit(bundle(), "s.tif", other, [], force=True)


def test_a_model_of_numbers_refuses_units_and_says_what_to_do():
    known = profile((300, 9000), (100, 3000), (2000, 9000), unit="dn")
    with pytest.raises(BundleError, match=r"s\.tif: .*dn.*numbers it knows, or normalise it by its own statistics"):
        check_fit(bundle(known=known), "s.tif", LIKE, [])


def test_a_scenes_own_statistics_know_no_unit_but_indices_do():
    numbers = profile((300, 9000), (100, 3000), (2000, 9000), unit="dn")
    (line,) = said(bundle(), numbers, statistics="scene")
    assert "by the scene's own statistics" in line
    with pytest.raises(BundleError, match="trained on"):
        check_fit(bundle((*BANDS, "ndsi"), mean=(0.0,) * 4), "s.tif", numbers, [], statistics="scene")


def test_values_that_the_model_has_hardly_seen_are_said_by_band():
    (line,) = said(bundle(), profile((0.05, 1.0), (0.5, 0.9), (250, 295)))
    assert "swir1 0.52 to 0.88 (0.015 to 0.285)" in line
    assert "green" not in line
    (line,) = said(bundle(), profile((0.5, 0.55), (0.0, 0.25), (250, 295)))  # within, but next to constant
    assert "green" in line
    assert said(bundle(), profile((0.5, 0.9), (0.5, 0.9), (450, 495)), statistics="scene") == []


def test_nothing_can_come_of_values_far_away_unless_forced():
    raw = profile((800, 5000), (100, 3700), (14_000, 24_000), unit="dn")  # Sentinel-2 for a model of Landsat 8
    landsat = profile((1500, 65_000), (5800, 21_000), (27_000, 39_000), unit="dn")
    with pytest.raises(BundleError, match=r"s\.tif: values far.*green.*swir1.*thermal.*unless it is forced"):
        check_fit(bundle(known=landsat), "s.tif", raw, [])
    (line,) = said(bundle(known=landsat), raw, force=True)
    assert "scale and offset" in line


def test_a_narrow_range_that_was_missed_by_little_is_only_said():
    narrow = profile((0.50, 0.52), (0.10, 0.11), (270, 271))
    (line,) = said(bundle(known=narrow), profile((0.55, 0.60), (0.12, 0.14), (250, 260)))
    assert "thermal" in line


def test_pixels_sensors_and_constant_bands_are_said():
    notes = said(bundle(), LIKE.model_copy(update={"pixel_size": 10.0, "sensor": "sentinel2"}))
    assert "pixels of 10 m" in notes[0]
    assert "gdalwarp -tr 30 30 -r average" in notes[0]
    assert "sentinel2" in notes[1]
    assert "landsat8" in notes[1]
    assert said(bundle(), LIKE.model_copy(update={"pixel_size": 28.5, "sensor": ""})) == []
    (coarse,) = said(bundle(), LIKE.model_copy(update={"pixel_size": 90.0}))
    assert "bilinear" in coarse
    constant = said(bundle(), profile((0.3, 0.3), (0.0, 0.25), (250, 295)))
    assert any("green: one value everywhere" in line for line in constant)


def test_bundles_of_before_count_as_numbers_with_the_range_of_their_statistics():
    old = bundle(known=Profile(), mean=(40_000.0, 9000.0, 31_000.0), std=(20_000.0, 3000.0, 2500.0))
    assert known_profile(old).units == dict.fromkeys(BANDS, "dn")
    assert said(old, profile((1500, 65_000), (5800, 15_000), (27_000, 36_000), unit="dn")) == []
    with pytest.raises(BundleError, match="values far"):
        check_fit(old, "s.tif", profile((800, 5000), (100, 3700), (14_000, 24_000), unit="dn"), [])
    with pytest.raises(BundleError, match="reflectance"):
        check_fit(old, "s.tif", LIKE, [])
    assert said(replace(old, bands=("ndsi", "thermal", "slope")), LIKE.model_copy(update={"units": {}})) == []


def test_every_member_is_asked_and_each_thing_said_once():
    ensemble = Ensemble((Member(bundle()), Member(bundle())))
    other = LIKE.model_copy(update={"sensor": "sentinel2"})
    assert len(said(ensemble, other)) == 1


def test_an_index_of_the_file_is_not_compared_with_what_it_is_computed_of():
    own = Profile(units={"ndsi": "dn", "thermal": "kelvin"}, quantiles={})
    assert said(bundle(("ndsi", "thermal"), mean=(0.0, 0.0), std=(1.0, 1.0)), own) == []
