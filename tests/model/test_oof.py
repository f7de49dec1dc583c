import json
import shutil
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scenes import BANDS, made_up, normalised, tiny_recipe

from glacier_fastai.core.dihedral import VIEWS, undo_view, view
from glacier_fastai.data.tiles import TileStore, TileWriter
from glacier_fastai.errors import DataError, DataNote, OutputError
from glacier_fastai.model.bundle import ModelBundle, TrainedOn, trained_ground
from glacier_fastai.model.oof import OutOfFold
from glacier_fastai.train.run import crossval


def test_every_tile_is_predicted_by_the_model_that_never_saw_it(crossvalidated):
    folder, store = crossvalidated
    oof = OutOfFold(folder)
    keys = store.keys()
    assert sorted(oof.table["key"]) == sorted(keys)
    for fold in range(3):
        parts = pd.read_csv(folder / f"fold{fold}" / "folds.csv")
        valid = set(parts["id"][parts["part"] == "valid"])
        assert set(oof.table["id"][oof.table["fold"] == fold]) == valid
    for n in (0, len(keys) - 1):
        row, i = oof.table.iloc[n], keys.index(oof.table["key"][n])
        bundle = ModelBundle.load(folder / f"fold{row['fold']}" / "best.safetensors")
        assert keys[i] not in bundle.trained_on.train
        x, model = torch.from_numpy(normalised(store.read(i), bundle.mean, bundle.std))[None], bundle.model()
        with torch.no_grad():
            want = sum(undo_view(model(view(x, k)).softmax(1), k) for k in VIEWS)[0].numpy() / 8
        np.testing.assert_allclose(oof.probabilities[n], want, atol=6e-4)  # half precision
        np.testing.assert_array_equal(oof.labels[n], store.masks[i])


def test_refusals_and_nothing_half_written(crossvalidated, tmp_path, monkeypatch):
    folder, store = crossvalidated
    with pytest.raises(DataError, match="no out-of-fold predictions.*cross-validation"):
        OutOfFold(tmp_path)
    shutil.copytree(folder / "oof", tmp_path / "cut")
    pd.read_csv(tmp_path / "cut" / "tiles.csv").iloc[1:].to_csv(tmp_path / "cut" / "tiles.csv")
    with pytest.raises(DataError, match="files do not fit each other"):
        OutOfFold(tmp_path / "cut")
    shutil.copytree(folder / "oof", tmp_path / "pickled")
    np.save(tmp_path / "pickled" / "labels.npy", np.array([{}], object))
    with pytest.raises(DataError, match="damaged"):
        OutOfFold(tmp_path / "pickled")
    for key, said in (("a", "key 'a' stands twice"), ("", "a tile has no key")):
        shutil.copytree(folder / "oof", tmp_path / f"key{key}")
        table = pd.read_csv(tmp_path / f"key{key}" / "tiles.csv", dtype=str)
        table.loc[:1, "key"] = key
        table.to_csv(tmp_path / f"key{key}" / "tiles.csv", index=False)
        with pytest.raises(DataError, match=f"tiles.csv: .*{said}; repeat the cross-validation"):
            OutOfFold(tmp_path / f"key{key}")
    shutil.copytree(folder / "oof", tmp_path / "same")
    models = json.loads((folder / "oof" / "models.json").read_text())
    (tmp_path / "same" / "models.json").write_text(json.dumps(dict.fromkeys(models, "a")))
    with pytest.raises(DataError, match="models.json: two of its models are the same; repeat the cross-validation"):
        OutOfFold(tmp_path / "same")
    for k, text in enumerate(("{}", "[1]", "{")):
        shutil.copytree(folder / "oof", tmp_path / f"models{k}")
        (tmp_path / f"models{k}" / "models.json").write_text(text)
        with pytest.raises(DataError, match="damaged|SHA-256|wanted is a mapping"):
            OutOfFold(tmp_path / f"models{k}")
    for k, name in enumerate(("/proc/kmsg", "../fold0/best.safetensors")):
        shutil.copytree(folder / "oof", tmp_path / f"out{k}")
        models = json.loads((folder / "oof" / "models.json").read_text())
        (tmp_path / f"out{k}" / "models.json").write_text(json.dumps({name: "0", **models}))
        with pytest.raises(DataError, match="leads out of"):
            OutOfFold(tmp_path / f"out{k}")
    with open(tmp_path / "long.safetensors", "wb") as file:
        file.truncate(2**40)
    for name in ("long.safetensors", "a" * 5000, "a\0b"):
        (tmp_path / "out0" / "models.json").write_text(json.dumps({name: "0", **models}))
        assert OutOfFold(tmp_path / "out0").stale() == name
    few = dict(list(json.loads((folder / "oof" / "models.json").read_text()).items())[:2])
    for models in (few, {**few, "./" + next(iter(few)): "0"}):
        (tmp_path / "out0" / "models.json").write_text(json.dumps(models))
        with pytest.raises(DataError, match="names a model twice, or fewer than there are folds"):
            OutOfFold(tmp_path / "out0")
    shutil.copytree(folder / "oof", tmp_path / "flat")
    labels = np.load(tmp_path / "flat" / "labels.npy")
    np.save(tmp_path / "flat" / "labels.npy", labels[:, 0, 0])
    with pytest.raises(DataError, match=r"labels\.npy: of \(\d+,\), which are no tiles"):
        OutOfFold(tmp_path / "flat")
    np.save(tmp_path / "flat" / "labels.npy", labels[:0])
    with pytest.raises(DataError, match=r"labels\.npy: of \(0, 32, 32\), which are no tiles"):
        OutOfFold(tmp_path / "flat")
    np.save(tmp_path / "flat" / "labels.npy", labels)
    OutOfFold(tmp_path / "flat").check()
    np.save(tmp_path / "flat" / "labels.npy", labels[::-1])
    with pytest.raises(DataError, match=r"labels\.npy: not as it was written; repeat"):
        OutOfFold(tmp_path / "flat").check()
    shutil.copytree(folder / "fold0", tmp_path / "cv" / "fold0")
    (tmp_path / "cv" / "oof").symlink_to(tmp_path)
    with pytest.raises(OutputError, match="oof: a link, which is not followed"):
        OutOfFold.write(tmp_path / "cv", {0: "fold0/best.safetensors"}, store)
    (tmp_path / "cv" / "oof").unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(OutputError, match="oof: needs .* and there are 0.0 MB; make room"):
        OutOfFold.write(tmp_path / "cv", {0: "fold0/best.safetensors"}, store)
    assert not (tmp_path / "cv" / "oof").exists()


