import json
import os
import re
import shutil
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from scenes import BANDS, CRS, TINY, made_up, make_store, tiny_recipe
from typer.testing import CliRunner

from glacier_fastai.cli import app
from glacier_fastai.data.tiles import TileStore, TileWriter
from glacier_fastai.errors import BundleError, DataError, OutputError
from glacier_fastai.model.bundle import ModelBundle, TrainedOn
from glacier_fastai.show import validation
from glacier_fastai.show.report import write_report
from glacier_fastai.show.runs import read_runs
from glacier_fastai.train.run import finetune

SECTIONS = [
    "What was run",
    "Scores",
    "Learning curves",
    "MCC over the epochs",
    "Confusion",
    "Reliability",
    "Batch composition",
    "Tiles",
    "Hardest tiles",
    "Band importance",
    "Time and memory",
]


class Page(HTMLParser):
    """What a page holds: its tags, and the text between them."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self.size = [], "", path.stat().st_size
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    def headings(self):
        return [tag for tag, _ in self.tags if re.fullmatch(r"h\d", tag)]

    def notes(self):
        found = re.findall(r"<li>(.*?)</li>", self.html.partition('class="notes"')[2].partition("</ul>")[0])
        return [line for line in found if "an epoch makes" not in line]  # which all runs of tests do


def made(tmp_path, *runs, **kwargs):
    write_report(runs, tmp_path / "r.html", **kwargs)
    return Page(tmp_path / "r.html")


@pytest.fixture(scope="module")
def page(trained, tmp_path_factory):
    """Report of a single run."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report([trained[0]], path)
    return path


@pytest.fixture(scope="module")
def folds(crossvalidated, tmp_path_factory):
    """Report of a cross-validation."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report([crossvalidated[0]], path)
    return path


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a run, to be damaged."""
    return shutil.copytree(trained[0], tmp_path / "copy")


