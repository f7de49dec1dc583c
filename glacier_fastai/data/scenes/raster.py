"""The one door for GDAL: rasters opened by a named driver, and coordinate reference systems.

GDAL opens a file by its content, whatever its name says, and some formats are but a text that names a server, or other
files. So a file's kind is found here, by how it begins, and what it leads to is looked at before GDAL sees it. GDAL
reads local files; of one on the network, whose address the user named, it is given the bytes (`web`).
"""

from __future__ import annotations

import json
import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyproj
import rasterio
from pyproj import CRS, Geod, Transformer
from pyproj.exceptions import CRSError, ProjError
from rasterio._err import CPLE_BaseError  # what rasterio does not translate
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.session import DummySession

from ...errors import DataError
from ...memory import available, fits
from ...reading import opened, refusing
from .address import Address, shown
from .headers import Read, check_netcdf, check_tiff
from .web import LOST, Link, open_link

__all__ = [
    "DRIVERS",
    "OFFLINE",
    "block_cache",
    "block_rows",
    "check_place",
    "check_within",
    "horizontal",
    "local_file",
    "open_raster",
    "parse_crs",
    "pixel_size",
    "placeless",
    "reading",
    "same_crs",
    "same_grid",
    "steps",
    "unknown_shift",
]

DRIVERS = {  # GDAL's names of what is read, and how such files begin
    "GTiff": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "JP2OpenJPEG": (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),
    "PNG": (b"\x89PNG\r\n",),
    "JPEG": (b"\xff\xd8\xff",),
    "HFA": (b"EHFA_HEADER_TAG",),
    "netCDF": (b"CDF\1", b"CDF\2", b"CDF\5", b"\x89HDF\r\n"),
    "VRT": (b"<VRTDataset",),
    "ENVI": (b"",),  # raw numbers, a header beside
}
_one_is_quiet = Lock()
FINEST = 1e-3  # side of a pixel, metres; of less, degrees are called metres
FAR = 1e12  # in a CRS, beyond which nothing lies
FROM_WEB = ("GTiff", "JP2OpenJPEG", "PNG", "JPEG")  # what needs no other file
READ = "GeoTIFF, JPEG 2000, PNG, JPEG, ERDAS Imagine, netCDF-3, ENVI and VRT are read; make a GeoTIFF (gdal_translate)"

OFFLINE = {  # GDAL's options while it opens and reads, should anything get past what is looked at here
    "GDAL_NUM_THREADS": "1",  # in threads of its own it passes over damaged blocks of JPEG 2000
    "CPL_VSIL_CURL_ALLOWED_FILENAME": "none",
    "GDAL_HTTP_PROXY": "http://127.0.0.1:1",
    "GDAL_HTTPS_PROXY": "http://127.0.0.1:1",
    "GDAL_HTTP_CONNECTTIMEOUT": "5",
    "GDAL_HTTP_MAX_RETRY": "0",
    "GDAL_VRT_ENABLE_PYTHON": "NO",
    "GML_DOWNLOAD_SCHEMA": "NO",
    # what people set for other programs, and by which masks, scales and half a pixel would be lost here
    "GDAL_DISABLE_READDIR_ON_OPEN": "FALSE",
    "GDAL_PAM_ENABLED": "YES",
    "GTIFF_POINT_GEO_IGNORE": "FALSE",
    # by which damage would be passed over, and other pixels or places be read
    "GTIFF_IGNORE_READ_ERRORS": "NO",
    "GDAL_GEOREF_SOURCES": "PAM,INTERNAL,TABFILE,WORLDFILE,XML",
    "GDAL_USE_GEOJP2": "YES",
    "GDAL_USE_GMLJP2": "YES",
    "OGR_ORGANIZE_POLYGONS": "",  # as each driver wants; a name would stand for all
    "GML_SWAP_COORDINATES": "AUTO",
    "GML_INVERT_AXIS_ORDER_IF_LAT_LONG": "YES",
    "GML_CONSIDER_EPSG_AS_URN": "AUTO",
}

