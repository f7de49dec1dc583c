import pickle
import shutil
import warnings
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.progress import ProgressCallback
from fastai.callback.schedule import fine_tune, lr_find  # noqa: F401  patches Learner
from fastai.callback.tracker import ReduceLROnPlateau
from fastai.callback.training import ShortEpochCallback
from fastai.interpret import SegmentationInterpretation
from fastai.learner import load_learner
from fastai.losses import CrossEntropyLossFlat, DiceLoss, FocalLossFlat
from fastai.metrics import foreground_acc
from learners import Small
from scenes import TINY, make_store

from glacier_fastai.core.dihedral import VIEWS, undo_view, view
from glacier_fastai.core.losses import CombinedLoss, dice_loss
from glacier_fastai.data.block import GlacierDataLoaders
from glacier_fastai.data.types import TensorGlacierMask, TensorMultispectral
from glacier_fastai.errors import BundleError, DataError, DataNote, TrainingError
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.plots.panels import class_rgba, error_rgba
from glacier_fastai.train.callbacks import ProgressiveRampCallback
from glacier_fastai.train.learner import glacier_learner
from glacier_fastai.train.metrics import glacier_metrics


@pytest.fixture
def dls(tmp_path):
    return GlacierDataLoaders.from_store(make_store(tmp_path / "s"), 0, bs=4, folds=3)


@pytest.fixture
def learn(dls, tmp_path):
    return quiet(glacier_learner(dls, encoder=TINY, seed=0, path=tmp_path))


def quiet(learn):
    learn.remove_cbs(ProgressCallback)
    learn.logger = lambda row: None
    return learn


def row(learn, epoch=-1):
    return dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[epoch], strict=False))


def test_it_learns_a_simple_landscape(learn):
    learn.fit(25, 2e-3)
    assert row(learn)["train_mcc"] > 0.9
    assert row(learn)["train_loss"] < 0.5 * row(learn, 0)["train_loss"]


def test_a_single_callback_may_be_given_and_short_epochs_differ(dls):
    class Note(Callback):
        seen = []

        def before_batch(self):
            if self.training:
                self.seen.append(self.xb[0].clone())

    learn = glacier_learner(dls, encoder=TINY, cbs=ShortEpochCallback(0.5))  # cancels at the second batch
    learn.logger = lambda row: None
    learn.remove_cbs(ProgressCallback)
    learn.fit(3, 1e-3, cbs=Note())
    assert len(Note.seen) == 3 * 2
    assert not torch.equal(Note.seen[0], Note.seen[2])


def test_the_face_of_the_design_runs_as_written(dls, tmp_path):
    from glacier_fastai.all import ReduceLROnPlateau  # as in DESIGN.md, section 3

    learn = glacier_learner(dls, encoder=TINY, loss_func=CombinedLoss.phase_b())
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-4, cbs=[ReduceLROnPlateau("mcc", patience=8, factor=2)])
        learn.show_results()
    assert plt.get_fignums()


def test_predict_takes_a_tile_or_an_image_and_keeps_its_types(learn):
    i = int(learn.dls.valid_tiles[0])
    mask, codes, probs = learn.predict(i)
    assert type(mask) is TensorGlacierMask
    assert (mask.shape, codes.shape, probs.shape) == ((32, 32), (32, 32), (4, 32, 32))
    torch.testing.assert_close(probs.sum(0), torch.ones(32, 32))
    assert torch.equal(probs.argmax(0), codes)
    image = TensorMultispectral(torch.from_numpy(learn.dls.store.read(i)))
    other = learn.predict(image)
    assert type(other[0]) is TensorGlacierMask
    torch.testing.assert_close(other[2], probs)


def test_get_preds_gives_probabilities_and_classes(learn):
    probs, targets, classes = learn.get_preds(with_decoded=True)
    assert (probs.shape, targets.shape, classes.shape) == ((4, 4, 32, 32), (4, 32, 32), (4, 32, 32))
    torch.testing.assert_close(probs.sum(1), torch.ones(4, 32, 32))
    assert torch.equal(torch.as_tensor(probs).argmax(1), torch.as_tensor(classes))
    losses = learn.get_preds(with_loss=True)[2]
    assert losses.shape == (4,)
    inputs = learn.get_preds(with_input=True)[0]
    assert isinstance(inputs, TensorMultispectral)


