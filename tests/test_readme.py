"""README and docs: links lead somewhere, commands and settings exist, and blocks below `<!-- tested: NAME -->` run."""

import ast
import builtins
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from folders import competition_folder
from hkh_folders import hkh_folder
from scenes import TINY, made_up, make_store, write_scene

import glacier_fastai
from glacier_fastai.cli import app
from glacier_fastai.data.tiles import TileStore
from glacier_fastai.model.ensemble import Calibration
from glacier_fastai.model.registry import model_names
from glacier_fastai.recipe import PredictRecipe, load_recipe, recipe_dir, recipe_from, recipe_names

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}
README = PAGES["README.md"]
TINY_RUN = ["data.tile_size=32", "data.crop=32", "data.crops_per_tile=1", "train.epochs=1", "train.batch_size=4"]
TINY_RUN += ["model.size=tiny", "train.precision=fp32", "augment=[]", "balance=null", "train.accumulate=1"]
TINY_RUN += ["record.panels_every=0"]
FOUR = ("blue", "green", "red", "nir")


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def marked(name):
    """The block that is marked with a name, anywhere."""
    (found,) = re.findall(rf"<!-- tested: {name} -->\n```\w+\n(.*?)```", "\n".join(PAGES.values()), re.DOTALL)
    return found


def lines(block):
    return [line.split(" > ")[0] for line in block.replace("\\\n", "").splitlines()]


# commands as they stand in blocks; and in the running text of pages and notebooks, where arguments may be missing
COMMANDS = [
    re.split(r"glacier-fastai |-m glacier_fastai ", line, maxsplit=1)[1]
    for text in PAGES.values()
    for block in blocks(text, "bash")
    for line in lines(block)
    if "glacier-fastai " in line or "-m glacier_fastai " in line
]
PROSE = [*PAGES.values()]
for notebook in sorted((recipe_dir() / "notebooks").glob("*.ipynb")):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    PROSE += ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
MENTIONED = [
    " ".join(code.split()).removeprefix("glacier-fastai ")
    for text in PROSE
    for code in re.findall(r"(?<!`)`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    if re.match(r"glacier-fastai\s+[a-z]", code)
]


def parsed(command):
    """The click command that a line calls, and the words that are left for it."""
    words, node = shlex.split(command), typer.main.get_command(app)
    while words and words[0] in getattr(node, "commands", {}):
        node = node.commands[words.pop(0)]
    return node, words


def test_a_newcomer_reads_the_readme_to_its_end_and_finds_the_two_commands():
    assert len(README.splitlines()) <= 200
    assert "\npip install . && glacier-fastai demo\n" in README
    assert re.findall(r"^pip install .*&& pytest$", README, re.MULTILINE) == ["pip install '.[test]' && pytest"]
    assert "README.md" in (ROOT / ".ci" / "run").read_text()  # which runs the second


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL))
    for link in links:
        if re.match(r"https?:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in slugs, link


def test_every_page_of_the_documentation_is_in_its_index_and_the_readme_names_it():
    for page in PAGES:
        if page.startswith("docs/") and page != "docs/README.md":
            assert f"({Path(page).name})" in PAGES["docs/README.md"] and f"({page})" in README, page


@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS))
def test_every_command_exists_with_its_options(command):
    node, words = parsed(command)
    if node.name == "launch" and "--" in words:
        test_every_command_exists_with_its_options(shlex.join(words[words.index("--") + 1 :]))
    assert node.make_context(command, words, resilient_parsing=False).params


@pytest.mark.parametrize("command", dict.fromkeys(MENTIONED))
def test_every_command_that_is_mentioned_has_the_options_that_are(command):
    node, words = parsed(command)
    assert node.name != app.info.name and not (hasattr(node, "commands") and words), command
    options = {"--help", "--debug", *(o for p in node.params for o in p.opts)}
    assert {w for w in words if w.startswith("--") and w != "--"} <= options


def test_there_are_commands_to_look_at():
    assert len(COMMANDS) >= 20 and len(MENTIONED) >= 10


def test_every_setting_exists():
    for command in COMMANDS:
        words = shlex.split(command)
        recipe = words[words.index("--recipe") + 1] if "--recipe" in words else "demo"
        settings = [value for option, value in zip(words, words[1:], strict=False) if option == "--set"]
        made = load_recipe(recipe if recipe in recipe_names() else "demo", settings)
        assert made.model.arch in model_names()


def test_every_field_of_a_recipe_that_is_named_exists():
    sections = load_recipe("seed_competition").model_dump()
    fields = {f"{name}.{field}" for name, section in sections.items() if isinstance(section, dict) for field in section}
    for page, text in PAGES.items():
        named = re.findall(rf"`((?:{'|'.join(sections)})\.[a-z_]+)\b(?![.(/])", text)
        files = {"recipe.yaml", "recipe.py", "model.pth"}
        assert set(named) - files <= fields, page


def test_every_piece_of_a_recipe_is_valid():
    text = "\n".join(PAGES.values())
    pieces = [*blocks(text, "yaml"), *re.findall(r"`(augment: \w+)`", text)]
    pieces += [f"augment: {value}" for value in re.findall(r"`(\[flip, .*?\])`", text)]
    assert len(pieces) >= 5
    for piece in map(yaml.safe_load, pieces):
        if "members" in piece:  # an ensemble
            assert PredictRecipe(**piece["predict"]) and Calibration(**piece["calibration"])
        else:
            recipe_from({"bands": ["red"], **piece}, "docs")