BESIDE = (".msk", ".ovr")  # rasters that GDAL opens with one that is named so
BROKEN = "not a raster, cut short or damaged"
BANDS = 2**12  # most of a raster
# what else GDAL reads with a raster, for what products say of it: named as it begins, or always the same
TEXTS = (".aux", ".dim", ".eph", ".hdr", ".imd", ".pass", ".pvl", ".rpb", ".rpc", ".txt", ".xml")
ALWAYS = ("summary.txt", "metadata.dim", "dim_", "rpc_", "rpc-")
PNG_ENDS, LAST = b"IEND\xaeB`\x82", 2**16  # how a PNG ends, and in how many last bytes of its file
LARGEST = 2**26  # text of a VRT or beside a raster, and what a TIFF says of itself beside its pixels, bytes
DEEPEST, SOURCES = 4, 2**14  # VRTs within VRTs, and rasters that one takes in all
# of a VRT: what leads nowhere but to a source; GDAL takes an element for an attribute, and the other way round
ELEMENTS = """vrtdataset srs geotransform gcplist gcp metadata mdi vrtrasterband description unittype offset scale
    nodatavalue hidenodatavalue colorinterp colortable entry categorynames category histograms histitem
    histmin histmax bucketcount includeoutofrange approximate histcounts maskband overviewlist overview
    simplesource complexsource averagedsource kernelfilteredsource kernel size coefs sourcefilename
    sourceband sourceproperties srcrect dstrect nodata scaleoffset scaleratio exponent srcmin srcmax
    dstmin dstmax clamp lut colortablecomponent usemaskband blockxsize blockysize gdalwarpoptions
    warpmemorylimit resamplealg workingdatatype option sourcedataset bandlist bandmapping srcnodatareal
    srcnodataimag dstnodatareal dstnodataimag srcalphaband dstalphaband transformer approxtransformer
    maxerror basetransformer genimgprojtransformer srcgeotransform srcinvgeotransform dstgeotransform
    dstinvgeotransform reprojecttransformer reprojectiontransformer sourcesrs targetsrs options"""
ATTRIBUTES = """rasterxsize rasterysize blockxsize blockysize subclass datatype band relativetovrt shared resampling
    name domain format key xoff yoff xsize ysize c1 c2 c3 c4 id info pixel line x y z projection
    dataaxistosrsaxismapping coordinateepoch normalized src dst"""
SUBCLASSES = ("vrtdataset", "vrtwarpeddataset", "vrtrasterband", "vrtsourcedrasterband", "vrtwarpedrasterband")

OF_PLACES = re.compile(rb"(internal_)?proj_\w+:|Error: Key ")  # what PROJ and libgeotiff write themselves
LEAST_CACHE = 2**25  # bytes of GDAL's block cache

WRITTEN = re.compile(  # how a coordinate reference system is written: code, URN, OGC's name for one, WKT, JSON, PROJ
    r"(?i:\w+:[\w.]+(\+(\w+:)?[\w.]+)?$|urn:(x-)?ogc:def:crs[:,]|https?://(www\.)?opengis\.net/def/crs/)"
    r"|[A-Z_0-9]+\s*[\[(]|\{|\+proj=\w"
)
# of a CRS: what names a file, which is needed where it is named by its place; those of PROJ have but a name
NAMES_FILE = re.compile(
    r"(?i)(init=)[^\s\"]*|(?:grids|file|model)=[\\\"']*([^\s\"']*)|PARAMETERFILE\s*[\[(]\s*\"[^\"]*\"\s*,\s*\"([^\"]*)"
)

pyproj.network.set_network_enabled(False)  # or a CRS might ask for its grids
os.environ["PROJ_NETWORK"] = "OFF"  # that of GDAL, too