@pytest.mark.parametrize("loss", [None, CrossEntropyLossFlat(axis=1, ignore_index=255)])
def test_a_learner_that_tells_no_debris_predicts_what_its_maps_show(dls, loss):
    learn = quiet(glacier_learner(dls, Small(), loss_func=loss, seed=0))
    before = torch.as_tensor(learn.get_preds()[0])
    learn.tells_debris = False
    probs, _, classes = (torch.as_tensor(t) for t in learn.get_preds(with_decoded=True))
    torch.testing.assert_close(probs[:, 1], before[:, 1] + before[:, 2])
    assert (before.argmax(1) == 2).any() and not probs[:, 2].any()
    assert torch.equal(classes, probs.argmax(1)) and not (learn.predict(0)[0] == 2).any()
    torch.testing.assert_close(torch.as_tensor(learn.tta()[0])[:, 2], torch.zeros_like(probs[:, 2]))


def test_show_results_shows_truth_prediction_and_errors(learn):
    learn.show_results(max_n=2)
    fig = plt.gcf()
    panels = [ax for ax in fig.axes if ax.images]
    assert len(panels) == 8
    image, target, prediction, errors = (ax.images[0].get_array() for ax in panels[:4])
    i = int(learn.dls.valid_tiles[0])
    pred, truth = learn.get_preds(with_decoded=True)[2][0].numpy(), learn.dls.store.masks[i]
    assert (target == class_rgba(truth)).all()
    shown = truth != 255
    assert (prediction[shown] == class_rgba(pred)[shown]).all()
    assert (errors == error_rgba(pred, truth)).all()
    titles = [ax.get_title() for ax in panels[:4]]
    assert titles[:3] == ["snow and ice (no nir)", "truth", "prediction"]
    assert titles[3] == f"errors, {(pred != truth)[shown].mean():.1%} of labelled"


def test_lr_find_leaves_no_trace(learn):
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    assert learn.lr_find(num_it=8, show_plot=False).valley > 0
    after = learn.model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_the_plateau_works_after_lr_find_and_after_load(learn):
    learn.lr_find(num_it=4, show_plot=False)
    learn.save("weights")
    learn.load("weights")
    learn.fit(3, 1e-3, cbs=ReduceLROnPlateau("mcc", patience=1, factor=10, min_delta=10))
    assert learn.opt.opt.param_groups[0]["lr"] == pytest.approx(1e-5)


def test_tta_turns_the_views_back(learn):
    probs, targets = learn.tta()
    assert targets.shape == (4, 32, 32)
    x = learn.dls.valid.one_batch()[0].as_subclass(torch.Tensor)
    learn.model.eval()
    with torch.no_grad():
        views = [undo_view(learn.model(view(x, k)).softmax(1), k) for k in VIEWS]
    torch.testing.assert_close(torch.as_tensor(probs), sum(views) / 8, atol=1e-5, rtol=1e-4)


def test_other_tools_of_fastai_work(learn):
    assert "Unet" in learn.summary()
    first, second = learn.dls.valid_tiles[:2]
    dl = learn.dls.test_dl([first, second])
    probs, _ = learn.get_preds(dl=dl)
    assert probs.shape == (2, 4, 32, 32)
    torch.testing.assert_close(
        torch.as_tensor(learn.predict(first)[2]), torch.as_tensor(probs[0]), atol=1e-5, rtol=1e-4
    )


def test_freeze_and_discriminative_rates_know_encoder_and_decoder(learn):
    learn.freeze()
    trainable = {n.split(".")[0] for n, p in learn.model.named_parameters() if p.requires_grad and "bn" not in n}
    assert "decoder" in trainable
    assert not next(p for p in learn.model.encoder.parameters() if p.ndim == 4).requires_grad
    learn.unfreeze()
    learn.fit(1, slice(1e-5, 1e-3))
    assert [h["lr"] for h in learn.opt.hypers] == pytest.approx([1e-5, 1e-3])
    assert [g["lr"] for g in learn.opt.opt.param_groups] == pytest.approx([1e-5, 1e-3])


