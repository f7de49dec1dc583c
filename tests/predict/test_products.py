"""The same ground is mapped alike, whatever product it was delivered as."""

import json

import numpy as np
import pytest
import rasterio
from polygons import outlines, rectangle
from products import KINDS, SIZE, UL, ground, packed
from rasterio.transform import from_origin
from scenes import made_up, tiny_recipe, write_raster

from glacier_fastai.data.scenes.masks import KINDS as MASKS
from glacier_fastai.data.scenes.opening import scene_name
from glacier_fastai.data.sources.scene import prepare_scenes
from glacier_fastai.errors import DataNote, OutputError
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.predict.scene import Wanted, predict_scene
from glacier_fastai.train.run import finetune

BANDS = ("green", "nir", "swir1")


def plain(path, values, side):
    """Write values of several bands as a GeoTIFF that says their units, on the grid of the finest."""
    size = max(len(v) for v in values.values())
    array = np.stack([np.kron(values[b], np.ones((size // len(values[b]),) * 2)) for b in BANDS]).astype("float32")
    write_raster(path, array, bands=BANDS, nodata=np.nan, transform=from_origin(*UL, side, side))
    with rasterio.open(path, "r+") as file:
        file.units = ["reflectance"] * len(BANDS)
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    base = tmp_path_factory.mktemp("products")
    classes = made_up(SIZE, SIZE)[1][None].astype("u1")
    label = write_raster(base / "l.tif", classes, nodata=255, transform=from_origin(*UL, 30, 30))
    store = prepare_scenes([plain(base / "s.tif", ground(), 30)], base / "tiles", labels=[label], tile_size=32)
    recipe = tiny_recipe('bands=["green", "nir", "swir1", "ndsi"]', "train.epochs=6", "data.spatial=false")
    return ModelBundle.load(finetune(recipe, store, base / "run", fold=0) / "best.safetensors")


def mapped(bundle, scene, out, **how):
    made = predict_scene(bundle, scene, out, Wanted(outlines=True), resolution=30.0, **how)
    with rasterio.open(made["files"]["classes"]) as file:
        return file.read(1), made


@pytest.mark.parametrize("kind", KINDS)
def test_a_product_is_mapped_as_the_plain_geotiff_of_its_values(bundle, tmp_path, kind, record_property):
    made = KINDS[kind](tmp_path / "product")
    side = 10 if kind.startswith("S2") else 30
    want, _ = mapped(bundle, plain(tmp_path / "plain.tif", made.values, side), tmp_path / "maps")
    got, record = mapped(bundle, made.path, tmp_path / "maps", keep=[*MASKS])
    agreement = (got == want).mean()
    record_property("agreement", float(agreement))
    print(f"{kind}: {agreement:.4%} of the pixels agree")
    assert agreement > 0.995 and len(np.unique(want)) > 2
    assert (record["date"], record["sensor"]) == (made.date, made.sensor)
    assert record["units"] == ["reflectance"] * 3
    written = json.loads((tmp_path / "maps" / f"{scene_name(made.path)}_prediction.json").read_text())
    assert written["date"] == made.date
    masked, record = mapped(bundle, made.path, tmp_path / "masked")
    if made.codes:
        assert (masked == 255).sum() > (want == 255).sum() and record["masked"]["share"] > 0
    assert (masked[want == 255] == 255).all()
    again = predict_scene(bundle, made.path, tmp_path / "masked", Wanted(outlines=True), resolution=30.0)
    assert again["done_before"]


def test_other_metadata_are_another_scene(bundle, tmp_path):
    made = KINDS["S2 L2A"](tmp_path)
    _, record = mapped(bundle, made.path, tmp_path / "maps")
    made.metadata.write_text(made.metadata.read_text().replace("-1000", "-900"))
    with pytest.raises(OutputError, match="of another scene"):
        mapped(bundle, made.path, tmp_path / "maps")


@pytest.mark.parametrize("kind", ["tar", "gztar", "zip"])
def test_an_archive_is_mapped_as_its_folder(bundle, tmp_path, kind):
    made = KINDS["LC08 C2 L2"](tmp_path / "product")
    folder, _ = mapped(bundle, made.path, tmp_path / "maps")
    path = packed(made, kind)
    archive, record = mapped(bundle, path, tmp_path / "maps")
    np.testing.assert_array_equal(folder, archive)
    assert record["scene"] == path.name and "glacier_fastai_" not in json.dumps(record["notes"])


@pytest.mark.parametrize("kind", ["LE07 C2 L1", "S2 L2A", "HLS L30"])
def test_products_become_tiles(tmp_path, kind):
    made = KINDS[kind](tmp_path / "product")
    box = outlines(tmp_path / "ice.gpkg", [rectangle(10, 10, 40, 40, from_origin(*UL, 10, 10))])
    store = prepare_scenes([made.path], tmp_path / "tiles", outlines=[box], tile_size=32, min_valid=0.1)
    assert {*store.bands} == {*made.values}
    assert store.info["sensor"] == made.sensor


def test_a_store_of_two_sensors_names_none_and_says_so(tmp_path):
    made = [KINDS[kind](tmp_path / kind[:4]) for kind in ("LT05 C2 L2", "LE07 C2 L2")]
    box = outlines(tmp_path / "ice.gpkg", [rectangle(10, 10, 40, 40, from_origin(*UL, 10, 10))])
    with pytest.warns(DataNote, match="is of landsat7, but .* of landsat5, so the store names no sensor"):
        store = prepare_scenes(
            [each.path for each in made], tmp_path / "s", outlines=[box], tile_size=32, min_valid=0.1
        )
    assert store.info["sensor"] == ""
