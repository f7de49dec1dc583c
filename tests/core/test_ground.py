import numpy as np
import pytest
import shapely
from pyproj import CRS

from glacier_fastai.core.ground import SEEN, coarse, latitude_longitude, outlines, share


def grid(left, top, n, pixel, size):
    """Transforms of n x n tiles that share edges."""
    row, col = (a.ravel() * pixel * size for a in np.mgrid[:n, :n])
    zero, side = np.zeros(n * n), np.full(n * n, float(pixel))
    return np.stack([side, zero, left + col, zero, -side, top - row], 1)


PLACES = {
    "Himalaya": (32645, 500_000, 3_100_000, 30, 512),
    "Svalbard, rim of a zone": (32633, 200_000, 8_900_000, 30, 512),
    "small tiles": (32645, 700_000, 3_100_000, 10, 64),
    "north pole at a corner": (3413, -2 * 15_360, 2 * 15_360, 30, 512),
    "north pole inside": (3413, -1.5 * 15_360, 1.5 * 15_360, 30, 512),
    "south pole": (3031, -1280, 1280, 10, 64),
    "antimeridian": (32660, 805_000, 100_000, 30, 512),
    "longitudes beyond 180": (4326, 179, 10, 1e-3, 512),
    "longitudes to 360": (4326, 359, 10, 1e-3, 512),
    "degrees to the pole": (4326, 10, 90, 3e-4, 512),
}


@pytest.mark.parametrize("where", PLACES)
def test_tiles_know_their_ground_and_neighbours_do_not(where):
    """Of a chessboard: the black tiles are trained on, the white ones share four edges with them."""
    epsg, left, top, pixel, size = PLACES[where]
    tiles = outlines(CRS(epsg), grid(left, top, 4, pixel, size), size)
    black = np.add.outer(range(4), range(4)).ravel() % 2 == 0
    found = share(tiles, coarse(tiles[black]))
    assert found[black].min() > 0.99
    assert found[~black].max() < 0.01 < SEEN
    halves = share(outlines(CRS(epsg), grid(left, top, 8, pixel, size // 2), size // 2), coarse(tiles[black]))
    inside = np.kron(black.reshape(4, 4), np.ones((2, 2), bool)).ravel()
    assert halves[inside].min() > 0.9 and halves[~inside].max() < 0.02
    west, south, east, north = shapely.total_bounds(tiles)
    assert -180 <= west < east <= 180 and -90 <= south < north <= 90


def test_tiles_lie_where_their_projection_says():
    (tile,) = outlines(CRS("EPSG:32645"), grid(500_000, 3_100_000, 1, 30, 512), 512)
    assert tile.bounds == pytest.approx((87.0, 27.886, 87.156, 28.025), abs=1e-3)
    (across,) = outlines(CRS("EPSG:4326"), grid(179, 1, 1, 1, 2), 2)
    halves = shapely.MultiPolygon([shapely.box(179, -1, 180, 1), shapely.box(-180, -1, -179, 1)])
    assert shapely.area(shapely.symmetric_difference(across, halves)) < 1e-4


def test_grown_tiles_meet_across_the_antimeridian():
    west, east = (outlines(CRS("EPSG:4326"), grid(x, 1, 1, 0.1, 10), 10, 0.01)[0] for x in (179, -180))
    assert west.intersects(east)


@pytest.mark.parametrize(
    "crs",
    [
        CRS('LOCAL_CS["arbitrary",UNIT["metre",1]]'),
        CRS('GEOGCS["Moon",DATUM["Moon",SPHEROID["Moon",1737400,0]],PRIMEM["R",0],UNIT["degree",0.0174532925199433]]'),
    ],
    ids=["local", "moon"],
)
def test_what_lies_nowhere_on_earth_has_no_ground(crs):
    tiles = outlines(crs, grid(0, 10, 2, 0.1, 10), 10)
    assert tiles.tolist() == [None] * 4
    assert coarse(tiles).is_empty
    assert share(tiles, shapely.box(-180, -90, 180, 90)).tolist() == [0] * 4
    assert share(tiles, coarse(tiles)).tolist() == [0] * 4


def test_a_tile_beyond_its_projection_or_without_area_has_no_ground():
    transform = np.array([[30, 0, 5e5, 0, -30, 3.1e6], [30, 0, 5e5, 0, 0, 3.1e6], [30, 0, 1e12, 0, -30, 3.1e6]])
    assert [tile is not None for tile in outlines(CRS("EPSG:32645"), transform, 64)] == [True, False, False]


def test_thousands_of_tiles_stay_a_small_footprint():
    """5,000 tiles of 512 px of Landsat in four UTM zones, a fifth of them kept aside."""
    rng, tiles = np.random.default_rng(0), []
    for scene in range(35):
        left, top = rng.uniform(200_000, 600_000), rng.uniform(3_000_000, 3_900_000)
        tiles.append(outlines(CRS.from_epsg(32643 + scene % 4), grid(left, top, 12, 30, 512), 512))
    tiles = np.concatenate(tiles)
    train = rng.random(len(tiles)) < 0.8
    assert len(tiles) == 5040
    assert len(shapely.to_wkt(coarse(tiles[train]))) < 100_000


def test_latitude_and_longitude_are_those_of_the_centres_of_pixels():
    utm = 30, 0, 500_000 - 15, 0, -30, 15  # the first centre is where the central meridian meets the equator
    lat, lon = latitude_longitude(CRS("EPSG:32645"), utm, (2, 3))
    np.testing.assert_allclose(lat[0], 0, atol=1e-9)
    np.testing.assert_allclose(lon[:, 0], 87, atol=1e-9)
    metre = np.degrees(1 / 6_378_137 / 0.9996)
    np.testing.assert_allclose(lon[0, 1:] - 87, [30 * metre, 60 * metre], rtol=0.1)
    np.testing.assert_allclose(lat[1], -30 * metre * 1.0067, rtol=0.1)  # an arc of the meridian is shorter there
    part = latitude_longitude(CRS("EPSG:32645"), utm, (1, 2), (1, 1))
    np.testing.assert_array_equal(part, np.stack([lat, lon])[:, 1:, 1:])


def test_longitudes_are_those_of_maps_and_what_has_no_place_is_0():
    turned = latitude_longitude(CRS("EPSG:4326"), (1, 0, 358, 0, -1, 10), (1, 3))
    assert turned[1].tolist() == [[-1.5, -0.5, 0.5]]
    beyond = latitude_longitude(CRS("EPSG:3857"), (1e8, 0, 0, 0, -1e8, 2e8), (1, 1))
    assert np.isfinite(beyond).all()
    assert not latitude_longitude(CRS('LOCAL_CS["here",UNIT["metre",1]]'), (1, 0, 5, 0, -1, 5), (2, 2)).any()
