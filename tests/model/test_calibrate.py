import json
import shutil
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from glacier_fastai.core.calibration import calibrated, fit_temperature, nll
from glacier_fastai.core.confusion import confusion_matrix, mcc
from glacier_fastai.errors import BundleError, DataError, OutputError
from glacier_fastai.files import file_hash
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.calibrate import calibrate, glacier_areas, outlined_areas
from glacier_fastai.model.ensemble import Calibration, Ensemble
from glacier_fastai.model.evaluate import predict_tiles

K, SIDE = 4, 48


def fake(folder, models, seed, sharper=1.0, uneven=False, lift=0.0):
    """A cross-validation folder with made-up predictions: true probabilities made sharper, background lifted.

    `uneven`: in the first fold they are made blunter, and background is lowered.
    """
    rng = np.random.default_rng(seed)
    n = 9
    logits = np.repeat(np.repeat(rng.normal(0, 2, (n, K, SIDE // 4, SIDE // 4)), 4, 2), 4, 3)
    logits += rng.normal(0, 0.3, logits.shape)
    true = torch.from_numpy(logits).softmax(1).numpy()
    labels = (rng.random((n, 1, SIDE, SIDE)) > true.cumsum(1)).sum(1).clip(max=K - 1).astype(np.uint8)
    labels[:, :5] = 255
    fold = np.repeat(range(3), n // 3)
    power = np.where(fold == 0, 1 / sharper, sharper) if uneven else np.full(n, sharper)
    said = torch.from_numpy(logits * power[:, None, None, None])
    said[:, 0] += torch.from_numpy(np.where((fold == 0) & uneven, -lift, lift))[:, None, None]
    (folder / "oof").mkdir(parents=True)
    np.save(folder / "oof" / "probabilities.npy", said.softmax(1).numpy().astype(np.float16))
    np.save(folder / "oof" / "labels.npy", labels)
    table = {"key": [f"t{k}" for k in range(n)], "id": range(n), "fold": fold}
    pd.DataFrame(table).to_csv(folder / "oof" / "tiles.csv", index=False)
    for k in range(3):
        (folder / f"fold{k}").mkdir()
        shutil.copy(models / f"fold{k}" / "best.safetensors", folder / f"fold{k}")
    shutil.copy(models / "oof" / "models.json", folder / "oof")
    return folder


def test_temperature_and_offsets_are_found_and_stored(crossvalidated, tmp_path):
    folder = fake(tmp_path / "cv", crossvalidated[0], 0, sharper=2.0, lift=2.0)
    found = calibrate([folder], tmp_path / "e.yaml", bias=True)
    ensemble = Ensemble.load([tmp_path / "e.yaml"])
    assert ensemble.calibration.temperature == pytest.approx(2.0, rel=0.05) == found["temperature"]
    assert ensemble.calibration.bias[0] < -0.5
    assert found["nll"][1] < found["nll"][0] and found["ece"][1] < 0.25 * found["ece"][0]
    assert found["tiles"] == 9 and found["pixels"] == 9 * SIDE * (SIDE - 5)
    assert found["area"]["glaciers"] > 19 and 0.7 < found["area"]["coverage"] <= 1
    low, high = ensemble.calibration.area
    assert low < high
    slope, _, power, low, high = ensemble.calibration.glacier
    assert slope >= 0 and power >= 0 and low < high
    assert found["glacier"]["glaciers"] > 19 and 0.7 < found["glacier"]["coverage"] <= 1
    assert found["glacier"]["width"] > 0 and found["area"]["width"] > 0
    assert len(ensemble.members) == 3 and ensemble.predict.views
    assert yaml.safe_load((tmp_path / "e.yaml").read_text())["measured"] == json.loads(json.dumps(found))
    assert plt.imread(tmp_path / "e.png").std() > 0.05
    with pytest.raises(OutputError, match="e.yaml: exists already"):
        calibrate([folder], tmp_path / "e.yaml")
    table = pd.read_csv(folder / "oof" / "tiles.csv")
    table.assign(once=[1, 0, 0] * 3).to_csv(folder / "oof" / "tiles.csv", index=False)  # tiles that overlap
    fewer = calibrate([folder], tmp_path / "fewer.yaml", bias=True)
    assert (fewer["tiles"], fewer["nll"]) == (9, found["nll"])
    assert all(0 < fewer[kind]["glaciers"] < 0.6 * found[kind]["glaciers"] for kind in ("area", "glacier"))
    plain = calibrate([folder], tmp_path / "plain.yaml")  # without a bias, offsets must undo the lift
    offsets = Ensemble.load([tmp_path / "plain.yaml"]).calibration.offsets
    assert min(offsets[1:]) > 0.3 and plain["offsets"]["mcc"] > plain["plain"]["mcc"] + 0.01


def test_what_is_measured_is_measured_on_folds_that_it_was_not_fitted_to(crossvalidated, tmp_path):
    folder = fake(tmp_path / "cv", crossvalidated[0], 1, sharper=1.7)
    found = calibrate([folder], tmp_path / "e.yaml")
    probs = torch.from_numpy(np.load(folder / "oof" / "probabilities.npy").astype(np.float32)).movedim(1, -1)
    labels, fold = np.load(folder / "oof" / "labels.npy"), pd.read_csv(folder / "oof" / "tiles.csv")["fold"].to_numpy()
    losses, matrix = [], 0
    for f in range(3):
        t, bias = fit_temperature(probs[fold != f], labels[fold != f])
        sure = calibrated(probs[fold == f], t, bias, -1)
        losses.append(nll(sure, labels[fold == f]))
        matrix = matrix + confusion_matrix(sure.argmax(-1), torch.from_numpy(labels[fold == f].astype(np.int64)), K)
    assert found["nll"][1] == pytest.approx(np.mean(losses), abs=1e-4)  # folds are of one size here
    assert found["plain"]["mcc"] == pytest.approx(mcc(matrix), abs=1e-4)


def test_what_does_not_help_on_other_folds_is_left_out(crossvalidated, tmp_path):
    folder = fake(tmp_path / "cv", crossvalidated[0], 2, sharper=1.5, uneven=True, lift=0.5)
    found = calibrate([folder], tmp_path / "e.yaml")
    assert found["nll"][1] > found["nll"][0] and abs(found["temperature"] - 1) > 0.1
    assert found["offsets"]["mcc"] < found["plain"]["mcc"]
    fitted = Ensemble.load([tmp_path / "e.yaml"]).calibration
    assert fitted.model_copy(update={"area": None, "glacier": None}) == Calibration()


def test_several_cross_validations_become_one_ensemble_of_mean_predictions(crossvalidated, tmp_path):
    folders = [fake(tmp_path / f"cv{k}", crossvalidated[0], 4) for k in range(2)]
    half = np.load(folders[1] / "oof" / "probabilities.npy") * 0 + np.float16(0.25)
    np.save(folders[1] / "oof" / "probabilities.npy", half)
    one, both = calibrate(folders[:1], tmp_path / "a.yaml"), calibrate(folders, tmp_path / "b.yaml")
    assert len(Ensemble.load([tmp_path / "b.yaml"]).members) == 6
    assert one["tiles"] == both["tiles"] == 9
    assert both["plain"]["mcc"] == pytest.approx(one["plain"]["mcc"], abs=0.01)  # the same class is most probable
    assert both["nll"][0] > one["nll"][0] and both["temperature"] < 0.8


def test_a_real_cross_validation(crossvalidated, tmp_path):
    found = calibrate([crossvalidated[0]], tmp_path / "e.yaml")
    ensemble = Ensemble.load([tmp_path / "e.yaml"])
    assert found["tiles"] == len(crossvalidated[1])
    assert [m.path.parent.name for m in ensemble.members] == ["fold0", "fold1", "fold2"]


def test_where_no_ice_has_a_kind_decisions_are_made_for_ice(crossvalidated, tmp_path):
    folder = fake(tmp_path / "cv", crossvalidated[0], 0, sharper=2.0, lift=2.0)
    labels = np.load(folder / "oof" / "labels.npy")
    np.save(folder / "oof" / "labels.npy", np.where(np.isin(labels, (1, 2)), 254, np.where(labels == 3, 255, labels)))
    found = calibrate([folder], tmp_path / "e.yaml", bias=True)
    fitted = Ensemble.load([tmp_path / "e.yaml"]).calibration
    assert found["temperature"] == pytest.approx(2, rel=0.1)
    assert found["nll"][1] < found["nll"][0]
    assert found["offsets"]["ice_mcc"] > found["plain"]["ice_mcc"]
    assert fitted.offsets[1] == fitted.offsets[2] != 0 == fitted.offsets[0]
    assert found["area"]["glaciers"] > 0


def test_a_real_cross_validation_of_ice_without_kinds(blind, tmp_path):
    found = calibrate([blind[0]], tmp_path / "e.yaml")
    assert found["tiles"] == len(blind[1])
    ensemble = Ensemble.load([tmp_path / "e.yaml"])
    assert not ensemble.tells_debris
    tuned = replace(ensemble, calibration=Calibration(temperature=3.0, offsets=(0, 0.1, 3.0, 0)))
    for used in (ensemble, tuned):
        for _, classes, probs in predict_tiles(used, blind[1], [0, 5]):
            assert not (classes == 2).any()
            assert not probs[2].any()
            np.testing.assert_allclose(probs.sum(0), 1, atol=1e-5)


def test_areas_by_hand():
    classes, labels = np.zeros((40, 40), np.uint8), np.zeros((40, 40), np.uint8)
    classes[5:15, 5:15], labels[5:15, 5:18] = 1, 1
    classes[10:15, 5:15] = 2
    classes[30:33, 30:33] = 1  # too small to count
    for kind in (1, 254):
        (row,) = glacier_areas(classes, np.full((40, 40), 0.2, np.float32), kind * labels)
        np.testing.assert_allclose(row, [100, 20, 130], rtol=1e-6)


def test_areas_within_outlines_by_hand():
    classes, labels = np.zeros((40, 40), np.uint8), np.zeros((40, 40), np.uint8)
    labels[5:15, 5:15], classes[5:15, 5:13], classes[5:15, 18:20] = 1, 1, 2
    labels[30:33, 30:33] = classes[30:33, 30:33] = 1  # too small to count
    labels[:, 0] = classes[:, 0] = 255
    ice = np.where(np.isin(classes, (1, 2)), 0.75, 0.25).astype(np.float32)
    for kind in (1, 254):
        (row,) = outlined_areas(classes, ice, np.where(labels == 1, kind, labels), 2.0)
        # within two pixels: 180 of them and 4 in a circle's corners; within four, where there is ice apart, too
        near, far = (np.hypot(*(np.maximum(abs(np.arange(40) - 9.5) - 4.5, 0)[s] for s in np.ix_(*[range(40)] * 2)))
                     <= k for k in (2, 4))  # fmt: skip
        far &= labels != 255
        mapped = np.isin(classes, (1, 2))
        want = [100, 80, ice[near].sum(), (mapped & far).sum(), ice[far].sum()]
        np.testing.assert_allclose(row, want, rtol=1e-6)
        assert want[3] == 90


def test_too_few_glaciers_have_no_intervals(crossvalidated, tmp_path):
    folder = fake(tmp_path / "cv", crossvalidated[0], 0)
    labels = np.load(folder / "oof" / "labels.npy")
    labels[:, 9:], labels[:, :, 4:] = 0, 0  # ice in a corner alone
    np.save(folder / "oof" / "labels.npy", labels)
    found = calibrate([folder], tmp_path / "e.yaml")
    fitted = Ensemble.load([tmp_path / "e.yaml"]).calibration
    assert found["glacier"]["glaciers"] < 19 and found["glacier"]["coverage"] is None and fitted.glacier is None


def test_refusals(crossvalidated, tmp_path):
    with pytest.raises(DataError, match="no out-of-fold predictions"):
        calibrate([tmp_path], tmp_path / "e.yaml")
    alone = fake(tmp_path / "alone", crossvalidated[0], 5)
    table = pd.read_csv(alone / "oof" / "tiles.csv").assign(fold=1)
    table.to_csv(alone / "oof" / "tiles.csv", index=False)
    with pytest.raises(DataError, match="alone: predictions of one fold alone; resume it"):
        calibrate([alone], tmp_path / "e.yaml")
    with pytest.raises(DataError, match="alone: is named twice"):
        calibrate([alone, alone / "oof"], tmp_path / "e.yaml")
    for k, change in enumerate((Path.unlink, lambda path: ModelBundle.load(path).save(path, half=False))):
        other = fake(tmp_path / f"other{k}", crossvalidated[0], 6)
        change(other / "fold1" / "best.safetensors")
        with pytest.raises(BundleError, match=f"other{k}/fold1/best.safetensors: is not the model that predicted"):
            calibrate([other], tmp_path / "e.yaml")
    twice = [fake(tmp_path / f"settings{k}", crossvalidated[0], 8) for k in range(2)]
    path = twice[1] / "fold0" / "best.safetensors"
    bundle = ModelBundle.load(path)
    replace(bundle, recipe={**bundle.recipe, "predict": {"views": False}}).save(path)
    models = json.loads((twice[1] / "oof" / "models.json").read_text())
    (twice[1] / "oof" / "models.json").write_text(json.dumps({**models, "fold0/best.safetensors": file_hash(path)}))
    with pytest.raises(BundleError, match='settings1/fold0.*with other settings than .*"views":false'):
        calibrate(twice, tmp_path / "e.yaml")
    told = [fake(tmp_path / f"told{k}", crossvalidated[0], 9) for k in range(2)]
    np.save(told[1] / "oof" / "labels.npy", 3 - np.load(told[1] / "oof" / "labels.npy").clip(max=3))
    for order in (told, told[::-1]):
        with pytest.raises(DataError, match=r"told\d.oof: tile \d+ has other labels than in .*told\d.oof; use one"):
            calibrate(order, tmp_path / "e.yaml")
    small = fake(tmp_path / "small", crossvalidated[0], 7)
    for name in ("probabilities", "labels"):
        array = np.load(small / "oof" / f"{name}.npy")
        np.save(small / "oof" / f"{name}.npy", array[..., :32, :32])
    with pytest.raises(DataError, match="tiles of another size"):
        calibrate([small, fake(tmp_path / "other", crossvalidated[0], 7)], tmp_path / "e.yaml")
    assert not (tmp_path / "e.yaml").exists()
