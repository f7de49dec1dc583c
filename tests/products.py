"""Products in their true layout, names, metadata and types, of one made-up scene."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import rasterio
from rasterio.transform import from_origin
from scenes import CRS, made_up

LIGHT = ("blue", "green", "red", "nir", "swir1", "swir2")
SIZE = 96  # pixels of the finest band
UL = 499_980.0, 3_100_020.0
# as HLS writes it
HLS_CRS = """PROJCS["UTM Zone 45, Northern Hemisphere",GEOGCS["Unknown datum based upon the WGS 84 ellipsoid",
    DATUM["Not specified (based on WGS 84 spheroid)",SPHEROID["WGS 84",6378137,298.257223563,
    AUTHORITY["EPSG","7030"]]],PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433,AUTHORITY["EPSG","9122"]]],
    PROJECTION["Transverse_Mercator"],PARAMETER["latitude_of_origin",0],PARAMETER["central_meridian",87],
    PARAMETER["scale_factor",0.9996],PARAMETER["false_easting",500000],PARAMETER["false_northing",0],
    UNIT["metre",1,AUTHORITY["EPSG","9001"]],AXIS["Easting",EAST],AXIS["Northing",NORTH]]"""


@dataclass
class Made:
    """A product, and what is in it."""

    path: Path
    values: dict  # band -> its values in units on its own grid, NaN where fill
    sensor: str
    date: str
    codes: dict = field(default_factory=dict)  # file of flags -> its numbers
    files: dict = field(default_factory=dict)  # band -> its file
    metadata: Path | None = None


def ground(seed=0):
    """Return values of all bands, reflectance and kelvin, float64 (H, W)."""
    values = made_up(SIZE, SIZE, (*LIGHT, "thermal"), seed, nodata=False)[0].astype(float)
    out = dict(zip((*LIGHT, "thermal"), values / 1e4, strict=True))
    out["thermal"] = 250 + 40 * out["thermal"]
    return out


def numbers(values, scale, offset, dtype, fill):
    """Return the numbers of values, `fill` in the four topmost of 96 rows, and the values that these are."""
    info = np.iinfo(dtype)
    out = np.clip(np.rint((values - offset) / scale), max(info.min, 1 if info.min == 0 else info.min), info.max)
    top = np.arange(len(out)) < len(out) * 4 / SIZE
    out[top] = fill
    read = out * scale + offset
    read[top] = np.nan
    return out.astype(dtype), read


def coarse(values, k):
    """Return means of k x k pixels."""
    return values.reshape(values.shape[0] // k, k, values.shape[1] // k, k).mean((1, 3))


def quality(clear, codes, size=SIZE, fill=1):
    """Return flags: `fill` in the topmost rows, and a block of each code."""
    out = np.full((size, size), clear, np.uint16)
    for i, code in enumerate(codes):
        out[size // 4 : size // 3, size * i // 8 : size * (i + 1) // 8 - 1] = code
    out[: size * 4 // SIZE] = fill
    return out


def write(path, array, side, crs=CRS, nodata=None, tags=None):
    """Write one band, or several, of pixels of a size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.atleast_3d(array.T).T if array.ndim == 2 else array
    profile = {"driver": "GTiff", "count": len(array), "height": array.shape[1], "width": array.shape[2]}
    profile |= {"dtype": array.dtype, "crs": crs, "transform": from_origin(*UL, side, side), "nodata": nodata}
    if path.suffix == ".jp2":
        profile |= {"driver": "JP2OpenJPEG", "QUALITY": "100", "REVERSIBLE": "YES", "BLOCKXSIZE": 64, "BLOCKYSIZE": 64}
    with rasterio.open(path, "w", **profile) as file:
        file.update_tags(**(tags or {}))
        file.write(array)
    return path


# Landsat