@contextmanager
def reading(
    path: str | os.PathLike,  # file that is read, for the message
) -> Iterator[None]:
    """Turn what GDAL cannot read into a `DataError`; whatever the file says, GDAL asks no network meanwhile."""
    lost = len(LOST)
    try:
        with rasterio.Env(DummySession(), **OFFLINE):
            yield
        if LOST[lost:]:
            raise DataError(LOST[lost])
    except (RasterioError, CPLE_BaseError, UnicodeError) as err:
        if LOST[lost:]:
            raise DataError(LOST[lost]) from None
        why = " ".join(str(err).split())
        raise DataError(f"{path}: {BROKEN} ({why}); copy it again") from err
    except MemoryError as err:
        raise DataError(f"{path}: not enough memory to read it ({err}); cut it (gdal_translate -srcwin)") from err


def local_file(
    path: str | os.PathLike,
) -> Path:
    """Return the absolute path of a regular file on this disk, which GDAL takes for nothing else.

    >>> local_file("https://x.org/scene.tif")
    Traceback (most recent call last):
    glacier_fastai.errors.DataError: https://x.org/scene.tif: only files on this disk are read; copy it here
    """
    text = os.fspath(path)
    try:
        mode = os.stat(text).st_mode
    except (OSError, ValueError) as err:  # of a NUL, or a lone surrogate
        elsewhere = re.match(r"[a-z][a-z0-9+.-]+://|/vsi", text, re.IGNORECASE)
        missing = isinstance(err, FileNotFoundError | NotADirectoryError)
        why = "only files on this disk are read; copy it here" if elsewhere else "no such file"
        text = (shown(text) if elsewhere else text).encode(errors="backslashreplace").decode()
        raise DataError(f"{text}: {why if missing or elsewhere else f'cannot be read ({_why(err)})'}") from err
    if not stat.S_ISREG(mode):
        folder = stat.S_ISDIR(mode)
        kind = "is a folder; name the file in it" if folder else "no regular file (a pipe or a device); give a file"
        raise DataError(f"{path}: {kind}")
    full = "/" + os.path.join(os.getcwd(), text).lstrip("/") if os.sep == "/" else os.path.abspath(text)
    printed = full.encode(errors="backslashreplace").decode()
    if printed != full or full.startswith("/vsi") or "<VRTDataset" in full:
        raise DataError(f"{printed}: GDAL does not take that for the name of a file; rename it")
    return Path(full)


def _why(err: Exception) -> str:
    return err.strerror if isinstance(err, OSError) and err.strerror else " ".join(str(err).split())


def open_raster(
    path: str | os.PathLike,  # of one of `DRIVERS`, or an `Address` of `FROM_WEB`; it may have no georeference
    called: str = "",  # how messages call it, default its path
) -> rasterio.DatasetReader:
    """Open a raster for reading; raises `DataError`. What is read from it later belongs into `reading`.

    A VRT may name files beside it or below it, by relative names, as GDAL writes them, and nothing else.
    """
    if isinstance(path, Address):
        return _open_address(path)
    full = local_file(path)
    return _open(full, called or str(path), os.path.realpath(full.parent))


def _open(
    path: Path,
    name: str,  # for messages
    home: str,  # folder in which what it leads to must lie
    above: tuple[str, ...] = (),  # the VRTs that name it
    seen: dict[str, int] | None = None,  # what these and others before have led to, and to how many rasters that leads
) -> rasterio.DatasetReader:
    """Open a raster, and look at what it leads to."""
    with opened(path, DataError, link=True) as file:
        begins, size = file.read(1024), os.fstat(file.fileno()).st_size
        vrt = DRIVERS["VRT"][0] in begins  # whatever else it is: GDAL looks for that first
        driver = "VRT" if vrt else next(k for k, starts in DRIVERS.items() if begins.startswith(starts))

        def read(start: int, stop: int) -> bytes:
            file.seek(start)
            return file.read(stop - start)

        _check_header(driver, begins, read, name)
        ends = read(max(size - LAST, 0), size)
    if above and driver == "ENVI":
        raise DataError(f"{above[0]}: takes {name}, which is no raster that a VRT may take; {READ}")
    if driver == "netCDF" and (odd := "GDAL_NETCDF_BOTTOMUP") in os.environ:  # whatever it is, it stands for all files
        raise DataError(f"{name}: {odd}, in the environment, may turn it upside down; unset it")
    _look_beside(path, home)
    if driver == "VRT":
        _look_into(path, name, home, above, {} if seen is None else seen)
    with refusing(name, DataError, BROKEN, f"copy it again; {READ}"), rasterio.Env(DummySession(), **OFFLINE):
        with _quiet(driver):
            raster = rasterio.open(path, driver=driver)
        try:
            if driver == "netCDF" and begins.startswith(b"\x89HDF") and raster.count:
                raise DataError(f"{name}: netCDF-4, which may take its values from other files; {READ}")
            for other in raster.files if driver == "HFA" else ():
                check_within(Path(other), home, name)
            _check_inside(raster, name, size)
            _check_whole(raster, name, size, ends)
        except BaseException:
            raster.close()
            raise
        return raster


