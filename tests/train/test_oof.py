import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from glacier_fastai.errors import DataError, OutputError
from glacier_fastai.train.bundle import ModelBundle
from glacier_fastai.train.evaluate import normalise
from glacier_fastai.train.oof import OutOfFold


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
        assert keys[i] not in bundle.trained_on["train"]
        x = torch.from_numpy(normalise(store.read(i), bundle.mean, bundle.std))[None]
        want = bundle.probabilities(torch.device("cpu"))(x)[0].numpy()
        np.testing.assert_allclose(oof.probabilities[n], want, atol=6e-4)  # half precision
        np.testing.assert_array_equal(oof.labels[n], store.masks[i])


def test_refusals_and_nothing_half_written(crossvalidated, tmp_path):
    folder, store = crossvalidated
    with pytest.raises(DataError, match="no out-of-fold predictions.*crossval"):
        OutOfFold(tmp_path)
    shutil.copytree(folder / "oof", tmp_path / "cut")
    pd.read_csv(tmp_path / "cut" / "tiles.csv").iloc[1:].to_csv(tmp_path / "cut" / "tiles.csv")
    with pytest.raises(DataError, match="files do not fit each other"):
        OutOfFold(tmp_path / "cut")
    shutil.copytree(folder / "oof", tmp_path / "pickled")
    np.save(tmp_path / "pickled" / "labels.npy", np.array([{}], object))
    with pytest.raises(DataError, match="damaged"):
        OutOfFold(tmp_path / "pickled")
    (tmp_path / "file").write_text("")
    bundles = {0: ModelBundle.load(folder / "fold0" / "best.safetensors")}
    with pytest.raises(OutputError, match="cannot be written"):
        OutOfFold.write(tmp_path / "file" / "oof", bundles, store)
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".partial")]
