"""What every reader of products does: a class that the tests of each inherit."""

import numpy as np
import pytest
from scenes import CRS

from glacier_fastai.bands import natural_unit
from glacier_fastai.data.scenes.opening import open_scene, scene_name
from glacier_fastai.data.scenes.raster import same_crs
from glacier_fastai.errors import DataError


class ProductContract:
    """Give `write`, which writes a product into a folder and tells what is in it, as `products.Made`."""

    flags: dict = {}
    """Kind -> where it is, of the numbers of the flags: a function of `Made.codes`."""
    crs = CRS

    def write(self, folder):
        raise NotImplementedError

    @pytest.fixture
    def made(self, tmp_path):
        return self.write(tmp_path / "product")

    def on_its_grid(self, made, band):
        """Open one band with nothing masked but fill."""
        return open_scene(made.path, [band], keep=[kind for kind in self.flags if kind != "fill"])

    def test_bands_units_date_and_sensor(self, made):
        with open_scene(made.path) as scene:
            assert {*scene.bands} == {*made.values}
            assert [how.unit for how in scene.scaling] == [natural_unit(band) for band in scene.bands]
            assert (scene.date, scene.sensor) == (made.date, made.sensor)
            assert same_crs(scene.crs, self.crs)
            assert scene.look() == scene.notes == []
            assert (scene.height, scene.width) == max(values.shape for values in made.values.values())

    def test_values(self, made):
        for band, want in made.values.items():
            with self.on_its_grid(made, band) as scene:
                numbers, valid = scene.read_window([0], 0, 0, scene.height, scene.width)
                got = np.where(valid, scene.in_units(numbers, [0])[0], np.nan)
            np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6, err_msg=band)

    def test_flags_are_the_bits_decoded_by_hand(self, made):
        with open_scene(made.path) as scene:
            found = scene.masked(0, 0, scene.height, scene.width)
            want = {kind: where(made.codes) for kind, where in self.flags.items()}
            k = {kind: scene.height // flag.shape[0] for kind, flag in want.items()}
            want = {kind: np.kron(flag, np.ones((k[kind],) * 2, bool)) for kind, flag in want.items()}
            for kind, flag in found.items():
                np.testing.assert_array_equal(flag, want.get(kind, False), err_msg=kind)
            assert {kind for kind, flag in found.items() if flag.any()} == {*want}
            valid = scene.read_window(range(len(scene.bands)), 0, 0, scene.height, scene.width)[1]
            assert not (valid & np.logical_or.reduce([*want.values(), np.zeros(valid.shape, bool)])).any()
            assert valid.any()

    def test_windows_agree_with_the_whole(self, made):
        with open_scene(made.path, resolution=45) as scene:
            every = range(len(scene.bands))
            whole, valid = scene.read_window(every, 0, 0, scene.height, scene.width)
            part, known = scene.read_window(every, 5, 3, 11, 9)
        np.testing.assert_allclose(part[:, known], whole[:, 5:16, 3:12][:, known], rtol=1e-4)
        np.testing.assert_array_equal(known, valid[5:16, 3:12])

    def test_only_the_bands_wanted_are_opened(self, made):
        others = {made.files[band] for band in made.files} - {made.files["green"]}
        for file in others:
            file.unlink()
        with open_scene(made.path, ["green"]) as scene:
            assert scene.bands == ("green",)

    def test_a_band_that_is_not_there(self, made):
        made.files["red"].unlink()
        with pytest.raises(DataError, match=r"product.*no .*red|red.*not there|lacks|no band"):
            self.refused(made, ["red"])

    def refused(self, made, bands):
        with open_scene(made.path, bands) as scene:
            if "red" not in scene.bands:
                raise DataError(f"{made.path}: no band red")

    @pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
    def test_a_file_cut_short(self, made, share):
        file = made.files["red"]
        file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share) - 20 * (share == 1)])
        with pytest.raises(DataError, match=file.name), open_scene(made.path, ["red"]) as scene:
            scene.read_window([0], 0, 0, scene.height, scene.width)

    def test_the_metadata_name_it(self, made):
        if made.metadata is None:
            pytest.skip("it has no metadata of its own")
        with open_scene(made.path, ["red"]) as scene, open_scene(made.metadata, ["red"]) as same:
            size = 0, 0, scene.height, scene.width
            np.testing.assert_array_equal(scene.read_window([0], *size)[0], same.read_window([0], *size)[0])
        assert scene_name(made.metadata)
