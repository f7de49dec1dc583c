import json
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import pytest
import rasterio
from glacier_maps import RECORD, TWO, ground, inventory, tabled, write_map
from polygons import rectangle
from typer.testing import CliRunner

from glacier_fastai.cli import app
from glacier_fastai.errors import DataError, DataNote, OutputError
from glacier_fastai.predict.change import change, compared

LATER = {**RECORD, "date": "2022-08-01", "sensor": "landsat8"}


def retreated():
    """The second of two glaciers loses its lowest 4 rows (80 pixels) and gains 20 pixels at its side."""
    classes = ground()
    classes[26:30, 30:50] = 0
    classes[10:20, 50:52] = 1
    return classes


@pytest.fixture
def two(tmp_path):
    """Tables of two dates, and the inventory."""
    rgi = inventory(tmp_path / "rgi.gpkg", area_km2=[0.36, 0.36], rgi_id=["A", "B"])
    first = tabled(write_map(tmp_path / "a", ground()), rgi)[2]
    second = tabled(write_map(tmp_path / "b", retreated(), stem="t", record=LATER), rgi)[2]
    return first["files"], second["files"], rgi


def run(*args, **kwargs):
    with np.errstate(all="raise"), pytest.warns(DataNote) if kwargs.pop("said", False) else np.errstate():
        return change(*args, **kwargs)


def test_change_of_each_glacier_and_in_all(two, tmp_path):
    first, second, _ = two
    made = run(first["glaciers.gpkg"], second["glaciers.gpkg"], tmp_path / "out")
    table = pd.read_csv(made["files"]["change csv"], keep_default_na=False, na_values=[""])
    assert table["id"].tolist() == ["A", "B"]  # new ice has no id
    pixel, years = 9e-4 / 0.9996**2, made["years"]
    np.testing.assert_allclose(table["change_km2"], [0, -60 * pixel], atol=1e-7, rtol=1e-4)
    assert years == pytest.approx(2, abs=0.002)
    np.testing.assert_allclose(table["rate_km2"], table["change_km2"] / years, rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(table["change_percent"], [0, -15], atol=1e-4)
    margins = [pd.read_csv(f["glaciers.csv"])["buffer_km2"].to_numpy()[:2] for f in (first, second)]
    np.testing.assert_allclose(table["high_km2"] - table["change_km2"], np.hypot(*margins), rtol=1e-3)
    assert table["interval"].tolist() == ["buffer", "buffer"]
    assert table["beyond_noise"].tolist() == [False, bool(60 * pixel > np.hypot(*margins)[1])]
    sizes = pd.read_csv(made["files"]["sizes csv"])
    assert sizes["size"].tolist() == ["< 0.01", "0.01-0.1", "0.1-0.5", "0.5-1", "1-5", "5-10", "> 10", "all"]
    assert sizes["glaciers"].tolist() == [0, 0, 2, 0, 0, 0, 0, 2]
    total = made["total"]
    assert total["change_km2"] == pytest.approx(table["change_km2"].sum())
    assert total["change_km2"] - total["low_km2"] == pytest.approx((table["change_km2"] - table["low_km2"]).sum())
    moved = geopandas.read_file(made["files"]["change gpkg"], layer="loss_gain")
    assert dict(zip(moved["kind"], moved.area / 900, strict=True)) == {"loss": 80, "gain": 20}
    assert (moved["id"] == "B").all() and moved.crs == "EPSG:32645"
    assert json.loads((tmp_path / "out" / "s_to_t_change.json").read_text())["compared"] == 2
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        p.rsplit("/")[-1] for p in made["files"].values()
    )
    with pytest.raises(OutputError, match="exists already; overwrite it"):
        run(first["glaciers.gpkg"], second["glaciers.gpkg"], tmp_path / "out")
    run(first["glaciers.csv"], second["glaciers.csv"], tmp_path / "out", overwrite=True, said=True)
    assert not (tmp_path / "out" / "s_to_t_change.gpkg").exists()
    (tmp_path / "out" / "s_to_t_change.gpkg").mkdir()
    with pytest.raises(OutputError, match=r"s_to_t_change\.gpkg: stands in the way and is no file"):
        run(first["glaciers.gpkg"], second["glaciers.gpkg"], tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "s_to_t_change.csv").exists()


@pytest.mark.parametrize(
    ("column", "value", "what"),
    [("area_km2", v, "area in km2") for v in ("0,27", "0.27 km2", "inf", "1e308", "-5")]
    + [("share_seen", v, "share from 0 to 1") for v in ("7", "all")]
    + [("buffer_km2", "-1", "area in km2")],
)
def test_what_is_no_number_in_a_table_is_refused_and_not_left_out(two, tmp_path, column, value, what):
    first, second, _ = two
    table = pd.read_csv(second["glaciers.csv"], dtype=str, keep_default_na=False)
    table.loc[1, column] = value
    table.to_csv(second["glaciers.csv"], index=False)
    with pytest.raises(DataError, match=rf"t_glaciers\.csv: column {column} holds '{value}', which is no {what}; mend"):
        change(first["glaciers.csv"], second["glaciers.csv"], tmp_path / "out")


