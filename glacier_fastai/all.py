"""Everything a notebook needs: ``from glacier_fastai.all import *``."""

from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback  # noqa: F401
from fastai.vision.all import *

from .bands import *
from .core.balance import PixelBalance  # noqa: F401
from .core.losses import CombinedLoss  # noqa: F401
from .data.augment import *
from .data.balanced import *
from .data.block import *
from .data.sources.scene import *
from .data.sources.synthetic import *
from .data.tiles import *
from .data.types import *
from .errors import *
from .model.bundle import *
from .model.calibrate import *
from .model.ensemble import *
from .model.evaluate import *
from .model.oof import *
from .model.registry import *
from .model.unet import *
from .predict.scene import *
from .predict.scenes import *
from .predict.submission import *
from .recipe import *
from .show.interpret import *
from .train.build import *
from .train.callbacks import *
from .train.checkpoint import *
from .train.learner import *
from .train.metrics import *
from .train.run import *
from .train.steps import *
from .train.stop import *