TM = {"blue": "1", "green": "2", "red": "3", "nir": "4", "swir1": "5", "swir2": "7"}
OLI = {"blue": "2", "green": "3", "red": "4", "nir": "5", "swir1": "6", "swir2": "7"}
SENSORS = {"LC08": "landsat8", "LC09": "landsat9", "LO08": "landsat8", "LE07": "landsat7", "LT05": "landsat5"}
SENSORS |= {"LT04": "landsat4"}
INSTRUMENTS = {"LC": "OLI_TIRS", "LO": "OLI", "LE": "ETM", "LT": "TM"}
HEIGHT = 38.12345678  # of the sun
PLANCK = {"LC": (774.8853, 1321.0789), "LE": (666.09, 1282.71), "LT": (607.76, 1260.56)}
RADIANCE = {"10": (3.3420e-4, 0.1), "6_VCID_1": (6.7087e-2, -0.06709), "6_VCID_2": (3.7205e-2, 3.1628)}
RADIANCE["6"] = 5.5375e-2, 1.18243
CLEAR = {"QA_PIXEL": 21824, "BQA": 2720, "pixel_qa": 322}
CODES = {  # cloud, shadow, cirrus, snow, dilated
    "QA_PIXEL": (22280, 23888, 54596, 30048, 21826),
    "BQA": (2800, 2976, 6816, 3744),
    "pixel_qa": (480, 328, 834, 336),
}


def mtl(groups, root, kind):
    """Return an MTL in one of its languages; as USGS writes it, all values of JSON are strings."""
    if kind == "json":
        return json.dumps({root: groups}, indent=2)
    if kind == "xml":
        body = "".join(
            f"  <{name}>\n"
            + "".join(f"    <{key}>{escape(value)}</{key}>\n" for key, value in items.items())
            + f"  </{name}>\n"
            for name, items in groups.items()
        )
        return f'<?xml version="1.0" encoding="UTF-8"?>\n<{root}>\n{body}</{root}>\n'
    lines = [f"GROUP = {root}"]
    for name, items in groups.items():
        lines += [f"  GROUP = {name}"]
        for key, value in items.items():
            plain = key not in ("COLLECTION_NUMBER",) and value.replace(".", "").replace("-", "").isdigit()
            lines += [f"    {key} = {value if plain or 'MULT' in key else chr(34) + value + chr(34)}"]
        lines += [f"  END_GROUP = {name}"]
    return "\n".join([*lines, f"END_GROUP = {root}", "END", ""])