def test_an_interval_that_ends_before_it_begins_is_refused(two, tmp_path):
    first, second, _ = two
    table = pd.read_csv(second["glaciers.csv"])
    table.loc[1, ["area_low_km2", "area_high_km2"]] = [0.9, 0.1]
    table.to_csv(second["glaciers.csv"], index=False)
    message = rf"t_glaciers\.csv: area_low_km2 is above area_high_km2 in 1 rows, first '{table['id'][1]}'; mend them"
    with pytest.raises(DataError, match=message):
        change(first["glaciers.csv"], second["glaciers.csv"], tmp_path / "out")


def test_a_cell_that_says_there_is_no_value_is_left_out(two, tmp_path):
    first, second, _ = two
    table = pd.read_csv(second["glaciers.csv"], dtype=str, keep_default_na=False)
    table.loc[0, ["area_km2", "area_low_km2"]] = ["NA", " "]
    table.to_csv(second["glaciers.csv"], index=False)
    made = run(first["glaciers.csv"], second["glaciers.csv"], tmp_path / "out", said=True)
    assert made["glaciers"] == 2 and made["compared"] == 1


@pytest.mark.parametrize("kind", ["csv", "gpkg"])
def test_a_table_that_was_changed_is_said(two, tmp_path, kind):
    first, second, _ = two
    path = Path(second[f"glaciers.{kind}"])
    if kind == "csv":
        table = pd.read_csv(path)
        table.loc[1, "area_km2"] = 100
        table.to_csv(path, index=False)
    else:
        table = geopandas.read_file(path, layer="glaciers")
        table.loc[1, "area_km2"] = 100
        table.to_file(path, layer="glaciers")
    with pytest.warns(DataNote) as said:
        change(first[f"glaciers.{kind}"], path, tmp_path / "out")
    assert f"{path}: is not as t_glaciers.json says; it was changed since it was made" in [str(n.message) for n in said]


def test_an_interval_that_lacks_a_number_is_refused(two, tmp_path):
    first, second, _ = two
    table = pd.read_csv(second["glaciers.csv"])
    for column, more in (("buffer_km2", {}), ("inventory_km2", {"share_seen": 0.96})):
        table.assign(**{column: np.nan, **more}).to_csv(second["glaciers.csv"], index=False)
        with pytest.raises(DataError, match=rf"t_glaciers\.csv: {column} is empty in 2 rows, first 'A'; mend them"):
            change(first["glaciers.csv"], second["glaciers.csv"], tmp_path / "out")


def test_maps_with_an_inventory_and_tables_as_csv_give_the_same(two, tmp_path):
    first, second, rgi = two
    want = run(first["glaciers.gpkg"], second["glaciers.gpkg"], tmp_path / "1")["total"]
    maps = [tmp_path / "a" / "s_classes.tif", tmp_path / "b" / "t_classes.tif"]
    assert run(*maps, tmp_path / "2", inventory=rgi, said=True)["total"] == want
    csv = run(first["glaciers.csv"], second["glaciers.csv"], tmp_path / "3", said=True)
    assert csv["total"] == pytest.approx(want, nan_ok=True) and "change gpkg" not in csv["files"]
    with pytest.raises(DataError, match=r"s_classes\.tif: a map; give the inventory"):
        run(*maps, tmp_path / "4")
    assert not (tmp_path / "4").exists()


def test_the_later_table_may_come_first(two, tmp_path):
    first, second, _ = two
    with pytest.warns(DataNote, match="is of a later date than .* change places"):
        made = run(second["glaciers.gpkg"], first["glaciers.gpkg"], tmp_path / "out")
    assert made["first"]["date"] == "2020-08-01" and made["total"]["change_km2"] < 0


def row(**values):
    about = {"id": "A", "name": "", "inventory_km2": 1.0, "share_seen": 1.0, "buffer_km2": 0.1, "area_km2": 1.0}
    return pd.DataFrame([{**about, "area_low_km2": np.nan, "area_high_km2": np.nan, **values}])


def test_intervals():
    calibrated = {"area_low_km2": 0.97, "area_high_km2": 1.04}
    (found,) = compared(row(**calibrated), row(**calibrated), 1).to_dict("records")
    assert found["interval"] == "calibrated" and found["high_km2"] == pytest.approx(0.05) == -found["low_km2"]
    (found,) = compared(row(**calibrated), row(), 1).to_dict("records")  # one kind for both
    assert found["interval"] == "buffer" and found["high_km2"] == pytest.approx(0.02**0.5)
    (found,) = compared(row(), row(share_seen=0.96), 1).to_dict("records")  # ice may be where nothing was seen
    assert found["high_km2"] == pytest.approx(np.hypot(0.1, 0.14)) and found["low_km2"] == pytest.approx(-(0.02**0.5))
    (found,) = compared(row(), row(share_seen=0.9), 1).to_dict("records")
    assert np.isnan(found["change_km2"]) and not found["beyond_noise"] and "not seen enough" in found["remarks"]
    (found,) = compared(row(area_km2=0.0), row(), 2).to_dict("records")
    assert found["rate_km2"] == 0.5 and np.isnan(found["change_percent"])
    both = compared(row(), row(id="B"), 1)
    assert both["id"].tolist() == ["A", "B"] and both["change_km2"].isna().all()


