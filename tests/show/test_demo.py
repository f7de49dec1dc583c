import matplotlib.pyplot as plt
import pytest
import rasterio

from glacier_fastai.errors import OutputError
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.show.demo import run


def test_the_demo_goes_all_the_way(tmp_path, capsys):
    out = tmp_path / "demo"
    run(out, ["train.epochs=1", "data.crops_per_tile=1", "data.crop=32", "ramp=null"])
    text = capsys.readouterr()
    assert "synthetic" in text.err
    printed = [line.split()[-1] for line in text.out.splitlines()]
    assert [p.rsplit("/", 1)[-1] for p in printed] == [
        "best.safetensors",
        "scene_classes.tif",
        "scene_outlines.gpkg",
        "map.png",
        "batch.png",
        "results.png",
        "report.html",
    ]
    assert ModelBundle.load(printed[0]).trained_on.fold == 0
    with rasterio.open(printed[1]) as file:
        assert file.shape == (384, 384)
    for path in printed[3:-1]:
        assert plt.imread(path).std() > 0.05
    with pytest.raises(OutputError, match="demo: exists already"):
        run(out)
