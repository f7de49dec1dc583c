"""The nodata contract: what stands under nodata changes nothing, from the file to the map.

One made-up scene is written three times: "a" and "b" differ only in values and labels where there is no data, "c" also
where there is some. Every stage must give the same for a and b; that it differs for c shows that the stage looks.
`pytest tests/test_nodata.py -v` lists the stages.
"""

import geopandas
import matplotlib.pyplot as plt
import numpy as np
import pytest
import rasterio
import torch
from fastai.torch_core import set_seed
from rasterio.features import rasterize
from rasterio.transform import from_origin
from scenes import BANDS, CRS, TINY, made_up, write_raster
from shapely.geometry import box

from glacier_fastai.core.balance import PixelBalance
from glacier_fastai.core.calibration import fit_offsets, fit_temperature, reliability
from glacier_fastai.core.confusion import confusion_matrix, scores
from glacier_fastai.core.folds import train_valid
from glacier_fastai.core.losses import CombinedLoss
from glacier_fastai.data.augment import AugmentTiles
from glacier_fastai.data.block import GlacierDataLoaders
from glacier_fastai.data.channels import Texture, with_channels
from glacier_fastai.data.folds import store_folds
from glacier_fastai.data.scenes.geotiff import SceneRaster
from glacier_fastai.data.sources.scene import prepare_scenes
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.evaluate import evaluate
from glacier_fastai.model.unet import glacier_unet
from glacier_fastai.predict.scene import Wanted, predict_scene
from glacier_fastai.show.interpret import GlacierInterpretation
from glacier_fastai.train.learner import glacier_learner

SIZE = (96, 80)
ALL = (*BANDS, "glcm_contrast(swir1)", "glcm_energy(swir1)")


def holes(rows, cols):
    """Stripes as of a broken scan-line corrector, a block, single pixels, and a pixel that stands alone."""
    gone = (rows + 2 * cols) % 29 < 4
    gone |= (rows > 70) & (cols < 20)
    gone |= (rows * 31 + cols * 17) % 97 == 0
    island = (rows >= 40) & (rows < 49) & (cols >= 30) & (cols < 39)
    return (gone | island) & ~((rows == 44) & (cols == 34))


def write(path, kind, which):
    """Write scene and label with holes: declared nodata in one band, NaN in one band (float) or 0 in all (integers)."""
    values, classes, _ = made_up(*SIZE, seed=1, nodata=False)
    rows, cols = np.mgrid[: SIZE[0], : SIZE[1]]
    gone, declared = holes(rows, cols), (rows + cols) % 2 == 0
    junk = np.random.default_rng({"a": 10, "b": 11, "c": 10}[which])
    if which == "c":
        values[:, 20:60, 10:70] = values[:, 20:60, 10:70][:, ::-1, ::-1] // 2 + 1000
        classes[20:60, 10:70] = 3
    values = values.astype("float32" if kind == "float" else "uint16")
    values[:, gone] = junk.integers(1, 60_000, (len(BANDS), gone.sum()))
    band = junk.integers(0, len(BANDS), SIZE)
    nodata = -9999.0 if kind == "float" else 65_535
    for k in range(len(BANDS)):
        values[k, gone & declared & (band == k)] = nodata
        if kind == "float":
            values[k, gone & ~declared & (band == k)] = np.nan
    if kind == "integer":
        values[:, gone & ~declared] = 0
    classes[gone] = junk.integers(0, 4, gone.sum())
    write_raster(path, values, nodata=nodata, bands=BANDS)
    return write_raster(path.with_name(f"{path.stem}_label.tif"), classes[None])


class World:
    """One of the scenes and what is made from it; everything random is seeded alike, junk is not."""

    def __init__(self, folder, kind, which):
        folder.mkdir()
        self.folder, self.scene = folder, folder / "scene.tif"
        self.label = write(self.scene, kind, which)
        self.junk = np.random.default_rng({"a": 20, "b": 21, "c": 20}[which])
        self.store = prepare_scenes([self.scene], folder / "store", labels=[self.label], tile_size=32)
        self.tiles = np.arange(0, len(self.store), 2)

    def loaders(self, bands=ALL, **kwargs):
        set_seed(0)
        return GlacierDataLoaders.from_store(
            self.store, 0, 4, 24, bands=bands, folds=3, spatial=False, glcm_levels=8, **kwargs
        )

    def bundle(self):
        """A model with fixed weights whose statistics and levels come from this scene."""
        set_seed(0)
        texture = Texture.of_tiles(self.store, ALL, self.tiles, levels=8)
        mean, std = self.store.statistics(BANDS, self.tiles)
        weights = glacier_unet("resnet18", len(ALL), attention=None).state_dict()
        about = {"window": texture.window, "edges": texture.edges}
        return ModelBundle(
            weights,
            "unet",
            {"encoder": "resnet18", "attention": None},  # its untrained maps hold every class
            ALL,
            (*mean, 9.0, 0.3),
            (*std, 9.0, 0.2),
            texture=about,
        )

    def masks(self):
        return torch.from_numpy(np.array(self.store.masks[:4])).long()


def source(w):
    with SceneRaster(w.scene) as raster:
        values, valid = raster.read_window(range(5), 0, 0, *SIZE)
    return np.where(valid, values, np.nan), valid, w.store.images, w.store.masks


def statistics(w):
    return (*w.store.statistics(BANDS, w.tiles), w.store.info["mean"], w.store.info["std"])


def glcm_levels(w):
    return (Texture.of_tiles(w.store, ALL, w.tiles, levels=8).edges["swir1"],)