def test_predictions_of_a_model_that_was_replaced_are_stale_until_they_are_written_anew(crossvalidated, tmp_path):
    folder, store = crossvalidated
    for name in ("fold0", "fold1", "oof"):
        shutil.copytree(folder / name, tmp_path / name)
    models = {k: f"fold{k}/best.safetensors" for k in range(2)}
    assert OutOfFold(folder).stale() is None
    assert OutOfFold(tmp_path).stale() == "fold2/best.safetensors"
    ModelBundle.load(folder / models[1]).save(tmp_path / models[1], half=False)
    assert OutOfFold(tmp_path).stale() == models[1]
    OutOfFold.write(tmp_path, models, store)
    assert OutOfFold(tmp_path).stale() is None and set(OutOfFold(tmp_path).table["fold"]) == {0, 1}


@pytest.mark.slow
def test_a_cross_validation_that_goes_on_repeats_predictions_that_name_no_models(crossvalidated, tmp_path):
    folder, store = crossvalidated
    shutil.copytree(folder, tmp_path / "cv")
    (tmp_path / "cv" / "oof" / "models.json").unlink()  # as earlier versions left them
    crossval(tiny_recipe("predict.views=true"), data=store.path, out=tmp_path / "cv", resume=True)
    assert OutOfFold(tmp_path / "cv").stale() is None


def test_of_tiles_that_overlap_within_a_scene_one_counts_its_glaciers(crossvalidated, tmp_path):
    with TileWriter(tmp_path / "store", BANDS, 32, "uint16", "test") as writer:
        for s, col, known in [("a", 0, 1), ("a", 16, 1), ("a", 32, 1), ("b", 0, 1), ("c", 0, 0), ("c", 0, 0)]:
            at = {"crs": "EPSG:32645", "transform": (30, 0, 500_000 + 30 * col, 0, -30, 3_100_000)} if known else {}
            writer.add(*made_up(32, 32, seed=len(writer.rows))[:2], scene=s, name=str(len(writer.rows)), col=col, **at)
    store, folder = TileStore(tmp_path / "store"), tmp_path / "cv"
    folder.mkdir()
    bundle = ModelBundle.load(crossvalidated[0] / "fold0" / "best.safetensors")
    replace(bundle, trained_on=TrainedOn(valid=tuple(store.keys()), tile_size=32)).save(folder / "m.safetensors")
    OutOfFold.write(folder, {0: "m.safetensors"}, store)
    assert OutOfFold(folder).table["once"].tolist() == [True, False, True, True, True, True]
    table = pd.read_csv(folder / "oof" / "tiles.csv", dtype=str)
    table.drop(columns="once").to_csv(folder / "oof" / "tiles.csv", index=False)  # as earlier versions wrote it
    assert OutOfFold(folder).table["once"].all()
    table.assign(once="2").to_csv(folder / "oof" / "tiles.csv", index=False)
    with pytest.raises(DataError, match="tiles.csv: column once holds what is neither 0 nor 1; repeat"):
        OutOfFold(folder)


def test_tiles_on_ground_that_their_model_has_seen_are_said(crossvalidated, tmp_path):
    """Two dates of one ground, dealt out as if they were strangers."""
    with TileWriter(tmp_path / "store", BANDS, 32, "uint16", "test") as writer:
        for s in range(6):
            at = {"crs": "EPSG:32645", "transform": (30, 0, 500_000 + 960 * (s % 3), 0, -30, 3_100_000)}
            writer.add(*made_up(32, 32, seed=s)[:2], scene=f"s{s}", **at)
    store, folder = TileStore(tmp_path / "store"), tmp_path / "cv"
    folder.mkdir()
    keys, bundle = store.keys(), ModelBundle.load(crossvalidated[0] / "fold0" / "best.safetensors")
    for name, valid in (("apart", [0, 3]), ("mixed", [0, 1])):
        train = [i for i in range(6) if i not in valid]
        ground = trained_ground(store.ground()[train])
        about = TrainedOn(train=[keys[i] for i in train], valid=[keys[i] for i in valid], tile_size=32, ground=ground)
        replace(bundle, trained_on=about).save(folder / f"{name}.safetensors")
    with warnings.catch_warnings(action="error", category=DataNote):
        OutOfFold.write(folder, {0: "apart.safetensors"}, store)
    with pytest.warns(DataNote, match=r"cv: 2 of 2 tiles lie on ground that the model .* has seen.*data\.spatial"):
        OutOfFold.write(folder, {0: "mixed.safetensors"}, store)
