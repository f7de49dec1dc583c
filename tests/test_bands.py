import pytest

from glacier_fastai.bands import (
    BANDS,
    CLASS_COLOURS,
    CLASSES,
    COMPOSITES,
    UNITS,
    Bands,
    canonical_band,
    composite,
    natural_unit,
)
from glacier_fastai.errors import DataError, did_you_mean


@pytest.mark.parametrize(
    ("given", "want"),
    [("SWIR1", "swir1"), (" blue ", "blue"), ("GLCM_contrast( swir1 )", "glcm_contrast(swir1)")],
)
def test_names_are_brought_to_ours(given, want):
    assert canonical_band(given) == want


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("swir_1", r"did you mean 'swir1'"),
        ("B4", r"unknown band 'B4': use blue, green"),
        ("glcm_contrast(swir_1)", "'swir_1' is no band; did you mean 'swir1'"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(given, message):
    with pytest.raises(DataError, match=message):
        canonical_band(given)


def test_a_list_of_bands_is_not_empty_and_names_each_once():
    assert Bands(["Red", "nir"]) == ("red", "nir")
    with pytest.raises(DataError, match="no bands given"):
        Bands([])
    with pytest.raises(DataError, match="'red' is named twice"):
        Bands(["red", "nir", "RED"])
    with pytest.raises(DataError, match=r"bands 'red,nir': give a list of names, such as \['red', 'nir'\]"):
        Bands("red,nir")


def test_bands_know_what_they_are_made_of():
    bands = Bands(["ndsi", "glcm_energy(red)", "glcm_contrast(ndwi)", "nir"])
    assert bands.textures == {"glcm_energy(red)": ("energy", "red"), "glcm_contrast(ndwi)": ("contrast", "ndwi")}
    assert bands.made_of(["green", "red", "nir", "swir1"]) == ("green", "swir1", "red", "nir")
    assert bands.made_of(["ndsi", "ndwi", "red", "nir"]) == ("ndsi", "red", "ndwi", "nir")
    assert Bands(["pan", "glcm_asm(pan)"]).made_of([]) == ("pan",)
    assert Bands(bands) is bands


def test_the_vocabulary_agrees_with_itself():
    assert len(CLASSES) == len(CLASS_COLOURS) == 4
    assert {b for rgb in COMPOSITES.values() for b in rgb} <= set(BANDS)


@pytest.mark.parametrize(
    ("bands", "name", "index"),
    [
        (("blue", "green", "red", "nir"), "colour infrared", (3, 2, 1)),
        (("blue", "green", "red", "swir1", "thermal"), "snow and ice (no nir)", (3, 2, 1)),
        (("blue", "green", "red", "nir", "swir1"), "snow and ice", (4, 3, 2)),
        (("elevation",), "elevation", (0, 0, 0)),
        (("ndvi", "slope", "pan"), "ndvi, slope, pan", (0, 1, 2)),
    ],
)
def test_the_composite_follows_the_bands(bands, name, index):
    assert composite(bands) == (name, index)


def test_nothing_near_means_no_suggestion():
    assert did_you_mean("xyzzy", BANDS) == ""


def test_terrain_has_units_of_its_own():
    units = [natural_unit(b) for b in ("elevation", "slope", "aspect_sin", "aspect_cos", "curvature")]
    assert units == ["metre", "degree", None, None, "1/m"]
    assert {*units} - {None} <= {*UNITS}
