"""What every network does: a class that the tests of each inherit, on the encoder with which smp tests itself."""

import json

import pandas as pd
import pytest
import torch
from fastai.callback.progress import ProgressCallback
from two_ranks import outputs_square, trains_in_two_processes

from glacier_fastai.bands import CLASSES
from glacier_fastai.data.block import GlacierDataLoaders
from glacier_fastai.errors import BundleError
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.evaluate import evaluate
from glacier_fastai.model.registry import architecture, build_model, groups
from glacier_fastai.train.learner import glacier_learner

BANDS = ("blue", "green", "red", "swir1", "thermal")


def run_without_epochs(path, store):
    """Check the folder of a run that is fitted without gradients; return its bundle and what is on record of it."""
    assert {p.name for p in path.rglob("*") if p.is_file()} == {
        *("recipe.yaml", "environment.json", "folds.csv", "history.csv", "events.jsonl", "best.safetensors"),
        *("best.stac.json", "MODEL_CARD.md", "metrics.json", "batch.png", "results.png"),
    }
    bundle, record = ModelBundle.load(path / "best.safetensors"), json.loads((path / "metrics.json").read_text())
    valid = pd.read_csv(path / "folds.csv").query("part == 'valid'").index
    assert {"epoch": None, **evaluate(bundle, store, valid), "notes": []} == record
    return bundle, record


class ModelContract:
    """Set `name`, and `options` that make it small; `adapts` says whether it takes weights of other bands."""

    name: str
    options: dict = {}
    bands: tuple = BANDS
    adapts = True

    def model(self, bands=None, classes=CLASSES):
        torch.manual_seed(0)
        return build_model(self.name, bands or self.bands, classes, **self.options)

    @pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96), (33, 70), (1, 50)])
    def test_logits_of_images_of_any_size(self, height, width):
        x = torch.randn(2, len(self.bands), height, width)
        assert self.model().eval()(x).shape == (2, len(CLASSES), height, width)

    @pytest.mark.parametrize(("bands", "classes"), [(("red",), CLASSES), (BANDS[:4], ("rock", "ice"))])
    def test_any_number_of_bands_and_classes(self, bands, classes):
        x = torch.randn(2, len(bands), 32, 64)
        assert self.model(bands, classes).eval()(x).shape == (2, len(classes), 32, 64)

    def test_every_parameter_gets_a_gradient(self):
        model = self.model()
        outputs_square(model, torch.randn(2, len(self.bands), 64, 64)).backward()
        assert [n for n, p in model.named_parameters() if p.grad is None] == []

    def test_the_groups_hold_every_parameter_once(self):
        model = self.model()
        held = [id(p) for group in groups(model) for p in group]
        assert sorted(held) == sorted(id(p) for p in model.parameters())

    def test_it_remembers_how_it_was_built(self):
        model = self.model()
        assert model.built_as == (self.name, architecture(self.name, self.options)[1])

    def test_a_bundle_gives_the_same_probabilities(self, store, tmp_path):
        learn = self.learner(store)
        ModelBundle.from_learner(learn).save(tmp_path / "m.safetensors", half=False)
        other, x = ModelBundle.load(tmp_path / "m.safetensors").model(), torch.randn(1, len(self.bands), 40, 50)
        with torch.no_grad():
            torch.testing.assert_close(other(x), learn.model.cpu().eval()(x), rtol=1e-4, atol=1e-5)

    def learner(self, store):
        dls = GlacierDataLoaders.from_store(store, 0, bs=4, folds=3, bands=self.bands)
        return glacier_learner(dls, self.name, seed=0, **self.options)

    def test_it_starts_from_weights_of_other_bands_or_refuses(self, store):
        bundle, model = ModelBundle.from_learner(self.learner(store)), self.model(("thermal", "nir"))
        if not self.adapts:
            with pytest.raises(BundleError, match=f"{self.name}.*own bands.*blue"):
                bundle.load_into(model, ("thermal", "nir"))
            return
        assert "thermal kept; nir start from the mean" in bundle.load_into(model, ("thermal", "nir"))[0]
        first = architecture(self.name)[0].first(model)
        assert torch.equal(model.state_dict()[first][:, 0], bundle.weights[first][:, 4])

    def test_it_trains_frozen_and_thawed(self, store):
        learn = self.learner(store)
        learn.remove_cbs(ProgressCallback)
        if len(groups(learn.model)) > 1:
            learn.freeze()
            frozen = [p.requires_grad for p in groups(learn.model)[0]]
            learn.unfreeze()
            assert not all(frozen)
        before = [p.clone() for p in learn.model.parameters()]
        with learn.no_logging():
            learn.fit(1, 1e-3)
        moved = [not torch.equal(a, b) for a, b in zip(before, learn.model.cpu().parameters(), strict=True)]
        assert sum(moved) > 0.8 * len(moved)

    def test_no_parameter_is_unused_in_two_processes(self, tmp_path):
        assert trains_in_two_processes(self.name, self.options, self.bands, tmp_path)

    def test_torch_exports_it(self):
        model, x = self.model().eval(), torch.randn(2, len(self.bands), 64, 64)
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-4)
