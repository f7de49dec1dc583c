import struct

import numpy as np
import pytest
import rasterio
from scipy.io import netcdf_file

from glacier_fastai.data.scenes.headers import check_netcdf, check_tiff


def reader(content):
    return lambda start, stop: content[start:stop]


@pytest.fixture(scope="module", params=["NO", "YES"])
def tiff(request, tmp_path_factory):
    """A GeoTIFF with an overview, classic or BigTIFF."""
    path = tmp_path_factory.mktemp("tiff") / "s.tif"
    profile = {"driver": "GTiff", "width": 64, "height": 64, "count": 1, "dtype": "uint8", "BIGTIFF": request.param}
    profile |= {"crs": "EPSG:32645", "transform": (30, 0, 500_000, 0, -30, 3_100_000)}
    with rasterio.open(path, "w", **profile) as file:
        file.write(np.ones((1, 64, 64), "uint8"))
        file.build_overviews([2, 4])
    return path.read_bytes()


@pytest.fixture(scope="module", params=[1, 2])
def netcdf(request, tmp_path_factory):
    """A classic netCDF file with attributes, with offsets of 32 or 64 bits."""
    path = tmp_path_factory.mktemp("netcdf") / "s.nc"
    with netcdf_file(path, "w", version=request.param) as file:
        file.title, file.numbers = b"x", [1, 2, 3]
        for name in "yx":
            file.createDimension(name, 3)
        variable = file.createVariable("v", "i2", ("y", "x"))
        variable[:], variable.units = 7, b"metre"
    return path.read_bytes()


def test_whole_files_and_those_cut_short_are_left_to_gdal(tiff, netcdf):
    for n in (*range(0, 600, 7), len(tiff)):
        check_tiff(reader(tiff[:n]))
    for n in (*range(4, 300), len(netcdf)):
        check_netcdf(reader(netcdf[:n]))


def test_damaged_headers_are_refused_or_left_to_gdal_and_soon(tiff, netcdf):
    rng = np.random.default_rng(0)
    for check, content in ((check_tiff, tiff), (check_netcdf, netcdf)):
        for _ in range(500):
            damaged = bytearray(content)
            damaged[rng.integers(4, min(len(content), 400))] = rng.choice([0, 1, 127, 128, 255])
            try:
                check(reader(bytes(damaged)))
            except ValueError as err:
                assert str(err)


def test_a_big_tiff_leads_in_a_circle():
    header = b"II" + struct.pack("<HHHQ", 43, 8, 0, 16)
    check_tiff(reader(header + struct.pack("<QQ", 0, 0)))
    with pytest.raises(ValueError, match="in a circle"):
        check_tiff(reader(header + struct.pack("<QQ", 0, 16)))
    with pytest.raises(ValueError, match="1,000 tags in one"):
        check_tiff(reader(header + struct.pack("<QQ", 2**60, 0)))


def test_every_name_of_netcdf_is_looked_at(netcdf):
    for name in (b"title", b"numbers", b"\1x", b"\1v", b"units"):
        at = netcdf.index(name) - (4 if len(name) > 2 else 3)
        with pytest.raises(ValueError, match="a name of 257 bytes"):
            check_netcdf(reader(netcdf[:at] + (257).to_bytes(4, "big") + netcdf[at + 4 :]))


def test_a_header_of_netcdf_has_an_end():
    endless = b"CDF\1" + struct.pack(">III", 0, 10, 2**31)
    with pytest.raises(ValueError, match="more than 100,000 numbers"):
        check_netcdf(lambda start, stop: endless[start:stop].ljust(stop - start, b"\0"))
