import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml
from folders import competition_folder
from hkh_folders import hkh_folder

from glacier_fastai.cli import app
from glacier_fastai.recipe import recipe_from

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line[line.index("glacier-fastai") :].split(" > ")[0]
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.replace("\\\n", "").splitlines()
    if "glacier-fastai " in line
]


def test_the_readme_has_the_two_commands_and_ci_runs_the_second():
    assert "\npip install . && glacier-fastai demo\n" in README
    assert "\npip install '.[test]' && pytest\n" in README
    assert "README.md" in (ROOT / ".ci" / "run").read_text()
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_in_the_readme_exists_with_its_options(command):
    _, *words = shlex.split(command)
    node = typer.main.get_command(app)
    while words and words[0] in getattr(node, "commands", {}):
        node = node.commands[words.pop(0)]
    context = node.make_context(command, words, resilient_parsing=False)
    assert context.params


def test_the_commands_of_a_whole_entry_run(tmp_path, monkeypatch):
    """On made-up folders and with less of everything, but as they stand, one after the other."""
    competition_folder(tmp_path / "competition", "phase2", ids=[f"{k:03}" for k in range(5)], size=64)
    hkh_folder(tmp_path, scenes=3, size=64)
    block = next(b for b in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) if "submit cv" in b)
    small = ["data.tile_size=64", "data.crop=32", "data.crops_per_tile=1", "train.epochs=1", "train.batch_size=2"]
    small += ["model.encoder=resnet18", "train.precision=fp32", "augment=[]", "balance=null", "train.accumulate=1"]
    monkeypatch.chdir(tmp_path)
    for line in block.splitlines():
        _, command, *words = shlex.split(line)
        if command in ("pretrain", "finetune", "crossval"):
            words += [w for setting in small for w in ("--set", setting)]
        app([command, *words], standalone_mode=False)
    assert (tmp_path / "submission" / "model.pth").is_file() and (tmp_path / "cv.html").is_file()


def test_every_name_in_the_readmes_notebook_is_public():
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    scope = {}
    exec("from glacier_fastai.all import *", scope)  # a notebook's first line
    names = set(re.findall(r"\b([A-Z]\w+|glacier_learner)\b", re.sub(r"#.*", "", code)))
    assert {"GlacierDataLoaders", "CombinedLoss", "ModelBundle"} <= names
    assert names <= set(scope)


def test_every_piece_of_a_recipe_in_the_readme_is_valid():
    pieces = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    pieces += re.findall(r"`(augment: \w+)`", README)
    pieces += [f"augment: {text}" for text in re.findall(r"`(\[flip, .*?\])`", README)]
    assert len(pieces) >= 3
    for piece in pieces:
        recipe_from({"bands": ["red"], **yaml.safe_load(piece)}, "README.md")
