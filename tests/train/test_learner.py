import matplotlib.pyplot as plt
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.callback.schedule import lr_find  # noqa: F401  patches Learner
from fastai.callback.tracker import ReduceLROnPlateau
from fastai.callback.training import ShortEpochCallback
from scenes import TINY, make_store

from glacier_fastai.core.dihedral import VIEWS, undo_view, view
from glacier_fastai.core.losses import CombinedLoss
from glacier_fastai.data.block import GlacierDataLoaders
from glacier_fastai.data.types import TensorGlacierMask, TensorMultispectral, class_rgba, error_rgba
from glacier_fastai.errors import TrainingError
from glacier_fastai.train.learner import AdamW, glacier_learner


@pytest.fixture
def dls(tmp_path):
    return GlacierDataLoaders.from_store(make_store(tmp_path / "s"), 0, bs=4, folds=3)


@pytest.fixture
def learn(dls, tmp_path):
    out = glacier_learner(dls, encoder=TINY, seed=0, path=tmp_path)
    out.remove_cbs(ProgressCallback)
    out.logger = lambda row: None
    return out


def test_it_learns_a_simple_landscape(learn):
    learn.fit(25, 2e-3)
    names = learn.recorder.metric_names[1:]
    row = dict(zip(names, learn.recorder.values[-1], strict=False))
    assert row["train_mcc"] > 0.9
    first = dict(zip(names, learn.recorder.values[0], strict=False))
    assert row["train_loss"] < 0.5 * first["train_loss"]


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
    assert titles[:3] == ["snow and ice (no nir)", "target", "prediction"]
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
    assert "GlacierUnet" in learn.summary()
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
    assert not learn.model.encoder.layer1[0].conv1.weight.requires_grad
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
    learn = glacier_learner(dls, encoder=TINY, loss=loss)
    learn.remove_cbs(ProgressCallback)
    learn.logger = lambda row: None
    before = [p.item() for p in loss.parameters()]
    learn.fit(1, 1e-2)
    assert all(a != b.item() for a, b in zip(before, loss.parameters(), strict=True))
    learn.freeze()
    assert learn.model.decoder.blocks[0].conv1[0].weight.requires_grad
    assert not learn.model.encoder.conv1.weight.requires_grad


def test_the_fused_optimiser_equals_torchs_own():
    torch.manual_seed(0)
    mine, theirs = (torch.nn.Linear(3, 2) for _ in range(2))
    theirs.load_state_dict(mine.state_dict())
    a = AdamW([list(mine.parameters())], lr=1e-2)
    a.set_hypers(wd=0.1)
    b = torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.1)
    x = torch.randn(5, 3)
    for _ in range(3):
        for model, opt in ((mine, a), (theirs, b)):
            opt.zero_grad()
            model(x).square().sum().backward()
            opt.step()
    torch.testing.assert_close(mine.weight, theirs.weight)
    assert dict(a.hypers[0]) == {"lr": 1e-2, "wd": 0.1, "eps": 1e-8}
    with pytest.raises(TypeError, match="cannot be deleted"):
        del a.hypers[0]["lr"]