def landsat(folder, craft="LC08", level="L2SP", collection=2, kinds=("json", "txt", "xml"), seed=0):
    """Write a Landsat product; level "SR" of Collection 1 is what ESPA delivered beside an MTL of Level 1."""
    values, name = ground(seed), f"{craft}_{'L1TP' if level == 'SR' else level}_140041_20201113_20210317"
    name, family = f"{name}_0{collection}_T1", craft[:2]
    table, first, level2 = OLI if family in ("LC", "LO") else TM, collection == 1, level.startswith("L2")
    made = Made(folder, {}, SENSORS[craft], "2020-11-13T04:43:21Z")
    product, rescaling, constants, sr, st = {}, {}, {}, {}, {}
    byte = family in ("LE", "LT") and not level2 and level != "SR"
    for band, key in table.items():
        scale, offset = (2e-5, -0.1) if not byte else (2.8e-3, -0.0086)
        rescaling |= {f"REFLECTANCE_MULT_BAND_{key}": f"{scale:.4E}", f"REFLECTANCE_ADD_BAND_{key}": f"{offset:.6f}"}
        sr |= {f"REFLECTANCE_MULT_BAND_{key}": "2.75e-05", f"REFLECTANCE_ADD_BAND_{key}": "-0.2"}
        sine, end, dtype, fill = np.sin(np.radians(HEIGHT)), f"B{key}.TIF", "uint8" if byte else "uint16", 0
        scale, offset = scale / sine, offset / sine
        if level2:
            scale, offset, end = 2.75e-5, -0.2, f"SR_B{key}.TIF"
        if level == "SR":
            scale, offset, end, dtype, fill = 1e-4, 0.0, f"sr_band{key}.tif", "int16", -9999
        file = made.files[band] = folder / f"{name}_{end}"
        array, made.values[band] = numbers(values[band], scale, offset, dtype, fill)
        write(file, array, 30, nodata=None if first else fill)
        product[f"FILE_NAME_BAND_{key}"] = f"{name}_B{key}.TIF" if level == "SR" else file.name
    thermal = {"LE": ("6_VCID_1", "6_VCID_2"), "LC": ("10",), "LT": ("6",), "LO": ()}[family]
    for key in () if level == "L2SR" else thermal:
        band = {"6_VCID_1": "thermal_low", "6_VCID_2": "thermal_high"}.get(key, "thermal")
        (mult, add), (k1, k2) = RADIANCE[key], PLANCK[family]
        rescaling |= {f"RADIANCE_MULT_BAND_{key}": f"{mult:.4E}", f"RADIANCE_ADD_BAND_{key}": f"{add:.5f}"}
        constants |= {f"K1_CONSTANT_BAND_{key}": str(k1), f"K2_CONSTANT_BAND_{key}": str(k2)}
        number = key.partition("_")[0]
        if level2 or level == "SR":
            scale, offset, end, dtype, fill = 0.00341802, 149.0, f"ST_B{number}.TIF", "uint16", 0
            st = {f"TEMPERATURE_MULT_BAND_ST_B{number}": "0.00341802", f"TEMPERATURE_ADD_BAND_ST_B{number}": "149.0"}
            if level == "SR":
                scale, offset, end, dtype, fill = 0.1, 0.0, f"bt_band{number}.tif", "int16", -9999
            else:
                product[f"FILE_NAME_BAND_ST_B{number}"] = f"{name}_{end}"
            file = made.files["thermal"] = folder / f"{name}_{end}"
            array, made.values["thermal"] = numbers(values["thermal"], scale, offset, dtype, fill)
            write(file, array, 30, nodata=None if first else fill)
            continue
        file = made.files[band] = folder / f"{name}_B{key}.TIF"
        array, radiance = numbers(k1 / np.expm1(k2 / values["thermal"]), mult, add, "uint8" if byte else "uint16", 0)
        write(file, array, 30, nodata=None if first else 0)
        made.values[band] = k2 / np.log(k1 / radiance + 1)
        product[f"FILE_NAME_BAND_{key}"] = file.name
    if "thermal_high" in made.values:
        made.values["thermal"], made.files["thermal"] = made.values["thermal_high"], made.files["thermal_high"]
    if not (level2 or first):
        pan = np.kron(values["red"], np.ones((2, 2)))
        number = "8"
        rescaling |= {"REFLECTANCE_MULT_BAND_8": "2.0000E-05", "REFLECTANCE_ADD_BAND_8": "-0.100000"}
        sine = np.sin(np.radians(HEIGHT))
        if family != "LT":
            write(folder / f"{name}_B8.TIF", numbers(pan, 2e-5 / sine, -0.1 / sine, "uint16", 0)[0], 15, nodata=0)
            product["FILE_NAME_BAND_8"] = f"{name}_B8.TIF"
    what = "pixel_qa" if level == "SR" else "BQA" if first else "QA_PIXEL"
    codes = [c for c in CODES[what] if family in ("LC", "LO") or c not in (6816, 834, 54596)]
    qa = made.codes[what] = quality(CLEAR[what], codes)
    write(folder / f"{name}_{what}.{'tif' if level == 'SR' else 'TIF'}", qa, 30)
    product["FILE_NAME_BAND_QUALITY" if first else "FILE_NAME_QUALITY_L1_PIXEL"] = (
        f"{name}_{'BQA' if first else what}.TIF"
    )
    if not first or level == "SR":
        radsat = made.codes["QA_RADSAT"] = np.zeros((SIZE, SIZE), np.uint16)
        radsat[60:64, 50:60] = 1 << (int(table["red"]) - (level != "SR"))
        radsat[70:72, 50:60] = 1 << (int(table["swir1"]) - (level != "SR"))
        write(folder / f"{name}_{'radsat_qa.tif' if level == 'SR' else 'QA_RADSAT.TIF'}", radsat, 30)
        if not first:
            product["FILE_NAME_QUALITY_L1_RADIOMETRIC_SATURATION"] = f"{name}_QA_RADSAT.TIF"
    about = {"SPACECRAFT_ID": f"LANDSAT_{int(craft[2:])}", "SENSOR_ID": INSTRUMENTS[family]}
    about |= {"DATE_ACQUIRED": "2020-11-13", "SCENE_CENTER_TIME": "04:43:21.1234560Z"}
    sizes = {f"{kind}_{side}": str(SIZE) for kind in ("REFLECTIVE", "THERMAL") for side in ("LINES", "SAMPLES")}
    sizes |= {f"PANCHROMATIC_{side}": str(2 * SIZE) for side in ("LINES", "SAMPLES")}
    corner = {"CORNER_UL_PROJECTION_X_PRODUCT": str(UL[0] + 15), "CORNER_UL_PROJECTION_Y_PRODUCT": str(UL[1] - 15)}
    place = {"MAP_PROJECTION": "UTM", "DATUM": "WGS84", "ELLIPSOID": "WGS84", "UTM_ZONE": "45"}
    sun = {"SUN_AZIMUTH": "158.1", "SUN_ELEVATION": f"{HEIGHT:.8f}"}
    if first:
        groups = {
            "METADATA_FILE_INFO": {"LANDSAT_PRODUCT_ID": name, "COLLECTION_NUMBER": "01"},
            "PRODUCT_METADATA": {"DATA_TYPE": "L1TP", **about, **corner, **sizes, **product},
            "IMAGE_ATTRIBUTES": sun,
            "RADIOMETRIC_RESCALING": rescaling,
            "TIRS_THERMAL_CONSTANTS" if family == "LC" else "THERMAL_CONSTANTS": constants,
            "PROJECTION_PARAMETERS": place,
        }
    else:
        groups = {
            "PRODUCT_CONTENTS": {
                "LANDSAT_PRODUCT_ID": name,
                "PROCESSING_LEVEL": level,
                "COLLECTION_NUMBER": "02",
                **product,
            },
            "IMAGE_ATTRIBUTES": {**about, **sun},
            "PROJECTION_ATTRIBUTES": {**place, **sizes, **corner},
            **({"LEVEL2_PROCESSING_RECORD": {"LANDSAT_PRODUCT_ID": name, "PROCESSING_LEVEL": level}} if level2 else {}),
            **({"LEVEL2_SURFACE_REFLECTANCE_PARAMETERS": sr} if level2 else {}),
            **({"LEVEL2_SURFACE_TEMPERATURE_PARAMETERS": st} if level2 else {}),
            "LEVEL1_PROCESSING_RECORD": {"PROCESSING_LEVEL": "L1TP", "FILE_NAME_BAND_1": "of_level_1_B1.TIF"},
            "LEVEL1_RADIOMETRIC_RESCALING": rescaling,
            "LEVEL1_THERMAL_CONSTANTS": constants,
        }
    for kind in kinds:
        text = mtl(groups, "L1_METADATA_FILE" if first else "LANDSAT_METADATA_FILE", kind)
        made.metadata = folder / f"{name}_MTL.{kind}"
        made.metadata.write_text(text)
    (folder / f"{name}_ANG.txt").write_text("GROUP = FILE_HEADER\nEND_GROUP = FILE_HEADER\nEND\n")
    return made


