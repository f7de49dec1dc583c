import numpy as np
import pytest

from glacier_fastai.data.scenes.units import Scaling, by_band, no_offset, parse_scaling, unit_of
from glacier_fastai.errors import DataError

BANDS = ("blue", "thermal")


@pytest.mark.parametrize("text", ["many", "1e-4,", "blue=", "=3", "nan", "inf", "1;2", "blue=1e-4,3"])
def test_what_is_no_number_is_refused(text):
    with pytest.raises(DataError, match="scale .*give a number"):
        parse_scaling(text, "scale")


def test_one_number_for_all_is_for_reflected_light():
    assert by_band(1e-4, "scale", BANDS, [1, 2], 2) == [1e-4, None]
    assert by_band(0.1, "scale", ["thermal"], [1], 1) == [0.1]
    assert by_band([2, 3, 4], "scale", BANDS, [1, 3], 3) == [2, 4]
    assert by_band([2, 4], "scale", BANDS, [1, 3], 3) == [2, 4]
    assert by_band({"thermal": 5}, "offset", BANDS, [1, 2], 2) == [None, 5]
    assert by_band(None, "offset", BANDS, [1, 2], 2) == [None, None]


@pytest.mark.parametrize(
    ("given", "match"),
    [([1.0], "1 numbers for 2 bands"), ({"blu": 1.0}, "no band 'blu'.*'blue'"), (0.0, "scale 0"), ([1, 0], "scale 0")],
)
def test_what_fits_no_band_is_refused(given, match):
    with pytest.raises(DataError, match=match):
        by_band(given, "scale", BANDS, [1, 2], 2)


REFLECTANCE, CELSIUS = np.float32([0.03, 0.4, 0.91]), np.float32([-12.5, 3.25, 8.1])
KELVIN, NUMBERS = np.float32([251.3, 260.7, 281.25]), np.array([300, 9000, 65535], "uint16")


@pytest.mark.parametrize(
    ("band", "tag", "scaled", "values", "unit"),
    [
        ("red", None, False, NUMBERS, "dn"),
        ("red", None, False, NUMBERS.astype("float32"), "dn"),  # whole numbers, as the competition has them
        ("red", None, False, REFLECTANCE, "reflectance"),
        ("red", None, False, REFLECTANCE * 100, "dn"),  # per cent
        ("red", None, False, REFLECTANCE - 0.9, "dn"),  # standardised, perhaps
        ("red", None, False, np.float32([]), "dn"),
        ("red", None, True, REFLECTANCE, "reflectance"),
        ("red", "Reflectance", False, REFLECTANCE, "reflectance"),
        ("red", "Surface reflectance", False, REFLECTANCE, "reflectance"),
        ("red", "Reflectance", False, NUMBERS, "dn"),
        ("red", "W/m2/sr/um", False, REFLECTANCE, "dn"),
        ("red", "%", False, REFLECTANCE * 2.5, "dn"),
        ("red", "kelvin", False, REFLECTANCE, "dn"),
        ("red", "-", False, REFLECTANCE, "reflectance"),
        ("red", "W/m2/sr/um", True, REFLECTANCE, "dn"),
        ("red", "metre", False, NUMBERS, "dn"),  # as GDAL says in a CRS with heights
        ("red", "metre", True, REFLECTANCE, "reflectance"),
        ("red", "US survey foot", False, REFLECTANCE, "reflectance"),
        ("red", "K", False, NUMBERS, "dn"),
        ("thermal", None, False, KELVIN, "kelvin"),
        ("thermal", None, False, CELSIUS, "dn"),
        ("thermal", "degC", False, CELSIUS, "celsius"),
        ("thermal", "degC", False, KELVIN, "dn"),
        ("thermal", "K", False, CELSIUS, "dn"),
        ("thermal", "K", False, np.float32([]), "kelvin"),
        ("thermal_low", "K", True, KELVIN, "kelvin"),
        ("elevation", None, False, NUMBERS, "metre"),
        ("elevation", "ft", False, NUMBERS, "dn"),
        ("slope", "percent", False, REFLECTANCE, "dn"),
        ("red", "1", True, REFLECTANCE, "reflectance"),
        ("red", "DN", True, REFLECTANCE, "reflectance"),
        ("slope", None, False, REFLECTANCE, "degree"),
        ("curvature", "1/m", False, REFLECTANCE * 100, "1/m"),
        ("curvature", None, False, REFLECTANCE * 0.01, "1/m"),
        ("curvature", None, False, REFLECTANCE, "dn"),  # times 100, as other programs give it
        ("aspect_sin", None, False, REFLECTANCE, "dn"),
        ("ndsi", None, False, REFLECTANCE, "dn"),
    ],
)
def test_units(band, tag, scaled, values, unit):
    assert unit_of(band, tag, scaled, values)[0] == unit