def glcm(w):
    found = with_channels(w.store, ALL, Texture.of_tiles(w.store, ALL, w.tiles, levels=8))
    assert (np.isnan(found.images).all(1) == (w.store.masks == 255)).all()  # texture changes nothing about nodata
    return found.images, found.masks


def folds(w):
    fold = store_folds(w.store, 3, spatial=False)
    return (fold, *train_valid(fold, 0))


def sampler(w):
    found = [w.store.class_counts()]
    target = {"background": 0.3, "glacier": 0.3, "lake": 0.4}  # "c" has no debris
    for balance in (None, PixelBalance(target=target), PixelBalance(target=target, level="pixel")):
        dls = w.loaders(balance=balance)
        found += [dls.train_tiles, *(t.numpy() for batch in dls.train for t in batch)]
        if balance:
            found += [dls.train.crops.sampling.probabilities, dls.train.crops.sampling.keep]
    return found


def augmentation(w):
    dls = w.loaders(augment=AugmentTiles.preset("heavy"))
    return [t.numpy() for batch in dls.train for t in batch]


def loss(w):
    y, logits = w.masks(), torch.randn(4, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    fill = torch.from_numpy(w.junk.normal(0, 50, logits.shape)).float()
    logits = torch.where((y == 255)[:, None], fill, logits).requires_grad_()
    out = CombinedLoss.phase_b()(logits, y)
    out.backward()
    assert (logits.grad[(y == 255)[:, None].expand_as(logits)] == 0).all()
    return out.detach().numpy(), logits.grad.numpy()


def metrics(w):
    y = w.masks()
    pred = torch.from_numpy(np.random.default_rng(0).integers(0, 4, y.shape))
    pred[y == 255] = torch.from_numpy(w.junk.integers(0, 4, int((y == 255).sum())))
    matrix = confusion_matrix(pred, y, 4)
    return matrix.numpy(), [v for v in scores(matrix).values() if isinstance(v, float)]


def training(w):
    learn = glacier_learner(w.loaders(), encoder=TINY, attention=None, loss_func=CombinedLoss.phase_b(), seed=0)
    with learn.no_bar(), learn.no_logging():
        set_seed(2)
        learn.fit(1, 1e-3)
    return (learn.recorder.values, *(p.detach().numpy() for p in learn.model.parameters()))


def evaluation(w):
    result = evaluate(w.bundle(), w.store)
    return result["confusion"], result["mcc_image_mean"]


def interpretation(w):
    interp = GlacierInterpretation(w.bundle(), w.store, w.tiles)
    numbers = interp.table.drop(columns=["id", "scene"]).to_numpy()
    importance = interp.band_importance(repeats=1, tiles=2)["drop"]
    return (numbers, interp.confusion, importance, *(t.to_numpy() for t in interp.strata.values()))


def prediction(w):
    made = predict_scene(w.bundle(), w.scene, w.folder / "maps", Wanted("float32", True, True, window=48))["files"]
    found = []
    for kind in ("classes", "confidence", "probabilities"):
        with rasterio.open(made[kind]) as file:
            found += [file.read(), file.read_masks(1)]
    rows, cols = np.mgrid[: SIZE[0], : SIZE[1]]
    for mask in found[1::2]:
        np.testing.assert_array_equal(mask == 0, holes(rows, cols))
    for layer in ("glaciers", "classes"):
        table = geopandas.read_file(made["outlines"], layer=layer)
        assert len(table)
        found += [table["area_km2"], table["confidence"]]
        inside = rasterize(table.geometry, SIZE, transform=from_origin(500_000, 3_100_000, 30, 30))
        assert not (inside & holes(rows, cols)).any()
    return found


def calibration(w):
    y, p = w.masks(), torch.from_numpy(np.random.default_rng(0).dirichlet([1] * 4, (4, 32, 32))).movedim(-1, 1)
    junk = torch.from_numpy(w.junk.dirichlet([1] * 4, p[:, 0].shape)).movedim(-1, 1)
    p = torch.where((y == 255)[:, None], junk, p)
    temperature, bias = fit_temperature(p, y, bias=True, dim=1)
    return temperature, bias, fit_offsets(p, y, dim=1), reliability(p, y, dim=1).hits


def figures(w):
    set_seed(3)
    w.loaders(BANDS).show_batch(max_n=4)
    plt.gcf().canvas.draw()
    return (np.asarray(plt.gcf().canvas.buffer_rgba()),)


def polygons(w):
    path = w.folder / "outlines.gpkg"
    top = from_origin(500_000, 3_100_000, 30, 30)
    shape = box(*(top @ (10, 70)), *(top @ (60, 15)))
    geopandas.GeoDataFrame(geometry=[shape], crs=CRS).to_file(path)
    store = prepare_scenes([w.scene], w.folder / "outlined", outlines=[path], tile_size=32)
    return store.images, store.masks, store.class_counts()


STAGES = [
    source,
    statistics,
    glcm_levels,
    glcm,
    folds,
    sampler,
    augmentation,
    loss,
    metrics,
    training,
    evaluation,
    interpretation,
    prediction,
    calibration,
    figures,
    polygons,
]


@pytest.fixture(scope="module", params=["float", "integer"])
def worlds(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return [World(folder / which, request.param, which) for which in "abc"]


@pytest.mark.parametrize("stage", STAGES, ids=lambda s: s.__name__)
def test_what_stands_under_nodata_changes_nothing(worlds, stage):
    a, b, c = (list(map(np.asarray, stage(w))) for w in worlds)
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)
    assert any(
        x.shape != y.shape or not np.array_equal(x, y, equal_nan=x.dtype.kind == "f")
        for x, y in zip(a, c, strict=False)
    )
