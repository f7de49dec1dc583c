import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from folders import competition_folder, write_one
from hkh_folders import hkh_folder
from scenes import made_up, make_store, write_raster

from glacier_fastai.data.block import GlacierDataLoaders
from glacier_fastai.data.raw import cached_store, open_tiles
from glacier_fastai.data.sources import registry
from glacier_fastai.errors import DataError, DataNote, OutputError


@pytest.fixture
def folder(tmp_path):
    return competition_folder(tmp_path / "comp", "phase2").root


def entries(home):
    return sorted(p.name for p in home.iterdir() if p.is_dir())


def test_a_store_is_opened_as_it_is(store):
    assert open_tiles(store.path).path == store.path
    assert not (store.path.parent / ".glacier_fastai").exists()


def test_a_competition_folder_becomes_a_store_beside_it_and_is_reused(folder, tmp_path, caplog):
    caplog.set_level("INFO")
    store = open_tiles(folder)
    assert store.info["source"] == "competition"
    assert store.path.parent == tmp_path / ".glacier_fastai"
    assert len(caplog.messages) == 1 and str(folder) in caplog.messages[0]
    made = (store.path / "dataset.json").stat().st_mtime_ns
    again = open_tiles(folder)
    assert (again.path, (again.path / "dataset.json").stat().st_mtime_ns) == (store.path, made)
    assert len(caplog.messages) == 1


def test_a_changed_file_makes_a_new_store_and_drops_the_old(folder, tmp_path):
    old = open_tiles(folder)
    write_one(folder / "Band1" / "img001.tif", np.full((32, 32), 77, np.uint16))
    new = open_tiles(folder)
    assert np.unique(new.images[0, 0]).tolist() == [77]
    assert new.path != old.path
    assert old.path.exists(), "it is in use"
    del old
    write_one(folder / "Band1" / "img001.tif", np.full((32, 32), 78, np.uint16))
    newest = open_tiles(folder)
    assert entries(tmp_path / ".glacier_fastai") == sorted([new.path.name, newest.path.name])


def test_a_link_in_place_of_the_cache_is_not_followed(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".glacier_fastai").symlink_to("elsewhere")
    with pytest.warns(DataNote, match="a link, which is not followed; the tile store is kept in"):
        assert open_tiles(folder).path.is_relative_to(tmp_path / "cache")
    assert not entries(tmp_path / "elsewhere")


def test_a_store_is_not_made_where_that_was_not_asked_for(folder, tmp_path):
    with pytest.raises(DataError, match="its tile store is not there; name the folder"):
        open_tiles(folder, make=False)
    assert not (tmp_path / ".glacier_fastai").exists()
    made = open_tiles(folder)
    assert open_tiles(folder, make=False).path == made.path


def test_a_georeference_or_a_mask_beside_a_file_is_part_of_it(folder):
    old = open_tiles(folder)
    sidecar = folder / "Band1" / "img001.tif.aux.xml"
    sidecar.write_text("<PAMDataset><GeoTransform>5e5, 30, 0, 3e6, 0, -30</GeoTransform></PAMDataset>")
    new = open_tiles(folder)
    assert new.path != old.path
    right = np.repeat([[0, 255]], 16, 1).astype("uint8").repeat(32, 0)
    write_raster(folder / "Band1" / "img001.tif.msk", right[None])
    assert open_tiles(folder).path != new.path


@pytest.mark.parametrize("way", ["dot", "link"])
def test_the_old_store_goes_whatever_the_folder_is_called(folder, tmp_path, monkeypatch, way):
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder)
    path = "." if way == "dot" else tmp_path / "link"
    old = open_tiles(path)
    old.path.rename(old.path.with_name(f".{old.path.name}.partial"))  # as a killed process leaves it
    open_tiles(path)
    write_one(folder / "Band1" / "img001.tif", np.full((32, 32), 77, np.uint16))
    new = open_tiles(path)
    assert entries(tmp_path / ".glacier_fastai") == [new.path.name]


def test_a_damaged_or_outdated_store_is_made_again(folder, monkeypatch):
    store = open_tiles(folder)
    (store.path / "masks.npy").write_bytes(b"cut")
    assert open_tiles(folder).masks.shape == (3, 32, 32)
    monkeypatch.setattr("glacier_fastai.data.raw.__version__", "99")
    assert open_tiles(folder).path != store.path