@contextmanager
def _quiet(driver: str) -> Iterator[None]:
    """Let no warning come of a raster without a place, nor what libgeotiff and its PROJ themselves write of a CRS."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        if driver not in ("JP2OpenJPEG", "GTiff") or not hasattr(os, "memfd_create"):
            yield
            return
        stack.enter_context(_one_is_quiet)
        try:
            kept = os.dup(2)
        except OSError:  # it is closed
            yield
            return
        stack.callback(os.close, kept)
        with open(os.memfd_create("stderr"), "r+b") as said:
            os.dup2(said.fileno(), 2)
            try:
                yield
            finally:
                os.dup2(kept, 2)
            said.seek(0)
            lines = said.readlines() if driver == "GTiff" else []  # of a JPEG 2000, libgeotiff writes a lot
            other = b"".join(line for line in lines if not OF_PLACES.match(line))  # of other threads
            with suppress(OSError):  # nobody reads them
                while other:
                    other = other[os.write(2, other) :]


def _open_address(address: Address) -> rasterio.DatasetReader:
    link = Link(address)
    try:
        driver = next((k for k in FROM_WEB if link.begins.startswith(DRIVERS[k])), "")
        if not driver:
            page = re.match(rb"(?i)\s*<(!doctype )?html", link.begins)
            what = "answers with a web page" if page else "none of the rasters that are read from there"
            raise DataError(f"{address}: {what}; they are GeoTIFF, JPEG 2000, PNG and JPEG, others only from this disk")
        if not link.identity:
            raise DataError(f"{address}: its server sends no parts of files; download it, and name the file")
        _check_header(
            driver, link.begins, lambda a, b: link.read(a, min(b, link.size)) if a < link.size else b"", str(address)
        )
        alone = {**OFFLINE, "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}  # it has nothing beside
        with reading(address), rasterio.Env(DummySession(), **alone), _quiet("" if driver == "GTiff" else driver):
            raster = open_link(link, driver)
    except BaseException:
        link.close()
        raise
    try:
        with reading(address):
            _check_inside(raster, str(address), link.size)
            if driver == "PNG":
                _check_whole(raster, str(address), link.size, link.read(max(link.size - LAST, 0), link.size))
    except BaseException:
        raster.close()
        raise
    return raster


def _check_header(driver: str, begins: bytes, read: Read, name: str) -> None:
    """Refuse what GDAL would read for ever, or die of."""
    with refusing(name, DataError, BROKEN, "write it anew (gdal_translate)"):
        if driver == "GTiff":
            check_tiff(read)
        elif driver == "netCDF" and begins.startswith(b"CDF"):
            check_netcdf(read)


def _check_inside(raster: rasterio.DatasetReader, name: str, size: int) -> None:
    """Refuse a raster that leads to another, has no place, blocks that cannot be held, or more bytes than pixels."""
    place = raster.transform
    if place.is_degenerate or not all(abs(number) < FAR for number in place[:6]):
        raise DataError(
            f"{name}: has no geotransform that says where its pixels lie; assign its edges (gdal_edit.py -a_ullr LEFT "
            "TOP RIGHT BOTTOM)"
        )
    if raster.tags(ns="OVERVIEWS"):
        raise DataError(f"{name}: says that its overviews lie in another file; write it anew (gdal_translate)")
    if raster.count > BANDS:
        raise DataError(
            f"{name}: has {raster.count:,} bands, at most {BANDS:,} are read; take a part (gdal_translate -b)"
        )
    pixel = sum(16 if "complex" in t else np.dtype(t).itemsize for t in raster.dtypes)
    high, wide = max(raster.block_shapes, key=np.prod, default=(0, 0))
    fits(2 * high * wide * pixel, f"{name}: its blocks of {high} x {wide} px", "write it with others (-co TILED=YES)")
    needed = raster.height * raster.width * pixel
    if size > 4 * needed + 2**30:  # it would be hashed to its end
        raise DataError(f"{name}: has {size:,} bytes for {needed:,} of pixels; write it anew (gdal_translate)")


def _check_whole(raster: rasterio.DatasetReader, name: str, size: int, ends: bytes) -> None:
    """Refuse a file that is cut short where GDAL gives zeros for what is missing, or whatever lies in memory."""
    short, about = raster.driver == "PNG" and PNG_ENDS not in ends, raster.tags(ns="ENVI")
    if raster.driver == "ENVI" and not re.match(r"\s*\+?0*[1-9]", about.get("file_compression", "0")):
        pixel = sum(np.dtype(t).itemsize for t in raster.dtypes)
        short = size < int(about.get("header_offset", 0)) + raster.height * raster.width * pixel
    if short:
        raise DataError(f"{name}: cut short, at {size:,} bytes; copy it again")


def check_within(
    path: Path,  # that a file leads to
    home: str,  # folder of that file, links resolved
    name: str,  # of that file, for the message
) -> None:
    """Raise `DataError` if a file leads to another place than its own folder and those below."""
    if os.path.commonpath([os.path.realpath(path), home]) != home:
        raise DataError(
            f"{name}: takes {path}, which does not lie beside or below it; put both into one folder, or make one file "
            "of them (gdal_translate)"
        )


def _look_beside(path: Path, home: str) -> None:
    """Refuse what GDAL would open with a raster because it is named so, if it is of another kind or leads elsewhere."""
    starts = path.name.lower() + ".", path.stem.lower() + "."
    texts = path.stem[:8].lower(), *ALWAYS
    with refusing(path, DataError, "its folder cannot be read"), os.scandir(path.parent) as entries:
        names = [(e.name, e.name.lower()) for e in entries if e.name != path.name]
    found = [n for n, low in names if low.startswith(starts) or low.startswith(texts) and low.endswith(TEXTS)]
    for own in map(path.with_name, found):
        name = own.name.lower()
        if own.is_dir() or not own.exists() or own.is_file() and not own.stat().st_size:
            continue
        local_file(own)
        if not name.endswith((*BESIDE, *TEXTS)):
            continue
        if own.is_symlink():
            check_within(own, os.path.dirname(os.path.realpath(path)), str(path))
        if name.endswith(TEXTS) and own.stat().st_size > LARGEST:
            raise DataError(f"{own}: has more than {LARGEST:,} bytes; move it away")
        if name in [path.name.lower() + end for end in BESIDE]:
            with opened(own, DataError, link=True) as file:
                if not file.read(16).startswith((*DRIVERS["GTiff"], *DRIVERS["HFA"], *DRIVERS["PNG"])):
                    raise DataError(f"{own}: no mask or overviews of {path.name}, as its name says; move it away")
            _open(own, str(own), home).close()


def _look_into(path: Path, name: str, home: str, above: tuple[str, ...], seen: dict[str, int]) -> None:
    """Refuse a VRT that leads to anything but rasters beside it or below it, or to more than can be read."""
    own = os.path.realpath(path)
    if len(above) == DEEPEST:
        raise DataError(f"{above[-1]}: VRTs within VRTs, more than {DEEPEST} deep or in themselves; make a GeoTIFF")
    with opened(path, DataError, LARGEST, link=True) as file, refusing(name, DataError, "damaged, or no VRT"):
        text = file.read()
        if re.search(rb"<!(?!--)|<\?(?!xml\s)|(?i:\sencoding\s*=\s*[\"'](?!utf-8[\"']))", text):
            raise ValueError("it declares things that no VRT needs")
        text.decode()  # what else it may be, GDAL does not know
        root = ElementTree.fromstring(text)
    many = 0
    with refusing(name, DataError, "a VRT that cannot be used", "make a GeoTIFF of it (gdal_translate)"):
        for element in root.iter():
            tag, value = element.tag.lower(), element.text or ""
            attributes = {k.lower(): v for k, v in element.attrib.items()}
            if len(attributes) < len(element.attrib):
                raise ValueError(f"an attribute of {element.tag} stands twice")
            odd = {tag} - {*ELEMENTS.split()} or attributes.keys() - {*ATTRIBUTES.split()}
            if odd := odd or {attributes.get("subclass", SUBCLASSES[0]).lower()} - {*SUBCLASSES}:
                raise ValueError(f"{sorted(odd)[0]} is not allowed in it")
            for crs in (value if tag in ("srs", "sourcesrs", "targetsrs") else "", attributes.get("projection", "")):
                if crs.strip():
                    parse_crs(crs)
            if tag not in ("sourcefilename", "sourcedataset"):
                continue
            relative = attributes.get("relativetovrt", "0").strip() == "1"
            if len(element) or value != value.strip() or not relative or value.startswith("/") or ":" in value:
                raise ValueError(f"{value.strip()!r} is no relative name of a file beside or below it")
            source = local_file(Path(own).parent / value)
            check_within(source, home, name)
            if (real := os.path.realpath(source)) in (*above, own):
                raise ValueError("it leads to itself")
            if real not in seen:
                _open(source, value, home, (*above, own), seen).close()
            many += seen.setdefault(real, 1)
            if many > SOURCES:
                raise ValueError(f"it takes more than {SOURCES:,} rasters, or the same so often")
    seen[own] = max(many, 1)


def block_rows(
    raster: rasterio.DatasetReader,  # that is read row by row
) -> int:
    """Return the bytes of a row of its blocks."""
    return sum(shape[0] * np.dtype(t).itemsize for shape, t in zip(raster.block_shapes, raster.dtypes, strict=True)) * (
        raster.width
    )


def block_cache(
    rows: int,  # bytes of a row of blocks of all that is read at once
) -> rasterio.Env:
    """Let GDAL keep two rows of blocks; its own limit, 5 % of the machine's memory, grows with nothing we know."""
    return rasterio.Env(DummySession(), GDAL_CACHEMAX=max(min(2 * rows, available() // 8), LEAST_CACHE))


def parse_crs(
    crs: Any,  # an object of rasterio or pyproj, a number of EPSG, or a text
) -> CRS:
    """Return a coordinate reference system written as authority and code, WKT, PROJJSON, or PROJ's parameters.

    Nothing else is: not the name of a file or an address, from which GDAL reads one, and none that needs a file.

    >>> parse_crs("EPSG:32645").name, parse_crs("urn:ogc:def:crs:OGC:1.3:CRS84").name
    ('WGS 84 / UTM zone 45N', 'WGS 84 (CRS84)')
    >>> parse_crs("https://x.org/crs")
    Traceback (most recent call last):
    pyproj.exceptions.CRSError: 'https://x.org/crs' is not written as EPSG:CODE, WKT or PROJJSON

    Raises:
        CRSError: It is written in another way, unknown or damaged.
    """
    if isinstance(crs, int | np.integer):
        return _parsed(f"EPSG:{crs}")
    if isinstance(crs, CRS):
        _check_alone(crs.to_wkt())
        return crs
    if isinstance(crs, dict):  # PROJJSON
        return _parsed(json.dumps(crs))
    return _parsed(crs.to_wkt() if hasattr(crs, "to_wkt") else str(crs).strip())


@lru_cache(256)
def _parsed(text: str) -> CRS:
    if not (WRITTEN.match(text) and len(text) < 2**17):
        raise CRSError(f"{text[:80]!r} is not written as EPSG:CODE, WKT or PROJJSON")
    _check_alone(text)
    try:
        crs = CRS(text)
        _check_alone(crs.to_wkt())
    except Exception as err:  # of JSON of other things, too
        raise CRSError(" ".join(str(err).split())[:160]) from err
    return crs


def _check_alone(text: str) -> None:
    for found in NAMES_FILE.finditer(text):
        if found[1] or re.search(r"[/\\~:]", found[2] or found[3] or ""):
            raise CRSError(f"it needs a file, {found[0][:80]!r}; write it without")


def placeless(
    transform: Any,  # affine, its six coefficients first
) -> bool:
    """Return whether a geotransform says no place, but counts pixels, down or up."""
    a, b, c, d, e, f = transform[:6]
    return (a, b, c, d, abs(e), f) == (1, 0, 0, 0, 1, 0)


def check_place(
    raster: rasterio.DatasetReader,
    path: Any,  # for messages
) -> None:
    """Raise `DataError` if a raster has no coordinate reference system, one that cannot be used, or cannot lie in it.

    Without a geotransform it may be; see `placeless`.
    """
    if raster.crs is None:
        raise DataError(f"{path}: has no coordinate reference system; assign one (gdal_edit.py -a_srs)")
    what = "its coordinate reference system cannot be used"
    with refusing(path, DataError, what, "assign one (gdal_edit.py -a_srs)"):
        crs = horizontal(raster.crs)
    if not placeless(raster.transform) and (odd := _misplaced(crs, raster.transform, raster.shape)):
        raise DataError(
            f"{path}: its coordinate reference system is {crs.name}, in which it {odd}; assign that of its coordinates "
            "(gdal_edit.py -a_srs EPSG:CODE)"
        )


def _misplaced(crs: CRS, transform: Any, shape: tuple[int, int]) -> str:
    """Return why coordinates cannot be of a CRS, empty if they can."""
    a, b, c, d, e, f = transform[:6]
    col, row = np.meshgrid(np.linspace(0, shape[1], 5), np.linspace(0, shape[0], 5))
    x, y = a * col + b * row + c, d * col + e * row + f
    pixel = abs(d) + abs(e)
    if crs.is_geographic:
        pole = np.pi / 2 / crs.axis_info[0].unit_conversion_factor
        if abs(y).max() > pole + 1.01 * pixel:  # pixels around the pole itself may reach beyond
            return f"reaches to latitude {y.flat[abs(y).argmax()]:.8g}"
    if crs.is_projected and crs.geodetic_crs is not None:
        with suppress(ProjError):
            there = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
            back = there.transform(*there.transform(x, y), direction="INVERSE")[1]  # x may be a turn around the Earth
            if not (abs(back - y) <= pixel + abs(y) / 100).any():  # inverses of some projections are coarse
                return f"lies nowhere on the Earth ({x[2, 2]:.8g}, {y[2, 2]:.8g})"
    side = pixel_size(crs, transform, shape)
    return f"has pixels of {side:.2g} m" if side is not None and side < FINEST else ""


def horizontal(
    crs: Any,  # coordinate reference system, as rasterio or pyproj have it, or as text
) -> CRS:
    """Return the horizontal part of a CRS, on which maps are drawn: of a compound one, that without the heights.

    >>> horizontal("EPSG:32645+5773").to_epsg()
    32645
    """
    return parse_crs(crs).to_2d()


def same_crs(
    a: Any,  # as in `horizontal`
    b: Any,
) -> bool:
    """Return whether two CRSs have the same horizontal part, however they are written."""
    return a == b or horizontal(a).equals(horizontal(b), ignore_axis_order=True)


def unknown_shift(
    crs: Any,  # as in `horizontal`
    scene: Any,  # what it is brought to: its `crs`
    transform: Any,  # its affine transform
    shape: tuple[int, int],  # its rows and columns
) -> str:
    """Return what to say where PROJ knows no shift between two datums, and takes longitude and latitude as they are.

    Empty where it does, where both are geocentric, as those on GRS 80 (a metre or two), or one is a sphere.

    >>> unknown_shift("EPSG:4144", "EPSG:32645", (30, 0, 5e5, 0, -30, 3.1e6), (64, 64))[:47]
    'the shift from the datum of Kalianpur 1937 to t'
    """
    own, other = horizontal(crs), horizontal(scene)
    one, two = own.ellipsoid, other.ellipsoid
    if not (one and two and one.inverse_flattening and two.inverse_flattening):
        return ""
    if abs(one.semi_major_metre - two.semi_major_metre) < 1:
        return ""
    a, b, c, d, e, f = transform[:6]
    col, row = shape[1] / 2, shape[0] / 2
    with suppress(ProjError):
        shift = Transformer.from_crs(other, own, always_xy=True)
        shift.transform(a * col + b * row + c, d * col + e * row + f)
        with suppress(ProjError):  # there was but one way
            shift = shift.get_last_used_operation()
        if "Ballpark" in shift.description:
            names = f"from the datum of {own.name} to that of {other.name}"
            return f"the shift {names} is not known here, so it may lie some 100 m off; look whether it fits"
    return ""


def same_grid(
    a: Any,  # affine transform, its six coefficients first
    b: Any,
    shape: tuple[int, int],  # rows and columns of both
) -> bool:
    """Return whether pixels lie on one another, to a hundredth of a pixel over the whole raster, whatever the unit.

    >>> same_grid((30, 0, 500_000, 0, -30, 900), (30, 0, 500_000.2, 0, -30, 900), (64, 64))
    True
    >>> same_grid((3e-4, 0, 86, 0, -3e-4, 28), (3e-4, 0, 86.0001, 0, -3e-4, 28), (64, 64))
    False
    """
    height, width = shape
    first, second = np.array(a[:6], float), np.array(b[:6], float)
    shift = np.abs(first - second) * (width, height, 1, width, height, 1)
    side = np.sqrt(abs(first[0] * first[4] - first[1] * first[3]))
    return bool(shift.max() <= 0.01 * side)


def pixel_size(
    crs: Any,  # as in `horizontal`
    transform: Any,  # affine transform, its six coefficients first
    shape: tuple[int, int],  # rows and columns
) -> float | None:
    """Return the side of a pixel on the ground at the centre of a raster, metres; None where the CRS does not tell.

    >>> round(pixel_size("EPSG:32645", (30, 0, 500_000, 0, -30, 3_100_000), (64, 64)), 1)
    30.0
    >>> round(pixel_size("EPSG:3857", (30, 0, 0, 0, -30, 8_400_000), (64, 64)), 1)
    15.0
    """
    a, b, c, d, e, f = transform[:6]
    x, y = (g + p * shape[1] / 2 + q * shape[0] / 2 for p, q, g in ((a, b, c), (d, e, f)))
    along, across = (steps(crs, x, y, *by) for by in ((a, d), (b, e)))
    side = float(np.sqrt(along * across))
    return side if np.isfinite(side) else None


def steps(
    crs: Any,  # as in `horizontal`
    x: Any,  # where they are made: numbers or arrays, in the CRS
    y: Any,
    right: float,  # how far each leads, in the CRS
    up: float,
) -> Any:
    """Return how long steps are on the ground, metres; NaN where the CRS does not tell.

    >>> round(float(steps("EPSG:4326", 10.0, 60.0, 0.001, 0.0)), 2)
    55.8
    """
    x, y = np.broadcast_arrays(np.asarray(x, float), np.asarray(y, float))
    try:
        to_degrees = Transformer.from_crs(horizontal(crs), "EPSG:4326", always_xy=True)
        (lon, lat), (to_lon, to_lat) = (to_degrees.transform(x + k * right, y + k * up) for k in (-0.5, 0.5))
    except ProjError:
        return np.full(x.shape, np.nan)
    on_earth = np.isfinite([lon, lat, to_lon, to_lat]).all(0)
    lon, lat, to_lon, to_lat = (np.where(on_earth, v, 0) for v in (lon, lat, to_lon, to_lat))
    return np.where(on_earth, Geod(ellps="WGS84").inv(lon, lat, to_lon, to_lat)[2], np.nan)
