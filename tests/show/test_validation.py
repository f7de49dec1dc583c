from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.evaluate import predict_tiles
from glacier_fastai.plots.panels import class_rgba
from glacier_fastai.show.runs import read_runs
from glacier_fastai.show.validation import validate


def test_pictures_are_those_of_their_tiles(trained):
    """Truth and map stand in the class colours, and the map is what the model makes of that tile, hardest ones too."""
    folder, store = trained
    (run,), _ = read_runs([folder])
    found = validate(run, store, 3)
    at = {name: i for i, name in enumerate(store.table["id"])}
    shown = [pictures for _, pictures in (*found.examples, *found.hardest)]
    assert len({p.id for p in shown}) >= 3 and [at[p.id] for _, p in found.examples] == [i for i, _ in found.examples]
    bundle = ModelBundle.load(folder / "best.safetensors")
    for tile in shown:
        truth = store.labels(at[tile.id])
        classes = next(predict_tiles(bundle, store, [at[tile.id]])).classes
        assert tile.wrong == pytest.approx((classes != truth)[truth != 255].mean())
        for uri, mask in ((tile.truth, truth), (tile.prediction, classes)):
            picture = np.asarray(Image.open(BytesIO(b64decode(uri.partition(",")[2]))).convert("RGBA"))
            want = (class_rgba(mask) * 255).round()
            seen = want[..., 3] > 0
            np.testing.assert_array_equal(picture[seen], want[seen])
            assert not picture[~seen][:, 3].any()
