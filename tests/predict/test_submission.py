import shutil
from dataclasses import replace

import numpy as np
import pytest
import rasterio
import torch
from folders import competition_folder, write_one
from scenes import BANDS, made_up, write_raster

from glacier_fastai.data.profile import Profile
from glacier_fastai.data.raw import open_tiles
from glacier_fastai.data.tiles import TileStore, TileWriter
from glacier_fastai.errors import BundleError, DataError, DataNote, OutputError, PredictionError
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.ensemble import Calibration, Ensemble, Member
from glacier_fastai.model.evaluate import predict_tiles
from glacier_fastai.model.unet import glacier_unet
from glacier_fastai.predict.scene import predict_scene
from glacier_fastai.predict.submission import check_submission, tiles_to_check, write_submission
from glacier_fastai.recipe import PostprocessRecipe, PredictRecipe

UNITS = {**dict.fromkeys(BANDS, "reflectance"), "thermal": "kelvin"}
GLCM = (*BANDS, "glcm_contrast(swir1)")


def saved(path, seed, bands=BANDS, **about):
    """A bundle whose maps of made-up tiles show every class."""
    torch.manual_seed(seed)
    weights = glacier_unet("resnet18", len(bands), attention="scse").state_dict()
    texture = {"window": 7, "edges": {"swir1": [3000.0, 5000.0, 7000.0]}} if len(bands) > 5 else None
    mean, std = (5000.0,) * 5 + (1.0,) * (len(bands) - 5), (2500.0,) * 5 + (1.0,) * (len(bands) - 5)
    options = {"encoder": "resnet18", "attention": "scse", "scale": 0.5 if seed else 1.0}
    ModelBundle(weights, "unet", options, bands, mean, std, texture=texture, **about).save(path)
    return path


@pytest.fixture
def ensemble(tmp_path):
    members = tuple(Member.load(saved(tmp_path / f"{k}.safetensors", k, b), 1 + k) for k, b in enumerate((BANDS, GLCM)))
    cleaning = PostprocessRecipe(min_size={"glacier": 6, "debris": 6}, fill_holes={"glacier": 4}, smooth=1)
    fitted = Calibration(temperature=0.7, bias=(0.3, -0.1, 0, -0.2), offsets=(0, 0.2, 0.1, -0.3))
    return Ensemble(members, PredictRecipe(views=True, scales=(1.0, 0.75), postprocess=cleaning), fitted)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["phase1", "phase2"])
def test_both_interfaces_give_the_masks_of_our_own_prediction(ensemble, tmp_path, layout):
    data = competition_folder(tmp_path / "comp", layout, size=48, labels=False)
    out = write_submission(ensemble, tmp_path / "sub", 20)
    assert sorted(p.name for p in out.iterdir()) == ["model.pth", "solution.py"]
    found = check_submission(out, ensemble, tmp_path / "comp")
    assert found["tiles"] == len(data.tiles) == 3
    assert found["megabytes"] == pytest.approx((out / "model.pth").stat().st_size / 1e6, abs=0.1)
    assert found["seconds_per_tile"] > 0
    shown = np.concatenate([m.ravel() for _, m, _ in predict_tiles(ensemble, open_tiles(tmp_path / "comp", BANDS))])
    assert len(np.unique(shown)) >= 3  # or equality would say little


@pytest.mark.slow
def test_a_submission_of_models_that_were_never_told_debris_has_none(ensemble, tmp_path):
    """One of the two was told; both map all ice as glacier, after calibration, too."""
    first, second = ensemble.members
    blind = replace(ensemble, members=(first, replace(second, bundle=replace(second.bundle, tells_debris=False))))
    competition_folder(tmp_path / "comp", "phase2", size=48, labels=False)
    out = write_submission(blind, tmp_path / "sub")
    assert check_submission(out, blind, tmp_path / "comp")["tiles"] == 3
    store = open_tiles(tmp_path / "comp", BANDS)
    for told, folded in zip(predict_tiles(ensemble, store), predict_tiles(blind, store), strict=True):
        assert (told.classes == 2).any() and not (folded.classes == 2).any()


@pytest.mark.slow
def test_0_in_some_bands_is_data_although_0_is_declared(ensemble, tmp_path):
    data = competition_folder(tmp_path / "comp", size=48, labels=False)
    tile = next(iter(data.tiles))
    for b, files in enumerate(data.bands):
        values = data.tiles[tile].values[b].copy()
        if b == 3:
            values[4:40, 4:40] = 0
        write_one(files[tile], values, nodata=0)
    out = write_submission(ensemble, tmp_path / "sub")
    assert check_submission(out, ensemble, tmp_path / "comp")["tiles"] == 3


def test_a_tile_is_mapped_as_the_scene_that_it_is(ensemble, tmp_path):
    values, classes, valid = made_up(80, 80)
    with TileWriter(tmp_path / "store", BANDS, 80, "uint16", "made up") as writer:
        writer.add(values, classes, valid=valid, scene="s")
    path = write_raster(tmp_path / "s.tif", values, nodata=0, bands=BANDS)
    ((_, tile, _),) = predict_tiles(ensemble, TileStore(tmp_path / "store"))
    with rasterio.open(predict_scene(ensemble, path, tmp_path / "maps")["files"]["classes"]) as file:
        np.testing.assert_array_equal(file.read(1), tile)