def test_a_scale_that_leads_to_no_reflectance_is_said():
    unit, odd = unit_of("red", None, True, NUMBERS * 0.01)
    assert unit == "dn"
    assert "red is no reflectance" in odd
    assert "6.48 to 632" in odd


@pytest.mark.parametrize(
    ("band", "tag", "values", "line"),
    [
        ("red", "%", REFLECTANCE * 2.5, "red is in '%', which is not known: its values are compared as they are"),
        ("red", "kelvin", REFLECTANCE, "red is in 'kelvin', which is no unit of red"),
        ("red", "reflectance", NUMBERS, "red is no reflectance by its unit, from 648 to 6.327e+04: unit unknown"),
        ("thermal", "celsius", KELVIN, "thermal is no celsius by its unit, from 251.7 to 280.4: unit unknown"),
        ("red", "metre", REFLECTANCE, ""),
        ("ndsi", "index", REFLECTANCE, ""),
    ],
)
def test_a_unit_that_is_not_believed_is_said(band, tag, values, line):
    odd = unit_of(band, tag, False, values)[1]
    assert line in odd if line else not odd


@pytest.mark.parametrize(
    ("band", "numbers", "scale", "offset", "unit"),
    [
        ("red", REFLECTANCE, 1e-4, 0, "dn"),  # as rioxarray leaves the tags of a file whose numbers it has scaled
        ("red", REFLECTANCE, 2.75e-5, -0.2, "dn"),
        ("thermal", KELVIN, 0.00341802, 149, "dn"),
        ("red", REFLECTANCE * 100, 0.01, 0, "reflectance"),  # per cent
        ("red", REFLECTANCE * 2.5, 0.01, 0, "reflectance"),  # of dark ground
        ("red", REFLECTANCE * 10_000 + np.float32(0.3), 1e-4, 0, "reflectance"),  # means of whole numbers
        ("red", np.float32([1, 2, 3]), 1e-4, 0, "reflectance"),
    ],
)
def test_a_scale_left_over_on_values_is_said(band, numbers, scale, offset, unit):
    found, odd = unit_of(band, None, True, numbers * scale + offset, numbers)
    assert found == unit
    assert ("before its scale already" in odd) == (unit == "dn")


def test_a_scale_without_its_offset():
    light = [Scaling(2.75e-5, 0.0, "reflectance"), Scaling(2.75e-5, -0.2, "reflectance")]
    assert no_offset({"red": light[0], "nir": light[0]}).startswith("red, nir: scale 2.75e-05 without offset, where La")
    assert "red: scale 2.75e-05 without offset, where another band has -0.2" in no_offset(
        {"red": light[0], "nir": light[1]}
    )
    others = Scaling(1e-4, 0.0, "reflectance"), Scaling(2.75e-5, 0.0, "dn"), Scaling(0.00341802, 149.0, "kelvin")
    assert not no_offset(dict(zip(("nir", "red", "blue", "thermal"), (light[1], *others), strict=True)))