def test_a_page_needs_nothing_else_and_is_described(page, folds):
    for path in (page, folds):
        found = Page(path)
        assert found.headings() == ["h1"] + ["h2"] * len(SECTIONS)
        assert all(title in found.text for title in SECTIONS)
        assert found.all("html") == [{"lang": "en"}]
        images = found.all("img")
        assert len(images) > 20
        for image in images:
            assert image["src"].startswith(("data:image/png;base64,", "data:image/webp;base64,"))
            assert len(image["alt"]) > 10
        assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(?!data:|#)[a-z/]""", found.html)
        assert not {"link", "iframe", "object", "base"} & {tag for tag, _ in found.tags}
        assert all({"aria-label", "min", "max"} <= slider.keys() for slider in found.all("input"))
        assert len(found.all("caption")) == len(found.all("table")) >= 5
        assert not found.notes()


def test_scores_are_those_of_the_runs(crossvalidated, folds):
    found = Page(folds)
    metrics = [json.loads((crossvalidated[0] / f"fold{k}" / "metrics.json").read_text()) for k in range(3)]
    mcc = [m["mcc"] for m in metrics]
    cells = [f"{np.mean(mcc):.3f} ± {np.std(mcc, ddof=1):.3f}", *(f"{v:.3f}" for v in mcc)]
    assert "MCC</th>" + "".join(f"<td>{cell}</td>" for cell in cells) in found.html
    pixels = [m["classes"]["lake"]["pixels"] for m in metrics]
    cells = [f"{sum(pixels):,} in all", *(f"{v:,}" for v in pixels)]
    assert "pixels</th>" + "".join(f"<td>{cell}</td>" for cell in cells) in found.html
    assert "fold0, fold1, fold2" in found.text  # they share a recipe
    matrix = sum(np.array(m["confusion"]) for m in metrics)
    assert f"right are {matrix[0, 0] / matrix[0].sum():.2%} of background" in found.html


@pytest.mark.slow
def test_ice_of_unknown_kind_has_a_row_a_colour_and_a_share(blind, trained, tmp_path):
    found = made(tmp_path, blind[0], trained[0])
    assert "ice, kind unknown" in found.text and "background: #cc79a7" in found.html
    assert "Ice, kind unknown" in found.text and "of any ice" in found.html
    assert any("no label tells debris from clean ice" in note for note in found.notes())
    assert "ice, kind unknown" not in made(tmp_path, trained[0], overwrite=True).text


def test_what_was_run_is_told(trained, page):
    run, store = trained
    found = Page(page)
    for text in (store.fingerprint(), store.path.name, f"unet (encoder {TINY}", "boundary from 0.05", "torch "):
        assert text in found.text
    counts = store.class_counts()[np.isin(store.keys(), read_runs([run])[0][0].trained_on.train)].sum(0)
    assert f"{counts[1] / counts.sum():.2%}" in found.text
    assert "epochs: 2" in found.text  # of the whole recipe


@pytest.mark.slow
def test_runs_stand_side_by_side(trained, tmp_path):
    run, store = trained
    other = finetune(tiny_recipe("train.lr=2e-3", "seed=7"), fold=0, data=store.path, out=tmp_path / "läuft-氷河")
    found = made(tmp_path, run, other)
    assert "Where recipes differ" in found.text
    assert re.search(r"train\.lr</th><td>0\.001</td><td>0\.002</td>", found.html)
    assert "läuft-氷河" in found.text
    assert "mean ± std" in found.text
    assert not found.notes()
    elsewhere = finetune(tiny_recipe(), fold=0, data=make_store(tmp_path / "more", scenes=4).path, out=tmp_path / "b")
    found = made(tmp_path, run, elsewhere, overwrite=True)
    assert "different tiles, so their scores cannot be compared" in found.notes()[0]
    assert "mean ± std" not in found.text


@pytest.mark.slow
def test_a_run_cut_short_shows_what_there_is(run, tmp_path):
    (run / "metrics.json").unlink()
    (run / "figures" / "batch.png").unlink()
    with open(run / "events.jsonl", "a") as file:
        file.write('{"time": "2026-01-01T00:00:00Z", "ev')
    found = made(tmp_path, run)
    said = " ".join(found.notes())
    for text in (
        "cut short, or not yet done: 2 of 2 epochs",
        "no metrics.json",
        "half-written line",
        "the best so far",
    ):
        assert text in said
    assert len(found.all("input")) == 2 * 4
    for name in ("best.safetensors", "history.csv", "environment.json", "folds.csv"):
        (run / name).unlink()
    (run / "recipe.yaml").write_text("{}")
    (run / "events.jsonl").write_text("")
    (run / "metrics.json").write_text('{"mcc": 0.')
    found = made(tmp_path, run, overwrite=True)
    said = " ".join(found.notes())
    for text in ("no best.safetensors", "no history.csv", "metrics.json is damaged", "its tiles are not known"):
        assert text in said
    assert found.headings() == ["h1"] + ["h2"] * len(SECTIONS)
    assert not found.all("img")


@pytest.mark.slow
@pytest.mark.parametrize("metrics", [{"classes": 5}, {"ice": [1]}, {"confusion": [["x"]]}, {"mcc": {}}])
def test_odd_scores_of_a_bundle_are_left_out(run, metrics):
    (run / "metrics.json").unlink()
    replace(ModelBundle.load(run / "best.safetensors"), metrics=metrics).save(run / "best.safetensors")
    (found,), _ = read_runs([run])
    assert not found.scores and any("best.safetensors is damaged (" in line for line in found.lacks)


def test_a_cross_validation_cut_short_is_reported_as_far_as_it_came(crossvalidated, tmp_path):
    folder = tmp_path / "cv"
    shutil.copytree(crossvalidated[0] / "fold0", folder / "fold0")
    found = made(tmp_path, folder)
    assert found.notes() == ["fold0: of its cross-validation fold 1, 2 is not there."]
    shutil.copytree(folder / "fold0", folder / "fold0_kept")
    assert not [line for line in made(tmp_path, folder, overwrite=True).notes() if "another fold" in line]
    shutil.copytree(folder / "fold0", folder / "fold1")
    assert "fold1: its model is that of another fold." in made(tmp_path, folder, overwrite=True).notes()


def test_what_was_odd_about_the_data_stands_at_the_top(run, tmp_path):
    with open(run / "events.jsonl", "a") as file:
        for _ in range(2):
            file.write(json.dumps({"event": "start", "time": "2026-11-27T12:00:00Z", "notes": ["t: no lake"]}) + "\n")
    assert made(tmp_path, run).notes() == ["copy: t: no lake."]


def test_the_command_prints_the_path(trained, tmp_path):
    out = CliRunner().invoke(app, ["report", str(trained[0]), "--out", str(tmp_path / "r.html")])
    assert (out.exit_code, out.stdout) == (0, f"{tmp_path / 'r.html'}\n"), out.output


def test_a_damaged_bundle_costs_only_the_tiles(run, tmp_path):
    (run / "best.safetensors").write_bytes((run / "best.safetensors").read_bytes()[:1000])
    found = made(tmp_path, run)
    assert "not a safetensors file, or cut short" in found.notes()[0]
    assert "Confusion matrix" in found.html and not found.all("input")


def test_a_run_without_validation(store, tmp_path):
    run = finetune(tiny_recipe("train.epochs=1"), fold=None, data=store.path, out=tmp_path / "all")
    found = made(tmp_path, run)
    assert len(found.notes()) == 1 and "without validation" in found.notes()[0]
    assert not found.all("input")
    assert "none, trained on all" in found.text


@pytest.mark.slow
def test_tiles_are_found_where_they_are_said_to_be(run, trained, tmp_path):
    moved = shutil.copytree(trained[1].path, tmp_path / "moved")
    gone = run / "best.safetensors"
    bundle = ModelBundle.load(gone)
    replace(bundle, trained_on=bundle.trained_on.model_copy(update={"path": str(tmp_path / "gone")})).save(gone)
    found = made(tmp_path, run)
    assert "its tiles are not at gone, so none are shown" in found.notes()[0]
    assert not found.all("input") and "Confusion matrix" in found.html
    found = made(tmp_path, run, data=moved, overwrite=True)
    assert not found.notes() and found.all("input")
    other = make_store(tmp_path / "other", bands=(*BANDS[:4], "nir"), seed=9).path
    found = made(tmp_path, run, data=other, overwrite=True)
    assert "the bundle needs band thermal" in found.notes()[0]
    with pytest.raises(DataError, match="nowhere: no such folder"):
        made(tmp_path, run, data=tmp_path / "nowhere", overwrite=True)


def test_names_are_escaped_and_nothing_is_written_into_a_run(trained, tmp_path):
    run = shutil.copytree(trained[0], tmp_path / "<b>&'\"")
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    for path in (run, *run.rglob("*")):
        os.chmod(path, 0o555 if path.is_dir() else 0o444)
    found = made(tmp_path, run)
    assert "Report of <b>&'\"" in found.text and "<b>&" not in found.html
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before
    odd = shutil.copytree(trained[0], os.fsdecode(os.fsencode(tmp_path) + b"/r\xffn\x1b"))
    assert r"Report of r\udcffn\x1b" in made(tmp_path, odd, overwrite=True).text


@pytest.mark.slow
def test_thousands_of_tiles_stay_a_small_page(run, tmp_path, monkeypatch):
    size, n = 32, 300
    image, classes, valid = made_up(size, size)
    with TileWriter(tmp_path / "many", BANDS, size, "uint16", source="made up for tests") as writer:
        for k in range(n):
            writer.add(image, classes, valid=valid, scene=f"s{k:05}", crs=CRS)
    store = TileStore(tmp_path / "many")
    bundle = ModelBundle.load(run / "best.safetensors")
    about = TrainedOn(path=str(store.path), valid=tuple(store.keys()))
    replace(bundle, trained_on=about).save(run / "best.safetensors")
    monkeypatch.setattr(validation, "PREDICTED", 20)
    monkeypatch.setattr(validation, "SIDE", 20)
    found = made(tmp_path, run)
    assert "of 20 validation tiles evenly taken from 300" in found.text
    assert len(found.all("input")) == 2 * validation.SHOWN
    assert found.size < 3_000_000
    pictures = {
        name: np.array(Image.open(BytesIO(b64decode(image["src"].partition(",")[2]))).convert("RGBA"))
        for image in found.all("img")
        if (name := image["alt"].split()[0]) in ("Image", "Truth", "Prediction", "Errors")
    }
    for name, rgba in pictures.items():
        assert rgba.shape == (16, 16, 4), name  # every other pixel
        assert np.array_equal(rgba[..., 3] > 0, valid[::2, ::2]), name  # no data is clear in all of them
    assert len(pictures) == 4


def test_bad_input_is_refused(trained, run, tmp_path):
    out = tmp_path / "r.html"
    with pytest.raises(DataError, match="no run or cross-validation.*name a folder that"):
        write_report([tmp_path], out)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        write_report([tmp_path / "nowhere"], out)
    with pytest.raises(DataError, match="a run is named twice"):
        write_report([run, f"{run}/"], out)
    with pytest.raises(OutputError, match="there is no folder"):
        write_report([run], tmp_path / "none" / "r.html")
    scores = json.loads((run / "metrics.json").read_text())
    scores["classes"] = {"background": {}, "ice": {}}
    (run / "metrics.json").write_text(json.dumps(scores))
    with pytest.raises(BundleError, match="a run of background, ice; a report is of the classes background, glacier"):
        write_report([trained[0], run], out)
    assert not out.exists()
    out.write_text("mine")
    with pytest.raises(OutputError, match="recipe.yaml: a report is a page; name it NAME.html"):
        write_report([trained[0]], trained[0] / "recipe.yaml", overwrite=True)
    with pytest.raises(OutputError, match="r.html: exists already; overwrite it"):
        write_report([trained[0]], out)
    assert out.read_text() == "mine"


# In a browser


def test_pictures_and_keyboard_work_in_a_browser(page, opened):
    shown = opened(page)
    assert shown.eval_on_selector_all("img", "all => all.every(i => i.complete && i.naturalWidth > 0)")
    clip = "getComputedStyle(document.querySelector('.pair img + img')).clipPath"
    before = shown.evaluate(clip)
    slider = shown.locator("input[type=range]").first
    slider.focus()
    shown.keyboard.press("ArrowRight")
    assert slider.input_value() == "51"
    assert slider.get_attribute("aria-valuetext") == "51 % truth"
    assert shown.evaluate(clip) != before
    shown.keyboard.press("Home")
    assert "100%" in shown.evaluate(clip)
    shown.locator("summary").first.press("Enter")
    assert shown.locator("pre").first.is_visible()


@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_is_wider_than_the_screen(page, folds, opened, width):
    for path in (page, folds):
        shown = opened(path, viewport={"width": width, "height": 800})
        assert shown.evaluate("document.documentElement.scrollWidth") <= width


def test_dark_pages_are_dark_and_prints_are_light(page, opened):
    def brightness(shown):
        back, ink = shown.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        return [sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 for colour in (back, ink)]

    shown = opened(page, color_scheme="dark")
    back, ink = brightness(shown)
    assert back < 60 and ink > 180
    shown.emulate_media(media="print")
    assert brightness(shown)[0] == 255
    assert shown.locator("input").first.is_hidden()
    assert shown.locator(".pair img + img").first.evaluate("i => getComputedStyle(i).clipPath") == "none"
    back, ink = brightness(opened(page, color_scheme="light"))
    assert back == 255 and ink < 60