def test_what_cannot_be_compared_fairly_is_refused(two, tmp_path):
    first, second, rgi = two

    def refused(message, a, b, **options):
        with pytest.raises(DataError, match=message) as err:
            run(a, b, tmp_path / "out", **options)
        assert "\n" not in str(err.value) and not (tmp_path / "out").exists()

    a = first["glaciers.gpkg"]
    refused("both are of 2020-08-01; give two dates", a, first["glaciers.csv"])
    refused("s_glaciers.gpkg: is compared with itself", a, a)
    refused("a table, in which inventory and buffer stand already", a, second["glaciers.gpkg"], inventory=rgi)
    refused("a table of 2020-08-01, not of 1900-01-01", a, second["glaciers.gpkg"], dates=("1900-01-01", "1910-01-01"))

    def other(name, classes=None, grid=None, **record):
        where = {} if grid is None else {"grid": grid}
        path = write_map(tmp_path / name, ground() if classes is None else classes, record={**LATER, **record}, **where)
        return path

    unknown = tabled(other("unknown", date=""), rgi)[2]["files"]["glaciers.gpkg"]
    refused("the date of its scene is not known, so there is no rate", a, unknown)
    model = tabled(other("model", predict={"views": True}), rgi)[2]["files"]["glaciers.gpkg"]
    refused("mapped by different models, whose errors differ, so a change of area", a, model)
    wide = tabled(tmp_path / "b" / "t_classes.tif", rgi, buffer=90, out=tmp_path / "wide")[2]["files"]["glaciers.gpkg"]
    refused(r"their buffers are 60\S* and 90 m", a, wide)
    fine = rasterio.Affine(15, 0, 500_000, 0, -15, 3_100_000)
    double = ground().repeat(2, 0).repeat(2, 1)
    fine = tabled(other("fine", double, fine), rgi)[2]["files"]["glaciers.gpkg"]
    refused(r"their pixel sizes are 30\S* and 15\S* m", a, fine)
    edited = inventory(tmp_path / "edited.gpkg", [TWO[0], rectangle(10, 30, 20, 19)], rgi_id=["A", "B"])
    edited = tabled(other("edited"), edited)[2]["files"]["glaciers.gpkg"]
    refused(r"different inventories \(rgi\.gpkg, edited\.gpkg\)", a, edited)
    lost = geopandas.read_file(a, layer="glaciers").drop(columns=["share_seen", "date"])
    lost.to_file(tmp_path / "lost.gpkg")
    refused(r"lost\.gpkg: no column date, share_seen; give SCENE_glaciers\.gpkg", a, tmp_path / "lost.gpkg")
    twice = pd.concat([geopandas.read_file(a, layer="glaciers")] * 2)
    twice.to_file(tmp_path / "twice.gpkg")
    refused(r"twice\.gpkg: A occurs twice", tmp_path / "twice.gpkg", second["glaciers.gpkg"])
    with pytest.warns(DataNote, match="different models, whose errors differ; they were compared all the same"):
        made = run(a, model, tmp_path / "forced", force=True)
    assert "different models" in "".join(made["notes"])


def test_what_was_seen_in_part_has_no_polygons_of_loss(two, tmp_path):
    first, _, rgi = two
    cloudy = retreated()
    cloudy[10:12, 30:35] = 255
    second = tabled(write_map(tmp_path / "c", cloudy, record=LATER), rgi)[2]["files"]
    with pytest.warns(DataNote, match="1 glaciers were seen in part, so their loss and gain are not drawn"):
        made = run(first["glaciers.gpkg"], second["glaciers.gpkg"], tmp_path / "out")
    assert len(geopandas.read_file(made["files"]["change gpkg"], layer="loss_gain")) == 0 and made["compared"] == 2


def test_the_command(two, tmp_path):
    first, second, _ = two
    asked = ["change", first["glaciers.gpkg"], second["glaciers.gpkg"], "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0 and len(done.stdout.splitlines()) == 5
    assert "2020-08-01 to 2022-08-01: 0.721 to 0.667 km2, -0.054" in done.stderr
    assert "2 of 2 glaciers seen enough" in done.stderr
    assert json.loads(CliRunner().invoke(app, [*asked, "--overwrite", "--json"]).stdout)["compared"] == 2