@pytest.mark.parametrize("page", [p for p, text in PAGES.items() if blocks(text, "python")])
def test_every_name_in_the_python_of_a_page_is_public(page):
    scope = {}
    exec("from glacier_fastai.all import *", scope)  # a notebook's first line
    known = {*scope, *dir(builtins), "dls"}
    for block in blocks(PAGES[page], "python"):
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                known.add(node.name)
            elif isinstance(node, (ast.arg, ast.alias)):
                known.add(getattr(node, "arg", None) or node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                known.add(node.id)
        used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        assert used <= known


def test_the_citation_names_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= set(cited)
    assert cited["version"] == glacier_fastai.__version__


# what runs


def run(block, extra):
    """Run the commands of a block as they stand, with further words of some to make them small."""
    for line in lines(block):
        program, command, *words = shlex.split(line)
        assert program == "glacier-fastai"
        app([command, *words, *extra.get(command, [])], standalone_mode=False)


def settings(*more):
    return [word for setting in (*TINY_RUN, *more) for word in ("--set", setting)]


def execute(name, scope, changes):
    """Execute a block of Python in small: each text that is changed must be there."""
    code = marked(name)
    for old, new in changes.items():
        assert old in code, f"{name}: {old}"
        code = code.replace(old, new)
    exec(compile(code, name, "exec"), scope)


def test_every_block_that_is_marked_is_run_below():
    names = re.findall(r"^<!-- tested: (\w+) -->", "\n".join(PAGES.values()), re.MULTILINE)
    assert sorted(names) == sorted(
        [
            "scene",
            "notebook",
            "entry",
            "maps",
            "model",
            "source",
            "learner",
            "block",
            "loss",
            "parts",
            "callback",
            "runs",
        ]
    )


def test_from_a_scene_to_a_map(tmp_path, monkeypatch):
    import geopandas
    import rasterio
    from rasterio.features import shapes

    monkeypatch.chdir(tmp_path)
    write_scene(tmp_path / "other_scene.tif", bands=FOUR, seed=1)
    _, label = write_scene(tmp_path / "scene.tif", bands=FOUR)
    with rasterio.open(label) as file:
        found = shapes(file.read(1), file.read(1) == 1, transform=file.transform)
        features = [{"geometry": geometry, "properties": {}} for geometry, _ in found]
        geopandas.GeoDataFrame.from_features(features, crs=file.crs).to_file("outlines.gpkg")
    run(
        marked("scene"),
        {
            "prepare": ["--tile-size", "32", "--overlap", "16"],
            "finetune": settings("data.folds=3", "predict.views=false"),
        },
    )
    with rasterio.open("maps/other_scene_classes.tif") as made, rasterio.open("other_scene.tif") as scene:
        assert (made.transform, made.shape, made.crs) == (scene.transform, scene.shape, scene.crs)


@pytest.mark.slow
def test_the_commands_of_a_whole_entry(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    competition_folder(tmp_path / "competition", "phase2", ids=[f"{k:03}" for k in range(5)], size=32)
    hkh_folder(tmp_path, scenes=3, size=32)
    small = settings("model.encoder=resnet18")  # a submission carries no other encoder than ResNets
    run(marked("entry"), {"pretrain": small, "finetune": small, "crossval": [*small, "--set", "data.folds=2"]})
    assert Path("submission/model.pth").is_file() and Path("cv.html").is_file()


@pytest.mark.slow
def test_maps_of_an_ensemble(tmp_path, monkeypatch, crossvalidated):
    monkeypatch.chdir(tmp_path)
    Path("cv").symlink_to(crossvalidated[0])
    Path("scenes").mkdir()
    for name in ("other_scene.tif", "scenes/a.tif", "scenes/b.tif"):
        write_scene(tmp_path / name, 64, 48)[1].unlink()
    run(marked("maps"), {"predict": ["--set", "predict.views=false"]})
    made = {p.name for p in Path("maps").iterdir()}
    assert {"other_scene_confidence.tif", "other_scene_outlines.gpkg", "b_outlines_glaciers.parquet"} <= made
    assert "b_probabilities.tif" in made and "a_classes.tif" not in made  # part 2 of 8


def test_the_python_of_readme_and_docs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_store(tmp_path / "tiles", bands=FOUR)
    write_scene(tmp_path / "other_scene.tif", 64, 48, bands=FOUR)
    scope, encoder = {}, f'encoder="{TINY}"'
    execute("notebook", scope, {"(dls, ": f"(dls, {encoder}, ", "crop=128": "crop=32", "fit(20,": "fit(1,"})
    execute("learner", scope, {'encoder="resnet34"': encoder, "crop=128": "crop=32", "fit(20,": "fit(1,"})
    execute("block", scope, {"crop=128": "crop=32"})
    execute("loss", scope, {"(dls, ": f"(dls, {encoder}, "})
    execute("parts", scope, {"(dls, ": f"(dls, {encoder}, "})
    execute("callback", scope, {"(dls, ": f"(dls, {encoder}, "})
    execute("model", scope, {})
    execute("runs", scope, {'["train.steps=200"]': repr([*TINY_RUN, "data.folds=3", "predict.views=false"])})
    assert Path("mine.safetensors").is_file() and Path("small.safetensors").is_file()
    assert Path(scope["files"]["classes"]).is_file()
    execute("source", scope, {"size=128": "size=32"})
    values, classes, _ = made_up(32, 32, bands=FOUR[:3])
    np.savez(tmp_path / "own.npz", image=values, mask=classes)
    scope["npz"].prepare(scope["npz"].find(tmp_path), tmp_path / "own")
    assert len(TileStore(tmp_path / "own")) == 1