@pytest.mark.slow
def test_a_model_of_units_reads_the_numbers_of_the_competition(tmp_path):
    data = competition_folder(tmp_path / "comp", size=48, labels=False)
    bundles = []
    for name, seed, bands in (("plain", 1, BANDS), ("glcm", 0, GLCM)):
        bundle = ModelBundle.load(saved(tmp_path / f"{name}.safetensors", seed, bands))
        scale, offset = 2e-5, -0.1
        texture = bundle.texture and {
            **bundle.texture,
            "edges": {"swir1": [e * scale + offset for e in (3e3, 5e3, 7e3)]},
        }
        bands_read = [b in BANDS for b in bands]
        bundle = replace(
            bundle,
            mean=tuple(m * scale + offset if plain else m for m, plain in zip(bundle.mean, bands_read, strict=True)),
            std=tuple(s * scale if plain else s for s, plain in zip(bundle.std, bands_read, strict=True)),
            texture=texture,
            profile=Profile(units=UNITS, scaling=dict.fromkeys(BANDS, (scale, offset))),
        )
        bundle.save(tmp_path / f"{name}.safetensors")
        bundles.append(Member.load(tmp_path / f"{name}.safetensors"))
    ensemble = Ensemble(tuple(bundles), PredictRecipe(views=False))
    with pytest.warns(DataNote, match=r"plain.*numbers n become values as in training: blue 2e-05 n -0\.1"):
        out = write_submission(ensemble, tmp_path / "sub")
    assert check_submission(out, ensemble, tmp_path / "comp")["tiles"] == len(data.tiles)
    with pytest.raises(BundleError, match="unknown units.*trained on blue, .* in reflectance"):
        next(predict_tiles(ensemble, open_tiles(tmp_path / "comp", BANDS)))


def test_options_that_a_bundle_leaves_out_are_the_networks_own(tmp_path):
    bundle = ModelBundle.load(saved(tmp_path / "m.safetensors", 1, BANDS))
    options = {k: v for k, v in bundle.options.items() if k != "scale"}
    out = write_submission(Ensemble((Member(replace(bundle, options=options)),)), tmp_path / "s")
    assert torch.load(out / "model.pth")["members"][0]["scale"] == 1.0
    tiny = bundle.profile.model_copy(update={"scaling": {BANDS[0]: (1e-19, 0.0)}})
    large = replace(bundle, profile=tiny, std=(1e20, *bundle.std[1:]))
    with pytest.raises(BundleError, match="its scale, offset and statistics give no numbers to count with"):
        write_submission(Ensemble((Member(large),)), tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_units_that_the_competition_does_not_have_are_refused(tmp_path):
    bundle = ModelBundle.load(saved(tmp_path / "m.safetensors", 0))
    bundle = replace(bundle, profile=Profile(units=dict.fromkeys(BANDS, "reflectance")))
    with pytest.raises(BundleError, match="trained on blue in reflectance.*fine-tune it on its tiles"):
        write_submission(Ensemble.of(bundle), tmp_path / "sub")
    assert not (tmp_path / "sub").exists()


@pytest.mark.slow
def test_a_mask_that_differs_is_named_and_so_is_what_failed(ensemble, tmp_path):
    competition_folder(tmp_path / "comp", size=32, labels=False)
    out = write_submission(ensemble, tmp_path / "sub")
    other = Ensemble(ensemble.members[:1])
    with pytest.raises(PredictionError, match=r"tile \d\d_\d\d: the mask returned .* differs from ours in \d+ pix"):
        check_submission(out, other, tmp_path / "comp")
    with pytest.raises(DataError, match="no folder Band1 in it"):
        check_submission(out, ensemble, tmp_path / "sub")
    (out / "model.pth").write_bytes(b"not a model")
    with pytest.raises(PredictionError, match=r"the submission failed: .*model\.pth: not a model"):
        check_submission(out, ensemble, tmp_path / "comp")


def test_refusals_leave_nothing_behind(ensemble, tmp_path):
    with pytest.raises(OutputError, match=r"would have \d+ MB \(29 MB, 29 MB\), allowed are 40; leave out a model"):
        write_submission(ensemble, tmp_path / "sub", max_megabytes=40)
    nir = Member.load(saved(tmp_path / "nir.safetensors", 3, ("nir", "red", "blue", "green", "swir1")))
    with pytest.raises(BundleError, match=r"nir\.safetensors: takes nir; the competition has blue, green"):
        write_submission(Ensemble((nir,)), tmp_path / "sub")
    assert not (tmp_path / "sub").exists()
    write_submission(ensemble, tmp_path / "sub")
    before = (tmp_path / "sub" / "model.pth").read_bytes()
    with pytest.raises(OutputError, match="sub: exists already"):
        write_submission(ensemble, tmp_path / "sub")
    write_submission(Ensemble(ensemble.members[:1]), tmp_path / "sub", overwrite=True)
    assert len((tmp_path / "sub" / "model.pth").read_bytes()) < len(before)
    shutil.rmtree(tmp_path / "sub")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file: cannot be made"):
        write_submission(ensemble, tmp_path / "file" / "sub")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    with pytest.raises(OutputError, match="mine: holds other things than a submission"):
        write_submission(ensemble, tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "notes.txt").exists()
    (tmp_path / "mine" / "notes.txt").rename(tmp_path / "notes.txt")
    (tmp_path / "mine" / "model.pth").mkdir()
    with pytest.raises(OutputError, match="mine: holds other things than a submission"):
        write_submission(ensemble, tmp_path / "mine", overwrite=True)
    with pytest.raises(DataError, match="mine: no folder Band1 in it"):
        tiles_to_check(tmp_path / "mine")
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".partial")]