def test_without_validation_only_training_is_recorded(tmp_path):
    dls = GlacierDataLoaders.from_store(make_store(tmp_path / "s"), None, bs=4)
    learn = glacier_learner(dls, encoder=TINY)
    learn.remove_cbs(ProgressCallback)
    rows = []
    learn.logger = rows.append
    learn.fit(2, 1e-3)
    names = learn.recorder.metric_names
    assert {"train_loss", "train_train_mcc"} & set(names) == {"train_loss"}
    assert {"train_mcc", "train_mean_iou", "train_focal_loss"} <= set(names)
    assert not any(n in ("mcc", "valid_loss", "focal_loss") for n in names)
    assert all(len(row) == len(names) for row in rows[-2:])
    with pytest.raises(TrainingError, match="there are no validation tiles"):
        learn.get_preds()


def test_the_seed_decides_the_weights_and_the_run(tmp_path):
    runs = []
    for _ in range(2):
        from fastai.torch_core import set_seed

        set_seed(5)
        dls = GlacierDataLoaders.from_store(make_store(tmp_path / f"s{len(runs)}"), 0, bs=4, folds=3, crop=16)
        learn = glacier_learner(dls, encoder=TINY, seed=5)
        learn.remove_cbs(ProgressCallback)
        learn.logger = lambda row: None
        learn.fit(1, 1e-3)
        runs.append(learn.model.state_dict())
    assert all(torch.equal(runs[0][k], runs[1][k]) for k in runs[0])


def test_learned_loss_weights_are_trained(dls):
    loss = CombinedLoss.phase_b(learned=True)
    learn = glacier_learner(dls, encoder=TINY, loss_func=loss)
    learn.remove_cbs(ProgressCallback)
    learn.logger = lambda row: None
    before = [p.item() for p in loss.parameters()]
    learn.fit(1, 1e-2)
    assert all(a != b.item() for a, b in zip(before, loss.parameters(), strict=True))
    learn.freeze()
    assert learn.model.decoder.blocks[0].conv1[0].weight.requires_grad
    assert not next(p for p in learn.model.encoder.parameters() if p.ndim == 4).requires_grad


def test_the_optimiser_is_pytorchs_adamw(dls):
    learn = glacier_learner(dls, torch.nn.Conv2d(5, 4, 3), lr=1e-2, wd=0.1)
    theirs = torch.nn.Conv2d(5, 4, 3)
    theirs.load_state_dict(learn.model.state_dict())
    learn.create_opt()
    learn.opt.set_hypers(wd=0.1)
    other = torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        for model, opt in ((learn.model, learn.opt), (theirs, other)):
            opt.zero_grad()
            model(torch.randn(2, 5, 8, 8, generator=torch.Generator().manual_seed(0))).square().sum().backward()
            opt.step()
    for mine, wanted in zip(learn.model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, wanted)
    hypers = learn.opt.hypers[0]
    assert {k: hypers[k] for k in ("lr", "wd", "mom", "sqr_mom", "eps")} == {
        "lr": 1e-2,
        "wd": 0.1,
        "mom": 0.9,
        "sqr_mom": 0.999,
        "eps": 1e-8,
    }


# what a fastai user types


def own_loss(logits, target):
    return F.cross_entropy(logits, target, ignore_index=255)


