import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime

import pystac
import pytest
import shapely
from scenes import TINY, make_store
from stac_model.schema import MLModelProperties

from glacier_fastai.data.tiles import TileStore
from glacier_fastai.files import file_hash
from glacier_fastai.model.bundle import ModelBundle, TrainedOn
from glacier_fastai.train.card import model_card, stac_item, write_card

MADE = datetime(2026, 11, 26, 15, tzinfo=UTC)


@pytest.fixture
def path(trained):
    return trained[0] / "best.safetensors"


def test_the_card_of_a_run_says_what_it_was_trained_on_and_how_well_it_does(trained, path):
    card = (trained[0] / "MODEL_CARD.md").read_text(encoding="utf-8")
    bundle, store = ModelBundle.load(path), trained[1]
    valid = len(bundle.trained_on.valid)
    assert f"SHA-256 of `best.safetensors`: {file_hash(path)}" in card
    assert f"| {len(store) - valid} of 32 px trained on, {valid} validated on |" in card
    assert "fold 0 of 3, spatial" in card and f"MCC {bundle.metrics['mcc']:.4f}" in card
    assert f"unet (encoder {TINY}" in card and "blue, green, red, swir1, thermal" in card
    for section in ("Intended use", "Training data", "Results", "Limits", "Licences", "How to reproduce"):
        assert f"\n## {section}\n" in card


def test_without_validation_nothing_is_said_to_be_measured_and_synthetic_data_are_called_so(trained, path):
    bundle, store = ModelBundle.load(path), trained[1]
    about = TrainedOn(train=tuple(store.keys()), fold=None)
    environment = json.loads((trained[0] / "environment.json").read_text())
    card = model_card(replace(bundle, trained_on=about), store, path, MADE, environment)
    assert "Nothing was measured" in card and "every tile was trained on" in card and "synthetic" not in card
    store.info["source"] = "synthetic"
    try:
        assert "The training data are synthetic" in model_card(bundle, store, path, MADE, environment)
        assert stac_item(bundle, store, path, MADE).geometry is None
    finally:
        store.info["source"] = "made up for tests"


def test_texts_of_files_make_no_tables_links_or_lines(trained, path):
    bundle, store = ModelBundle.load(path), TileStore(trained[1].path)
    store.info |= {"sensor": "[a](http://x)|\n## b", "source": "<script>"}
    environment = json.loads((trained[0] / "environment.json").read_text())
    card = model_card(bundle, store, path, MADE, {**environment, "command": ["a`b", "[red]"]})
    assert r"\[a\](http://x)\|\\n## b" in card and r"| source | \<script\> (" in card
    assert "\n## b" not in card


def test_the_item_is_valid_and_names_bands_classes_and_statistics(trained, path):
    item = json.loads((trained[0] / "best.stac.json").read_text(encoding="utf-8"))
    bundle = ModelBundle.load(path)
    read = pystac.Item.from_dict(item)
    assert read.assets["model"].href == "./best.safetensors" and read.datetime is not None
    fields = {k.removeprefix("mlm:"): v for k, v in item["properties"].items() if k.startswith("mlm:")}
    model = MLModelProperties.model_validate(fields)
    assert [b.name for b in model.input[0].bands] == list(bundle.bands)
    assert [c.name for c in model.output[0].classes] == list(bundle.classes)
    assert [s.mean for s in model.input[0].value_scaling] == list(bundle.mean)
    assert model.total_parameters == sum(p.numel() for p in bundle.model().parameters())


def test_nothing_is_asked_of_the_network(trained, path, tmp_path, monkeypatch):
    def refused(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refused)
    monkeypatch.setattr("socket.getaddrinfo", refused)
    run = shutil.copytree(trained[0], tmp_path / "run")
    for name in ("MODEL_CARD.md", "best.stac.json"):
        (run / name).unlink()
    write_card(run, ModelBundle.load(path), run / path.name, trained[1])
    assert "# run: glaciers in blue" in (run / "MODEL_CARD.md").read_text()
    assert json.loads((run / "best.stac.json").read_text())["links"] == []


def test_a_place_across_the_antimeridian_is_cut_there(path, tmp_path):
    store = make_store(tmp_path / "store", scenes=1)
    corners = ["0.001 0 179.984 0 -0.001 66", *["0.001 0 -179.9 0 -0.001 66"] * (len(store) - 1)]
    store.table = store.table.assign(crs="EPSG:4326", transform=corners)
    item = stac_item(ModelBundle.load(path), store, path, MADE)
    assert item.bbox == pytest.approx([179.984, 65.968, -179.868, 66], abs=1e-5)
    ground = shapely.geometry.shape(item.geometry)
    assert ground.is_valid and ground.area == pytest.approx((0.016 + 0.132) * 0.032, rel=1e-2)
    store.table = store.table.assign(
        transform=["0.001 0 179.984 0 -0.001 66", *["12 0 -180 0 -1 66"] * (len(store) - 1)]
    )
    west, _, east, _ = stac_item(ModelBundle.load(path), store, path, MADE).bbox
    assert (west, east) == (-180, 180)  # ground all around


def test_its_place_is_that_of_the_tiles(path, tmp_path):
    store = make_store(tmp_path / "store", scenes=1)
    store.table = store.table.assign(transform="30 0 500000 0 -30 3100000")
    west, south, east, north = stac_item(ModelBundle.load(path), store, path, MADE).bbox
    assert west == pytest.approx(87.0, abs=1e-6)  # central meridian of zone 45
    assert north == pytest.approx(28.024, abs=0.01)
    assert (east - west) * 111.32 * 0.8826 == pytest.approx(32 * 0.03, rel=0.01)
    assert (north - south) * 110.8 == pytest.approx(32 * 0.03, rel=0.01)