def test_textures_of_a_cached_store_are_kept_next_to_it_and_go_with_it(folder, tmp_path):
    home, bands = tmp_path / ".glacier_fastai", ["red", "glcm_contrast(red)"]
    old = GlacierDataLoaders.from_competition(folder, 0, bands=bands, folds=3, bs=1).store
    assert old.path.parent == home and len(entries(home)) == 2
    write_one(folder / "Band1" / "img001.tif", np.full((32, 32), 76, np.uint16))
    open_tiles(folder)
    assert old.path.exists() and old.base().path.exists(), "in use"
    del old
    gc.collect()
    write_one(folder / "Band1" / "img001.tif", np.full((32, 32), 77, np.uint16))
    new = open_tiles(folder)
    assert entries(home) == [new.path.name]


def test_hkh_is_kept_once_for_each_choice_of_bands(tmp_path):
    hkh_folder(tmp_path / "hkh", size=32)
    a = open_tiles(tmp_path / "hkh", ["red", "thermal"])
    b = open_tiles(tmp_path / "hkh", ["red", "glcm_contrast(nir)"])
    assert (a.bands, b.bands) == (("red", "thermal"), ("red", "nir"))
    assert open_tiles(tmp_path / "hkh", ["red", "thermal"]).path == a.path
    assert len(entries(a.path.parent)) == 2


def test_where_nothing_can_be_written_beside_it_the_users_cache_is_taken(folder, tmp_path, monkeypatch):
    (tmp_path / ".glacier_fastai").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = open_tiles(folder)
    assert store.path.is_relative_to(tmp_path / "cache" / "glacier_fastai")
    assert open_tiles(folder).path == store.path
    dls = GlacierDataLoaders.from_competition(folder, 0, bands=["red", "glcm_contrast(red)"], folds=3, bs=1)
    assert dls.store.path.parent == store.path.parent
    (tmp_path / "blocked").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "blocked"))
    with pytest.raises(OutputError, match="its tile store can be kept neither in .* nor in"):
        open_tiles(folder)


def test_what_is_no_data_is_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"neither a tile store \(dataset.json\) .* competition \(.*Band1.* hkh \(.*slices"
    ):
        open_tiles(tmp_path)
    with pytest.raises(DataError, match="missing: no such folder"):
        open_tiles(tmp_path / "missing")


def test_a_bad_folder_leaves_no_store(folder, tmp_path):
    (folder / "Band3" / "img002.tif").unlink()
    with pytest.raises(DataError, match="Band3: no file of tile 002"):
        open_tiles(folder)
    assert not (tmp_path / ".glacier_fastai").exists()


PLUG_IN = """
import numpy as np
from glacier_fastai.data.sources.registry import Source
from glacier_fastai.data.tiles import TileWriter

def find(path):
    return path if any(path.glob("*.npz")) else None

def files(root):
    return sorted(root.glob("*.npz"))

def prepare(root, out, bands):
    with TileWriter(out, bands, None, "uint16", "of my own") as writer:
        for path in files(root):
            with np.load(path) as tile:
                writer.add(tile["image"][: len(bands)], tile["mask"], scene=path.stem)

{name} = Source("{name}", "NAME.npz", find, files, prepare, lambda bands: {{"bands": bands or ["red", "nir"]}})
"""


@pytest.fixture
def plug_ins(tmp_path, monkeypatch):
    """Install packages: `plug_ins(name=(entry point, source code))` puts modules and their dist-info on sys.path."""

    installed = []

    def install(**packages):
        installed.extend(packages)
        site = tmp_path / "site"
        site.mkdir()
        for name, (points, code) in packages.items():
            info = site / f"{name}-1.0.dist-info"
            info.mkdir()
            (site / f"{name}.py").write_text(code)
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            (info / "entry_points.txt").write_text(f"[glacier_fastai.sources]\n{points}\n")
        monkeypatch.syspath_prepend(site)
        registry._plug_ins.cache_clear()

    yield install
    registry._plug_ins.cache_clear()
    for name in installed:
        sys.modules.pop(name, None)


@pytest.fixture
def npz(tmp_path):
    """A folder of two tiles that no built-in source knows."""
    folder = tmp_path / "npz"
    folder.mkdir()
    for k in range(2):
        values, classes, _ = made_up(32, 32, seed=k)
        np.savez(folder / f"t{k}.npz", image=values, mask=classes)
    return folder