LOSSES = {
    "fastai, cross-entropy": lambda: CrossEntropyLossFlat(axis=1, ignore_index=255),
    "fastai, focal": lambda: FocalLossFlat(axis=1),
    "fastai, Dice": DiceLoss,
    "function": lambda: own_loss,
    "partial": lambda: partial(F.cross_entropy, ignore_index=255),
    "module": lambda: torch.nn.CrossEntropyLoss(ignore_index=255),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_others_train_and_predict(dls, name):
    learn = quiet(glacier_learner(dls, Small(), loss_func=LOSSES[name](), lr=1e-2))
    learn.fit(4)
    assert row(learn)["train_loss"] < 0.95 * row(learn, 0)["train_loss"]
    mask, codes, probs = learn.predict(int(dls.valid_tiles[0]))
    torch.testing.assert_close(probs.sum(0), torch.ones(32, 32))
    assert torch.equal(probs.argmax(0), codes) and mask.shape == (32, 32)


@pytest.fixture
def unknown_ice(dls):
    """Loaders of tiles that are said to hold ice of unknown kind."""
    dls.store.table["n_ice"] = 1
    return dls


@pytest.mark.parametrize("name", LOSSES)
def test_ice_of_unknown_kind_is_glacier_to_losses_of_others(unknown_ice, name):
    loss = LOSSES[name]()
    said = r"^loss_func \w+ knows no ice of unknown kind \(label 254\): such pixels are glacier to it$"
    with pytest.warns(DataNote, match=said) as notes:
        learn = quiet(glacier_learner(unknown_ice, Small(), loss_func=loss, lr=1e-2))
    assert len(notes) == 1
    pred = torch.randn(2, 4, 4, 4)
    unknown, glacier = torch.randint(0, 3, (2, 2, 4, 4)).unbind()
    unknown[0, 0], glacier = 254, unknown.clone()
    glacier[0, 0] = 1
    torch.testing.assert_close(learn.loss_func(pred, unknown), learn.loss_func(pred, glacier))
    learn.fit(1)
    if name != "function":  # which has no reduction
        assert len(learn.get_preds(with_loss=True)[2]) == len(unknown_ice.valid_tiles)
    assert pickle.loads(pickle.dumps(learn.loss_func))(pred, unknown) == learn.loss_func(pred, unknown)
    if name.startswith("fastai"):
        before = loss.reduction
        learn.fit(1, cbs=MixUp())
        assert loss.reduction == learn.loss_func.reduction == before


def test_the_combined_loss_knows_ice_of_unknown_kind(unknown_ice):
    loss = CombinedLoss.phase_b(extra={"mine": (0.1, own_loss)})
    with pytest.warns(DataNote, match=r"^loss part mine knows no ice of unknown kind"):
        learn = quiet(glacier_learner(unknown_ice, Small(), loss_func=loss))
    assert learn.loss_func is loss
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        glacier_learner(unknown_ice, Small(), loss_func=partial(dice_loss, smooth=2))
        glacier_learner(unknown_ice, Small())


def test_the_former_name_of_the_loss_and_an_encoder_for_a_model_are_understood(dls):
    loss = CombinedLoss.phase_a()
    learn = glacier_learner(dls, "resnet18", loss=loss)
    assert learn.loss_func is loss
    assert learn.model.built_as[1]["encoder"] == "resnet18"


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (F.cross_entropy, r"loss_func cross_entropy: Target 255 is out of bounds.*ignore_index=255"),
        (lambda p, y: p.mean((1, 2, 3)), r"loss_func <lambda>: gives a tensor of \(4,\); training needs one number"),
        (lambda p, y: (p.mean(), y), r"loss_func <lambda>: gives tuple; training needs one number"),
        (CrossEntropyLossFlat(), "loss_func CrossEntropyLossFlat: its classes are on axis -1; give it axis=1"),
    ],
)
def test_a_loss_that_cannot_be_used_is_one_line(dls, loss, said):
    with pytest.raises(TrainingError, match=said):
        quiet(glacier_learner(dls, Small(), loss_func=loss)).fit(1)


@pytest.mark.parametrize("how", ["fine_tune", "fit_one_cycle", "fit_flat_cos"])
def test_schedules_of_fastai_run_and_leave_nothing_frozen(learn, how):
    before = {k: v.clone() for k, v in learn.model.named_parameters()}
    getattr(learn, how)(1, 1e-3)
    after = dict(learn.model.named_parameters())
    assert all(p.requires_grad for p in after.values())
    for part in ("encoder", "decoder"):
        assert any(not torch.equal(before[k], after[k]) for k in after if k.startswith(part)), part
    assert {"mom", "lr"} >= set(learn.recorder.hps)


def test_a_model_of_one_group_cannot_be_fine_tuned(dls):
    learn = quiet(glacier_learner(dls, Small()))
    with pytest.raises(TrainingError, match="model Small has one parameter group, so nothing can be frozen"):
        learn.fine_tune(1)
    learn.fit_one_cycle(1)


def test_metrics_are_those_that_are_given(dls):
    assert not quiet(glacier_learner(dls, Small(), metrics=[])).metrics

    def share_of_ice(logits, target):
        return ((logits.argmax(1) == 1) | (logits.argmax(1) == 2)).float().mean()

    metrics = [share_of_ice, partial(foreground_acc, axis=1), *glacier_metrics()]
    learn = quiet(glacier_learner(dls, Small(), metrics=metrics))
    learn.fit(1)
    found, pred = row(learn), learn.get_preds()[0].argmax(1)
    assert found["share_of_ice"] == pytest.approx(float(((pred == 1) | (pred == 2)).float().mean()), abs=1e-6)
    assert {"foreground_acc", "mcc", "focal_loss", "share_lake"} <= set(found)


