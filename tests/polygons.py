"""Made-up polygons on a made-up grid, and what they are burned to."""

import warnings

import geopandas
import numpy as np
import pytest
import shapely
from pyproj import Transformer
from rasterio.transform import from_origin
from scenes import CRS
from shapely.geometry import box

from glacier_fastai.data.sources.outlines import burn_outlines, open_outlines
from glacier_fastai.errors import DataError, DataNote

X, Y = 500_000, 3_100_000  # upper left corner of the made-up scenes
GRID = from_origin(X, Y, 30, 30)
SHAPE = (96, 80)
ROTATED_POLE = "+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=39.25 +lon_0=18 +to_meter=0.0174532925199433"
LOCAL = 'LOCAL_CS["site grid",UNIT["metre",1]]'


def rectangle(row, col, height, width, grid=GRID, detail=None):
    """A rectangle of pixels, its rim with a vertex every `detail` pixels."""
    pixels = box(col, row, col + width, row + height)
    pixels = shapely.segmentize(pixels, detail) if detail else pixels
    a, b, c, d, e, f = grid[:6]
    return shapely.transform(pixels, lambda x, y: (a * x + b * y + c, d * x + e * y + f), interleaved=False)


def outlines(path, shapes, crs=CRS, to=None, **columns):
    table = geopandas.GeoDataFrame(columns, geometry=list(shapes), crs=crs)
    table = table.to_crs(to) if to else table
    if path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_file(path)
    return path


def burn(*files, field=None, crs=CRS, grid=GRID, shape=SHAPE, scene="s.tif", **options):
    """Return the mask, how many polygons lie on it, and the notes."""
    notes = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of libraries
        warnings.simplefilter("ignore", DataNote)
        opened = open_outlines(files, field)
        mask, count = burn_outlines(opened, crs, grid, shape, notes=notes, scene=scene, **options)
    assert mask.dtype == np.uint8
    assert mask.shape == shape
    assert not any("\n" in text for text in notes)
    return mask, count, notes


def want(*parts, shape=SHAPE):
    """The mask of `(row, col, height, width, class)`, the later over the earlier."""
    mask = np.zeros(shape, np.uint8)
    for row, col, height, width, code in parts:
        mask[row : row + height, col : col + width] = code
    return mask


def refused(message, *files, error=DataError, **kwargs):
    with pytest.raises(error, match=message) as err:
        burn(*files, **kwargs)
    assert "\n" not in str(err.value)


def across(crs="EPSG:32601", lon=180.0, lat=67.0, size=30):
    """A grid of 128 x 128 px around a place."""
    x, y = Transformer.from_crs(4326, crs, always_xy=True).transform(lon, lat)
    return from_origin(x - 64 * size, y + 64 * size, size, size)


def shifted(path, shift, shapes, crs, to="EPSG:4326"):
    """Outlines whose longitudes are all within 360 degrees from `shift`."""
    table = geopandas.GeoSeries(list(shapes), crs=crs).to_crs(to)
    moved = shapely.transform(table.values, lambda x, y: (shift + (x - shift) % 360, y), interleaved=False)
    geopandas.GeoSeries(moved, crs=to).to_file(path)
    return path


PARTS = [(10, 10, 20, 20), (60, 40, 20, 50), (100, 100, 20, 20)]  # west of the middle, across, east