# Sentinel-2

MSI = {"blue": ("B02", 10), "green": ("B03", 10), "red": ("B04", 10), "nir": ("B08", 10), "swir1": ("B11", 20)}
MSI["swir2"] = ("B12", 20)
IDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")


def sentinel2(folder, level="2A", baseline="05.00", old_names=False, gml=None, seed=0, quantification=10000):
    """Write a .SAFE into a folder; since baseline 04.00 numbers are larger by 1000."""
    values, offset = ground(seed), -1000 if baseline >= "04" else 0
    start, taken = f"S2B_MSIL{level}_20210101T044321", "T45RVL_20210101T044321"
    safe = folder / f"{start}_N{baseline.replace('.', '')}_R076_T45RVL_20210101T062123.SAFE"
    granule = safe / "GRANULE" / f"L{level}_T45RVL_A020006_20210101T044321"
    made = Made(safe, {}, "sentinel2", "2021-01-01T04:43:21Z")
    listed = []
    for band, (key, side) in MSI.items():
        sides = [side] if level == "1C" else [s for s in (10, 20, 60) if s >= side and not (key == "B08" and s > 10)]
        for s in sides:
            end, at = ("", "") if level == "1C" else (f"_{s}m", f"R{s}m/")
            file = granule / "IMG_DATA" / f"{at}{'L2A_' if old_names else ''}{taken}_{key}{end}.jp2"
            array, read = numbers(
                coarse(values[band], s // 10), 1 / quantification, offset / quantification, "uint16", 0
            )
            write(file, array, s)
            listed.append(file.relative_to(safe).as_posix().removesuffix(".jp2"))
            if s == side:
                made.files[band], made.values[band] = file, read
    if level == "2A":
        scl = made.codes["SCL"] = quality(4, (8, 9, 3, 10, 11, 2, 1), SIZE // 2, 0).astype(np.uint8)
        write(granule / f"IMG_DATA/R20m/{'L2A_' if old_names else ''}{taken}_SCL_20m.jp2", scl, 20)
        nir = granule / f"IMG_DATA/R20m/{'L2A_' if old_names else ''}{taken}_B8A_20m.jp2"
        write(nir, numbers(coarse(values["red"], 2), 1e-4, 0.0, "uint16", 0)[0], 20)
        (granule / "QI_DATA").mkdir()
        write(granule / "QI_DATA/MSK_CLDPRB_20m.jp2", np.full((SIZE // 2,) * 2, 100, np.uint8), 20)
    elif gml is not None:
        (granule / "QI_DATA").mkdir()
        (granule / "QI_DATA/MSK_CLOUDS_B00.gml").write_text(gml)
    elif baseline >= "04":
        classi = made.codes["CLASSI"] = np.zeros((3, SIZE // 6, SIZE // 6), np.uint8)
        classi[0, 4:6, 1:4], classi[1, 4:6, 6:9], classi[2, 8:, :] = 1, 1, 1
        write(granule / "QI_DATA/MSK_CLASSI_B00.jp2", classi, 60)
    tag = (
        ("RADIO_ADD_OFFSET", "Radiometric_Offset_List")
        if level == "1C"
        else ("BOA_ADD_OFFSET", "BOA_ADD_OFFSET_VALUES_LIST")
    )
    offsets = "".join(f'<{tag[0]} band_id="{i}">{offset}</{tag[0]}>' for i in range(13)) if offset else ""
    per_one = {
        "1C": f'<QUANTIFICATION_VALUE unit="none">{quantification}</QUANTIFICATION_VALUE>',
        "2A": '<QUANTIFICATION_VALUES_LIST><BOA_QUANTIFICATION_VALUE unit="none">'
        f"{quantification}</BOA_QUANTIFICATION_VALUE></QUANTIFICATION_VALUES_LIST>",
    }[level]
    if old_names:
        per_one = per_one.replace("BOA_Q", "L2A_BOA_Q").replace(
            "QUANTIFICATION_VALUES_LIST", "L1C_L2A_Quantification_Values_List"
        )
    image = "IMAGE_FILE_2A" if old_names else "IMAGE_FILE"
    images = "".join(f"<{image}>{name}</{image}>" for name in listed)
    schema = f"https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-{level}.xsd"
    made.metadata = safe / f"MTD_MSIL{level}.xml"
    made.metadata.write_text(
        '<?xml version="1.0" encoding="UTF-8" standalone="no"?>\n'
        f'<n1:Level-{level}_User_Product xmlns:n1="{schema}"><n1:General_Info><Product_Info>'
        "<PRODUCT_START_TIME>2021-01-01T04:43:21.024Z</PRODUCT_START_TIME>"
        f"<PRODUCT_URI>{safe.name}</PRODUCT_URI><PROCESSING_LEVEL>Level-{level}</PROCESSING_LEVEL>"
        f"<PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE>"
        "<Datatake><SPACECRAFT_NAME>Sentinel-2B</SPACECRAFT_NAME></Datatake><Product_Organisation><Granule_List>"
        f'<Granule imageFormat="JPEG2000">{images}</Granule></Granule_List></Product_Organisation></Product_Info>'
        f"<Product_Image_Characteristics>{per_one}<{tag[1]}>{offsets}</{tag[1]}></Product_Image_Characteristics>"
        f"</n1:General_Info></n1:Level-{level}_User_Product>\n"
    )
    sizes = "".join(
        f'<Size resolution="{s}"><NROWS>{SIZE * 10 // s}</NROWS><NCOLS>{SIZE * 10 // s}</NCOLS></Size>'
        for s in (10, 20, 60)
    )
    (granule / "MTD_TL.xml").write_text(
        f'<?xml version="1.0"?><n1:Level-{level}_Tile_ID xmlns:n1="x"><n1:Geometric_Info><Tile_Geocoding>'
        f"<HORIZONTAL_CS_CODE>EPSG:32645</HORIZONTAL_CS_CODE>{sizes}</Tile_Geocoding></n1:Geometric_Info>"
        f"</n1:Level-{level}_Tile_ID>"
    )
    (safe / "INSPIRE.xml").write_text("<gmd/>")
    (safe / "manifest.safe").write_text("<xfdu/>")
    return made


def clouds(**rings):
    """Return MSK_CLOUDS_B00.gml with one polygon of each kind, (x, y) points."""
    features = "".join(
        f'<eop:MaskFeature gml:id="{kind}.0"><eop:maskType codeSpace="urn:gs2:S2PDGS:maskType">{kind}</eop:maskType>'
        "<eop:extentOf><gml:Polygon><gml:exterior><gml:LinearRing>"
        f'<gml:posList srsDimension="2">{" ".join(f"{x} {y}" for x, y in ring)}</gml:posList>'
        "</gml:LinearRing></gml:exterior></gml:Polygon></eop:extentOf></eop:MaskFeature>"
        for kind, ring in rings.items()
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<eop:Mask xmlns:eop="http://www.opengis.net/eop/2.0" '
        'xmlns:gml="http://www.opengis.net/gml/3.2"><eop:maskMembers>' + features + "</eop:maskMembers></eop:Mask>\n"
    )


# HLS

S30 = {"blue": "B02", "green": "B03", "red": "B04", "nir": "B8A", "swir1": "B11", "swir2": "B12"}
L30 = {"blue": "B02", "green": "B03", "red": "B04", "nir": "B05", "swir1": "B06", "swir2": "B07", "thermal": "B10"}


def hls(folder, kind="L30", seed=0):
    """Write an HLS product, version 2.0."""
    values, name = ground(seed), f"HLS.{kind}.T45RVL.2021032T044321.v2.0"
    made = Made(folder, {}, "landsat8" if kind == "L30" else "sentinel2", "2021-02-01T04:43:21Z")
    table = L30 if kind == "L30" else S30
    for band, key in table.items():
        scale, offset = (0.01, 273.15) if band == "thermal" else (1e-4, 0.0)
        file = made.files[band] = folder / f"{name}.{key}.tif"
        array, made.values[band] = numbers(values[band], scale, offset, "int16", -9999)
        write(file, array, 30, crs=HLS_CRS, nodata=-9999, tags={"scale_factor": str(scale), "add_offset": "0.0"})
    if kind == "S30":  # the broad one
        write(folder / f"{name}.B08.tif", np.full((SIZE, SIZE), 1, np.int16), 30, crs=HLS_CRS, nodata=-9999)
    mask = made.codes["Fmask"] = quality(64, (2 + 64, 4 + 128, 8, 16 + 64, 32, 2 + 16), fill=255).astype(np.uint8)
    write(folder / f"{name}.Fmask.tif", mask, 30, crs=HLS_CRS, nodata=255)
    (folder / f"{name}.cmr.xml").write_text("<Granule/>")
    made.metadata = folder / f"{name}.cmr.xml"
    return made


# any of them

KINDS = {
    "LC08 C2 L2": lambda folder: landsat(folder),
    "LC09 C2 L1": lambda folder: landsat(folder, "LC09", "L1TP"),
    "LO08 C2 L2": lambda folder: landsat(folder, "LO08", "L2SR"),
    "LE07 C2 L2": lambda folder: landsat(folder, "LE07", "L2SP"),
    "LE07 C2 L1": lambda folder: landsat(folder, "LE07", "L1TP"),
    "LT05 C2 L2": lambda folder: landsat(folder, "LT05", "L2SP"),
    "LC08 C1 L1": lambda folder: landsat(folder, "LC08", "L1TP", 1, ("txt",)),
    "LE07 C1 L1": lambda folder: landsat(folder, "LE07", "L1TP", 1, ("txt",)),
    "LT04 C1 L1": lambda folder: landsat(folder, "LT04", "L1TP", 1, ("txt",)),
    "LC08 C1 L2": lambda folder: landsat(folder, "LC08", "SR", 1, ("txt",)),
    "S2 L2A": lambda folder: sentinel2(folder),
    "S2 L2A old": lambda folder: sentinel2(folder, baseline="02.06", old_names=True),
    "S2 L1C": lambda folder: sentinel2(folder, "1C"),
    "S2 L1C old": lambda folder: sentinel2(folder, "1C", "02.09"),
    "HLS L30": lambda folder: hls(folder),
    "HLS S30": lambda folder: hls(folder, "S30"),
}
"""Kind of product -> what writes it."""


def packed(made, kind):
    """Return an archive of a product beside it: tar, gztar or zip; a .SAFE with its folder."""
    inner = {"base_dir": made.path.name} if made.path.suffix == ".SAFE" else {}
    root = made.path.parent if inner else made.path
    return Path(shutil.make_archive(str(made.path.parent / f"{made.path.name}_packed"), kind, root, **inner))