def test_mixup_mixes_the_losses_of_images_and_leaves_all_as_it_was(dls):
    class Watch(Callback):
        order, losses = 30, []

        def after_loss(self):
            if self.training:
                self.losses.append((self.mix_up.lam, self.pred.detach(), *self.mix_up.yb1, self.y, self.loss.item()))

    loss = CombinedLoss.phase_b()
    learn = quiet(glacier_learner(dls, Small(), loss_func=loss))
    learn.fit(2, cbs=[MixUp(), Watch(), ProgressiveRampCallback()])
    assert learn.loss_func is loss and loss.reduction == "mean"
    assert {"train_mcc", "ramp_boundary", "train_focal_loss", "share_lake"} <= set(row(learn))
    assert np.isfinite(list(row(learn).values())).all()
    fresh = CombinedLoss.phase_b()
    fresh.ramp["boundary"] = 0.05
    fresh.reduction = "none"
    lam, pred, other, mine, got = Watch.losses[0]
    assert got == pytest.approx(float(torch.lerp(fresh(pred, other), fresh(pred, mine), lam).mean()), rel=1e-5)


@pytest.mark.parametrize("loss", [CrossEntropyLossFlat(axis=1, ignore_index=255), FocalLossFlat(axis=1), DiceLoss()])
def test_mixup_takes_losses_of_fastai(dls, loss):
    learn = quiet(glacier_learner(dls, Small(), loss_func=loss, cbs=MixUp))
    learn.fit(1)
    assert np.isfinite(row(learn)["train_loss"])


def test_mixing_that_masks_do_not_allow_is_refused(dls):
    with pytest.raises(TrainingError, match="CutMix mixes labels by image, and masks have one for each pixel"):
        quiet(glacier_learner(dls, Small())).fit(1, cbs=CutMix())
    with pytest.raises(TrainingError, match="mix_up: loss_func own_loss gives no values by image"):
        glacier_learner(dls, Small(), loss_func=own_loss, cbs=MixUp())


def test_predict_takes_numpy_positions_and_images(learn):
    i = int(learn.dls.valid_tiles[0])
    probs = learn.predict(i)[2]
    values = np.asarray(learn.dls.store.images[i])
    image = learn.dls.store.read(i)
    for item in (np.int64(i), values, values.astype(np.int32), image, torch.from_numpy(image).double()):
        mask, _, other = learn.predict(item)
        assert type(mask) is TensorGlacierMask
        torch.testing.assert_close(other, probs)
    with pytest.raises(DataError, match=r"image of shape \(4, 8, 8\): \(C, H, W\) of blue, green, red, swir1, thermal"):
        learn.predict(np.zeros((4, 8, 8)))


def test_an_exported_learner_needs_no_tiles_and_holds_none(learn, tmp_path):
    store = learn.dls.store
    image = store.read(3)
    learn.fit(1, 1e-3)
    wanted = learn.predict(image)[2]
    learn.export("learner.pkl")
    kept = (tmp_path / "learner.pkl").read_bytes()
    assert np.asarray(store.images[0, 0, :4]).tobytes() not in kept and str(store.path).encode() not in kept
    shutil.rmtree(store.path)
    with pytest.warns(UserWarning, match="insecure pickle"):
        loaded = load_learner(tmp_path / "learner.pkl")
    with loaded.no_bar(), loaded.no_logging():
        torch.testing.assert_close(loaded.predict(image)[2], wanted)
        assert loaded.get_preds(dl=loaded.dls.test_dl([image, image]))[0].shape == (2, 4, 32, 32)
        with pytest.raises(DataError, match="tile 3: an exported learner holds no tiles; give it an image"):
            loaded.predict(3)
    assert (loaded.dls.c, loaded.dls.bands) == (4, store.bands)


def test_a_model_of_ones_own_trains_and_is_refused_by_a_bundle(dls):
    learn = quiet(glacier_learner(dls, Small()))
    learn.fit(1)
    with pytest.raises(BundleError, match="model Small: no bundle can hold it"):
        ModelBundle.from_learner(learn)


def test_fastais_interpretation_works(learn):
    found = SegmentationInterpretation.from_learner(learn)
    losses, positions = found.top_losses(2)
    assert losses.shape == (2,) and set(positions.tolist()) <= set(range(4))
    found.show_results([0, 1])
    assert plt.get_fignums()
