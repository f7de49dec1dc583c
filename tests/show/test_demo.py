import matplotlib.pyplot as plt
import pytest
import rasterio
from typer.testing import CliRunner

from glacier_fastai.cli import app
from glacier_fastai.errors import OutputError
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.show import demo
from glacier_fastai.show.demo import run


@pytest.mark.slow
def test_the_demo_goes_all_the_way(tmp_path, capsys, caplog):
    out = tmp_path / "demo"
    caplog.set_level("INFO", "glacier_fastai")
    made = run(out, ["model.size=tiny", "train.epochs=1", "data.crops_per_tile=1", "data.crop=32", "ramp=null"])
    assert capsys.readouterr().out == ""  # a library prints nothing
    assert "synthetic tiles that neither run has seen" in caplog.text
    assert {name: path.name for name, path in made.items()} == {
        "bundle": "best.safetensors",
        "map": "scene_classes.tif",
        "outlines": "scene_outlines.gpkg",
        "map figure": "map.png",
        "batch figure": "batch.png",
        "results figure": "results.png",
        "report": "report.html",
    }
    assert ModelBundle.load(made["bundle"]).trained_on.fold == 0
    with rasterio.open(made["map"]) as file:
        assert file.shape == (384, 384)
    for name in ("map figure", "batch figure", "results figure"):
        assert plt.imread(made[name]).std() > 0.05
    assert made["outlines"].exists() and made["report"].exists()
    with pytest.raises(OutputError, match="demo: exists already"):
        run(out)


def test_the_command_prints_what_was_made(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "run", lambda out: {"bundle": out / "best.safetensors", "map": out / "map.tif"})
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path)])
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["bundle", str(tmp_path / "best.safetensors")],
        ["map", str(tmp_path / "map.tif")],
    ]