def test_a_source_of_an_installed_package_opens_its_folders(plug_ins, npz):
    plug_ins(own_tiles=("npz = own_tiles:npz", PLUG_IN.format(name="npz")))
    store = open_tiles(npz)
    assert (store.info["source"], store.bands, store.table["scene"].tolist()) == (
        "of my own",
        ("red", "nir"),
        ["t0", "t1"],
    )
    assert open_tiles(npz).path == store.path
    assert open_tiles(npz, ["blue", "green", "red"]).bands == ("blue", "green", "red")
    dls = GlacierDataLoaders.from_store(npz, 0, 1, folds=2)
    assert dls.store.path == store.path
    (npz / "t1.npz").unlink()
    assert len(open_tiles(npz)) == 1


BROKEN = {
    "raises": ("bad = bad_tiles:thing", "import no_such_module", r"No module named 'no_such_module'"),
    "nonsense": ("bad = bad_tiles:thing", "def thing(", "SyntaxError"),
    "absent": ("bad = bad_tiles:thing", "", "AttributeError"),
    "other": ("bad = bad_tiles:thing", "thing = 3", "it is a int, not a .*Source"),
    "taken": ("bad = bad_tiles:hkh", PLUG_IN.format(name="hkh"), "the name 'hkh' is taken"),
    "twice": ("bad = bad_tiles:npz\nworse = bad_tiles:npz", PLUG_IN.format(name="npz"), "the name 'npz' is taken"),
}


@pytest.mark.parametrize(("point", "code", "why"), BROKEN.values(), ids=BROKEN)
def test_a_plug_in_that_cannot_be_used_is_named_and_the_rest_works(plug_ins, npz, tmp_path, caplog, point, code, why):
    good = ("zzz = own_tiles:good", PLUG_IN.format(name="good"))
    plug_ins(bad_tiles=(point, code), own_tiles=good)
    assert len(open_tiles(npz)) == 2
    assert len(open_tiles(npz)) == 2
    said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(said) == 1 and "\n" not in said[0]
    line = (
        rf"source '(bad|worse)': its plug-in bad_tiles:\w+ of bad_tiles cannot be used \(.*{why}.*\); mend or uninstall"
    )
    assert re.match(line, said[0])
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        DataError, match=r"neither a tile store .*competition \(.*hkh \(.*good \(NAME.npz\).*of plug-ins cannot be used"
    ) as err:
        open_tiles(tmp_path / "empty")
    assert "\n" not in str(err.value)


def test_built_in_sources_do_not_wait_for_plug_ins(plug_ins, folder, caplog):
    plug_ins(bad_tiles=("bad = bad_tiles:thing", "raise SystemError"))
    assert len(open_tiles(folder)) == 3
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import numpy as np
from scenes import BANDS, made_up
from glacier_fastai.data.block import GlacierDataLoaders
from glacier_fastai.data.raw import cached_store
from glacier_fastai.data.tiles import TileWriter
def build(out):
    with TileWriter(out, BANDS, 32, "uint16", "test") as writer:
        for i in range(1000):
            writer.add(*made_up(32, 32)[:2], scene=f"s{{i}}")
            print("tile", flush=True)
            time.sleep(0.05)
cached_store(Path({path!r}), "key", build)
"""


@pytest.mark.slow
def test_a_build_killed_at_any_moment_starts_over(tmp_path):
    code = KILLED.format(tests=os.path.dirname(os.path.dirname(__file__)), path=str(tmp_path / "data"))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline()  # the first tile is being written
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    home = tmp_path / ".glacier_fastai"
    assert entries(home) == [".data-key.partial"]
    store = cached_store(tmp_path / "data", "key", lambda out: make_store(out))
    assert len(store) == 12
    assert entries(home) == ["data-key"]


def test_two_at_once_build_once(tmp_path):
    built, stores = [], []

    def build(out):
        built.append(out)
        time.sleep(0.3)
        make_store(out)

    def ask():
        stores.append(cached_store(tmp_path / "data", "key", build).path)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert len(set(stores)) == 1 and len(stores) == 3
    assert [p.name for p in (tmp_path / ".glacier_fastai").iterdir()] == ["data-key"]
