import pytest

from glacier_fastai.bands import BANDS, Bands
from glacier_fastai.data.scenes.names import SENSORS, canonical_sensor, described_otherwise, name_bands
from glacier_fastai.errors import DataError

RGBN = ["blue", "green", "red", "nir"]
REFLECTIVE = [*RGBN, "swir1", "swir2"]


def canonical_band(name, sensor=None):
    return name_bands([name], sensor, strict=True)[0][0]


@pytest.mark.parametrize(
    ("given", "sensor", "want"),
    [
        ("SWIR1", None, "swir1"),
        (" blue ", None, "blue"),
        ("swir_1", None, "swir1"),
        ("GLCM_contrast( swir1 )", None, "glcm_contrast(swir1)"),
        ("glcm_contrast(B6)", "landsat8", "glcm_contrast(swir1)"),
        ("B4", "landsat7", "nir"),
        ("B4", "LC09", "red"),
        ("SR_B10", "landsat8", "thermal"),
        ("B04", "sentinel2", "red"),
        ("SR_B4", "sentinel2", "red"),
        ("B8A", None, "nir"),
    ],
)
def test_names_are_brought_to_ours(given, sensor, want):
    assert canonical_band(given, sensor) == want


@pytest.mark.parametrize(
    ("given", "sensor", "message"),
    [
        ("swirl", None, r"unknown band 'swirl': use blue.*did you mean 'swir1' or 'swir2'\?$"),
        (
            "B4",
            None,
            r"^'B4' can be nir \(landsat4, .*\) or red \(landsat8, .*: name the sensor, or the bands by `bands`$",
        ),
        ("B99", "landsat8", "'B99' is no band of landsat8: name"),
        ("B12", "landsat8", "'B12' is no band of landsat8, but of sentinel2"),
        ("SR_B6", "landsat5", "'SR_B6' is no band of landsat5, but of landsat8, landsat9"),
        ("ST_B6", "landsat8", "'ST_B6' is no band of landsat8"),
        ("cirrus", None, "no band used here is named by 'cirrus': use blue"),
        ("glcm_contrast(swirl)", None, "did you mean 'swir1' or 'swir2'"),
        ("glcm_contrst(red)", None, "did you mean 'contrast'"),
        (" ", None, "band 1 has no description"),
        ("red", "landsat9000", "unknown sensor 'landsat9000'"),
        ("B4", "landsat", "unknown sensor 'landsat': use landsat4, .*, sentinel2$"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(given, sensor, message):
    with pytest.raises(DataError, match=message):
        canonical_band(given, sensor)


@pytest.mark.parametrize(
    "name", ["NDSI2", "MNDWI", "NDMI", "kNDVI", "NIRv", "swir3", "b4", "green_std", "cloud", "b13"]
)
def test_no_hint_to_another_band_or_index(name):
    with pytest.raises(DataError) as err:
        canonical_band(name)
    assert "did you mean" not in str(err.value)


@pytest.mark.parametrize("name", ["grren", "GREENS", "gren"])
def test_slips_are_refused_with_the_right_name_whatever_else_is_known(name):
    with pytest.raises(DataError, match=f"unknown band '{name}': .*; did you mean 'green'"):
        name_bands(["red", name])


@pytest.mark.parametrize(
    ("names", "sensor"),
    [
        ("landsat4 Landsat-4 LT04", "landsat4"),
        ("LT05 l5 landsat_5_tm Landsat5", "landsat5"),
        ("LE07 LANDSAT_7 Landsat7ETM+", "landsat7"),
        ("landsat8 LANDSAT_8 landsat-8 LC08 LO08 L8 HLSL30 hls_l30 HLS.L30", "landsat8"),
        ("LC09 landsat-9-oli", "landsat9"),
        ("Sentinel-2 sentinel-2a SENTINEL2_L2A S2 S2B s2c HLSS30 HLS-S30", "sentinel2"),
    ],
)
def test_sensors_as_people_write_them(names, sensor):
    assert {canonical_sensor(n) for n in names.split()} == {sensor}
    assert {canonical_sensor(n.replace("_", " ").replace("-", " ")) for n in names.split()} == {sensor}


@pytest.mark.parametrize(
    ("name", "hint"),
    [("landsta8", "landsat8"), ("sentinel", "sentinel2"), ("sentinel1", None), ("landsat6", None), ("LM05", None)],
)
def test_unknown_sensors_are_refused_with_a_right_hint_or_none(name, hint):
    with pytest.raises(DataError, match=f"unknown sensor '{name}': use landsat4, .*sentinel2") as err:
        canonical_sensor(name)
    assert ("did you mean" in str(err.value)) == (hint is not None)
    assert hint is None or f"did you mean '{hint}'?" in str(err.value)


EE_S2 = "B1 B2 B3 B4 B5 B6 B7 B8 B8A B9 B10 B11 B12 QA10 QA20 QA60"
GDAL_S2 = [f"B{n}, central wavelength {nm} nm" for n, nm in ((4, 665), (3, 560), (2, 490), (8, 842), (5, 705))]
USGS_L2 = "SR_B1 SR_B2 SR_B3 SR_B4 SR_B5 SR_B6 SR_B7 SR_QA_AEROSOL ST_B10 ST_ATRAN ST_EMIS ST_QA QA_PIXEL QA_RADSAT"
STAC_S2 = "coastal blue green red rededge1 rededge2 rededge3 nir nir08 nir09 swir16 swir22 scl aot wvp visual"
STAC_L8 = "coastal blue green red nir08 swir16 swir22 lwir11 cdist emis qa qa_pixel qa_radsat qa_aerosol"


@pytest.mark.parametrize(
    ("names", "want", "sensor"),
    [
        (EE_S2, "- blue green red - - - nir - - - swir1 swir2 - - -", "sentinel2"),
        ("B02 B03 B04 B08", "blue green red nir", "sentinel2"),  # Landsat products do not pad
        ("B02 B03 B04 B8A B11 B12 Fmask SZA", "blue green red nir swir1 swir2 - -", "sentinel2"),  # HLS S30
        ("b2 b3 b4 b8 b12", "blue green red nir swir2", "sentinel2"),
        ("B2 B3 B4 B8 SCL MSK_CLDPRB TCI_R", "blue green red nir - - -", "sentinel2"),
        (["B02 (490 nm)", "B03 (560 nm)", "B04 (665 nm)", "B08 (842 nm)"], "blue green red nir", "sentinel2"),
        (GDAL_S2, "red green blue nir -", "sentinel2"),
        (["B8A", "AOT, Aerosol Optical Thickness map (at 550nm)", "SCL, Scene Classification"], "nir - -", "sentinel2"),
        (STAC_S2, "- blue green red - - - nir - - swir1 swir2 - - - -", "sentinel2"),
        (STAC_L8, "- blue green red nir swir1 swir2 thermal - - - - - -", None),  # Landsat 8 and 9 alike
        (USGS_L2, "- blue green red nir swir1 swir2 - thermal - - - - -", None),
        ("SR_B2 SR_B3 SR_B4 SR_B5 SR_B6 SR_B7", "blue green red nir swir1 swir2", None),  # no SR_B6 before Landsat 8
        ("sr_band2 sr_band6 bt_band10 bt_band11 pixel_qa", "blue swir1 thermal - -", None),
        ("SR_B1 SR_B2 SR_B3 SR_B4 SR_B5 SR_B7 ST_B6 SR_CLOUD_QA", "blue green red nir swir1 swir2 thermal -", None),
        ("B1 B4 B6_VCID_1 B6_VCID_2 B8", "blue nir thermal_low thermal_high pan", "landsat7"),
        ("B2 B4 B8 B9 B10 QA_PIXEL SAA", "blue red pan - thermal - -", None),
        (
            ["Blue", "SWIR 1", "swir-2", "Near Infrared", "Coastal/Aerosol", "Red Edge 1"],
            "blue swir1 swir2 nir - -",
            None,
        ),
        ("RED REDEDGE1 BROADNIR NIR", "red - - nir", None),  # FORCE
        (["NIR Narrow", "NIR Broad"], "- nir", None),
        (["Band 4 - Red", "B5_NIR", "Red Edge (B5)"], "red nir -", None),
        (["Band 1 (Blue)", "Band 2 (Green)", "Band 3 (Red)", "Band 4 (NIR)"], "blue green red nir", None),
        (
            ["Band 1 (842 nm)", "Band 2 (0.64-0.67 µm)", "B8 (0.52 - 0.90 um)", "B6_VCID_1"],
            "nir red pan thermal_low",
            "landsat7",
        ),
        (["B4 (664.9 Nanometers)", "2.19 micrometers", "B5_0.86um"], "red swir2 nir", None),
        ("LC08_140041_20200101_SR_B4 LC08_140041_20200101_ST_B10", "red thermal", "landsat8"),  # Earth Engine's toBands
        ("T45RVL_20200101T045201_B04_10m T45RVL_20200101T045201_B8A_20m.jp2", "red nir", "sentinel2"),
        ("HLS.L30.T45RVL.2020274T050001.v2.0.B05.tif", "nir", "landsat8"),
        ("- red dem slope ndsi", "- red elevation slope ndsi", None),
    ],
)
def test_bands_are_named_without_a_sensor_where_nothing_is_in_doubt(names, want, sensor):
    names = names.split() if isinstance(names, str) else names
    assert name_bands(names) == ([None if w == "-" else w for w in want.split()], sensor, [])


@pytest.mark.parametrize(
    ("names", "sensor", "want"),
    [
        ("B1 B2 B3 B4 B5 B6 B7", "LT05", [*RGBN, "swir1", "thermal", "swir2"]),
        ("Band 2,Band_3,band4,BAND 5,B6,b7", "Landsat 9", REFLECTIVE),
        ("B02 B03 B04 B05 B06 B07 B09 B10 B11", "HLS L30", [*REFLECTIVE, None, "thermal", None]),
        ("B2 B3 B4 B8 B11 B12", "S2A", REFLECTIVE),
        ("B2 B3 B4 B8A", "HLSS30", RGBN),
    ],
)
def test_a_sensor_settles_what_names_leave_open(names, sensor, want):
    names = names.split("," if "," in names else None)
    assert name_bands(names, sensor) == (want, canonical_sensor(sensor), [])


@pytest.mark.parametrize(
    ("names", "sensor", "message"),
    [
        (
            "B2 B3 B4",
            None,
            r"^'B2', 'B3', 'B4' can be green, red, nir \(landsat4, landsat5, landsat7\) or blue, green, red",
        ),
        (
            "red nir B2",
            None,
            r"^'B2' can be green \(landsat4.* or blue \(landsat8, landsat9, sentinel2\): name the sensor",
        ),
        ("B02 B03 B04 B05 B06 B07", None, r"'B05'.* \(landsat8, landsat9\) or unused, unused, unused \(sentinel2\)"),
        (" ".join(f"B{i}" for i in range(1, 13)), None, "'B1' to 'B12' may only count the bands"),  # B8A would be 9th
        (" ".join(f"band_{i}" for i in range(1, 14)), None, "'band_1' to 'band_13' may only count"),
        (" ".join(f"band_{i}" for i in range(1, 14)), "sentinel2", "'band_13' is no band of sentinel2"),
        ("B2 B8A ST_B10", None, "'ST_B10' is a band of landsat8, landsat9, the names before it are of other sensors"),
        ("B2 B8A", "landsat8", "'B8A' is no band of landsat8, but of sentinel2"),
        ("B04 QA60", "landsat8", "'QA60' is no band of landsat8, but of sentinel2"),
        ("LC08_140041_20200101_SR_B4", "sentinel2", "is no band of sentinel2, but of landsat8"),
        ("foo bar", None, "no band used here is named by 'foo', 'bar': use blue, green"),
        ("SCL QA60", None, "no band used here is named by 'SCL', 'QA60'"),
        ("red nir", "landsat6", "unknown sensor 'landsat6'"),
        (["red", None], None, "^band 2 has no description; name all of them by `bands`"),
        ([" ", "red"], None, "^band 1 has no description"),
    ],
)
def test_names_in_doubt_are_refused(names, sensor, message):
    with pytest.raises(DataError, match=message) as err:
        name_bands(names.split() if isinstance(names, str) else names, sensor)
    assert "did you mean" not in str(err.value)


def test_unknown_names_are_left_out_and_said_or_refused():
    names = ["red", "B4_1", "foo", "NIR-Red", "glcm_entropy(red)", "nir"]
    bands, sensor, (said,) = name_bands(names)
    assert (bands, sensor) == (["red", None, None, None, None, "nir"], None)
    assert "2 ('B4_1'), 3 ('foo'), 4 ('NIR-Red'), 5 ('glcm_entropy(red)')" in said
    with pytest.raises(DataError, match="unknown band 'B4_1': use blue"):
        name_bands(names, strict=True)
    assert name_bands(["B1_2", "B8A"])[0] == [None, "nir"]  # a copy of B1 is not B12
    assert name_bands(["QA60", "red", "-"], strict=True)[0] == [None, "red", None]
    assert name_bands([]) == ([], None, [])


def test_names_given_twice_are_left_to_bands():
    bands, _, _ = name_bands(["red", "RED", "B8A", "nir08"])
    assert bands == ["red", "red", "nir", "nir"]
    with pytest.raises(DataError, match="'red' is named twice"):
        Bands(b for b in bands if b)


@pytest.mark.parametrize(
    ("given", "described", "sensor", "want"),
    [
        ("blue green", "green blue", None, [(1, "green", "blue"), (2, "blue", "green")]),
        ("blue green red nir", "B4 B3 B2 B8", "sentinel2", [(1, "red", "blue"), (3, "blue", "red")]),
        ("blue green red nir", "B2 B3 B4 B8", None, []),  # in doubt
        ("blue green red nir", "band_1 band_2 band_3 band_4", "landsat8", []),  # these only count
        ("red nir swir2", "B2 nir blue", None, [(3, "blue", "swir2")]),
        ("swir1 nir slope", "B5 B8A SCL", None, [(1, "B5", "swir1"), (3, "SCL", "slope")]),
        ("- nir red", "B8 B8A B4", None, []),
        ("thermal red", "B6_VCID_2 B3", None, []),
        ("B4 foo_x", "red foo", None, None),
        ("blue red", "ndvi_max violet", None, []),
    ],
)
def test_bands_described_otherwise(given, described, sensor, want):
    if want is None:  # what is given must be right by itself
        with pytest.raises(DataError, match="unknown band 'foo_x'"):
            described_otherwise(given.split(), described.split(), sensor)
    else:
        assert described_otherwise(given.split(), described.split(), sensor) == want


def test_a_name_without_end_is_no_products():
    with pytest.raises(DataError, match="lc08_b1"):
        name_bands(["lc08_b1_" * 1000 + "!"], None)  # else it takes hours


def test_no_description_contradicts_nothing():
    assert described_otherwise(["red", "nir"], [None, ""]) == []


def test_the_vocabulary_agrees_with_itself():
    for sensor, bands in SENSORS.items():
        assert set(bands.values()) <= {*BANDS, None}
        assert all(canonical_band(name, sensor) == band for name, band in bands.items() if band)
    assert SENSORS["landsat4"] is SENSORS["landsat5"]
    assert SENSORS["landsat8"] is SENSORS["landsat9"]
