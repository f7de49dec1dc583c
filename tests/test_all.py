"""The star import of notebooks."""

import logging

import fastai.basics
import fastai.vision.all
import fastcore.all

import glacier_fastai.all as ours

PUBLIC = {name: value for name, value in vars(ours).items() if not name.startswith("_")}


def test_nothing_of_fastai_or_fastcore_is_replaced():
    for theirs in (fastai.vision.all, fastai.basics, fastcore.all):
        replaced = [
            name
            for name, value in vars(theirs).items()
            if name in PUBLIC and PUBLIC[name] is not getattr(fastai.vision.all, name, value)
        ]
        assert not replaced, f"{theirs.__name__}: {replaced}"


def test_it_offers_what_notebooks_need():
    wanted = """open_tiles prepare_scenes prepare_competition prepare_hkh synthetic_store GlacierDataLoaders
        PixelBalance glacier_learner glacier_metrics CombinedLoss focal_loss dice_loss mcc_loss boundary_loss
        HistoryCallback TensorBoardRecord plateau ReduceLROnPlateau ModelBundle Ensemble register_model
        evaluate predict_scene
        predict_scenes write_report GlacierInterpretation Recipe load_recipe train finetune crossval calibrate
        CrossEntropyLossFlat Learner DataBlock"""
    assert set(wanted.split()) <= set(PUBLIC)


def test_what_the_library_says_is_shown():
    assert logging.getLogger("glacier_fastai").isEnabledFor(logging.INFO)
    assert logging.getLogger("glacier_fastai").handlers
