"""Everything a notebook needs: ``from glacier_fastai.all import *``.

That is all of fastai's vision, and what is named here; nothing of fastai or fastcore is replaced. What the library has
to say then shows in the notebook.
"""

# ruff: noqa: F401  names are imported to be offered
from fastai.vision.all import *

from .bands import CLASSES, IGNORE, INDICES, Bands
from .core.balance import PixelBalance
from .core.losses import CombinedLoss, bf1_loss, boundary_loss, dice_loss, focal_loss, mcc_loss
from .data.augment import AugmentTiles
from .data.balanced import PixelBalancedDL
from .data.block import GlacierDataLoaders, GlacierMaskBlock, MultispectralBlock, NormalizeBands, ReadImage, ReadMask
from .data.raw import open_tiles
from .data.sources.competition import prepare_competition
from .data.sources.hkh import prepare_hkh
from .data.sources.scene import prepare_scenes
from .data.sources.synthetic import synthetic_store
from .data.tiles import TileStore, TileWriter
from .data.types import TensorGlacierMask, TensorMultispectral
from .errors import *
from .model.bundle import ModelBundle
from .model.calibrate import calibrate
from .model.ensemble import Ensemble
from .model.evaluate import class_table, evaluate, predict_tiles, score_table, tiles_to_score
from .model.oof import OutOfFold
from .model.registry import Architecture, build_model, model_names, register_model
from .predict.change import change
from .predict.glaciers import ByGlacier, glaciers
from .predict.scene import Wanted, predict_scene
from .predict.scenes import predict_scenes
from .predict.submission import check_submission, write_submission
from .recipe import Recipe, load_recipe
from .show.interpret import GlacierInterpretation
from .show.report import write_report
from .show.runs import read_runs
from .terminal import show_messages
from .train.build import make_dls, make_learner
from .train.callbacks import (
    AverageWeightsCallback,
    ColumnsCallback,
    CombinedLossCallback,
    CompositionCallback,
    ConfusionMatrixCallback,
    ProgressiveRampCallback,
    WarmupDecayCallback,
    plateau,
)
from .train.checkpoint import CheckpointCallback
from .train.learner import GlacierLearner, glacier_learner
from .train.metrics import ConfusionMetric, glacier_metrics
from .train.record import EventsCallback, HistoryCallback, TensorBoardRecord
from .train.run import crossval, finetune, pretrain, train
from .train.steps import AccumulateBatches, FreezeEncoder, GradientGuard
from .train.stop import StopCallback

show_messages()
