"""From a recipe to what fastai trains: loaders and a learner."""

from __future__ import annotations

import torch
from fastai.torch_core import default_device
from torch import nn

from ..core.balance import PixelBalance
from ..core.losses import CombinedLoss
from ..data.augment import AugmentTiles
from ..data.block import GlacierDataLoaders
from ..data.tiles import TileStore
from ..errors import RecipeError
from ..recipe import Recipe
from .bundle import ModelBundle
from .console import say
from .distributed import processes
from .learner import AdamW, GlacierLearner, glacier_learner
from .steps import CpuMixedPrecision

__all__ = ["make_dls", "make_learner"]


def make_dls(
    recipe: Recipe,  # what to train on and how
    store: TileStore,  # the tiles
    fold: int | None,  # fold to validate on; None: train on every tile
    weights: ModelBundle | None = None,  # bundle that training starts from
) -> GlacierDataLoaders:
    """Return the loaders a recipe asks for; the processes of a launch share its batches.

    Raises:
        RecipeError: A batch cannot be shared evenly, or is so small that the deepest layer would see one value per
            channel; or statistics of weights are asked for, and there are none.
        BundleError: The weights know nothing of a band.
    """
    size, n = recipe.train.batch_size, processes()
    if size % n:
        near = size // n * n
        raise RecipeError(
            f"train.batch_size={size}: {n} processes cannot share it evenly; use {near or n} or {near + n}"
        )
    stats = None
    if recipe.data.statistics == "weights":
        if weights is None:
            raise RecipeError("data.statistics=weights: give --weights, or set it to data")
        stats = weights.statistics(recipe.bands)
    dls = GlacierDataLoaders.from_store(
        store,
        fold,
        size // n,
        recipe.data.crop,
        bands=recipe.bands,
        folds=recipe.data.folds,
        spatial=recipe.data.spatial,
        min_valid=recipe.data.min_valid,
        crops_per_tile=recipe.data.crops_per_tile,
        balance=None if recipe.balance is None else PixelBalance(**recipe.balance.model_dump()),
        augment=AugmentTiles(**recipe.augment.model_dump()),
        stats=stats,
        glcm_window=recipe.texture.window,
        glcm_levels=recipe.texture.levels,
        num_workers=recipe.train.workers,
        seed=recipe.seed,
        device=default_device(),
    )
    if dls.train.bs == 1 and recipe.data.crop <= 32:
        raise RecipeError("train.batch_size: a single crop of 32 px cannot be normalised; use larger batches or crops")
    return dls


def make_learner(
    recipe: Recipe,  # what to train and how
    dls: GlacierDataLoaders,  # tiles, see `make_dls`
) -> GlacierLearner:
    """Return the learner a recipe asks for, seeded."""
    learn = glacier_learner(
        dls,
        recipe.model.arch,
        recipe.model.attention,
        loss=CombinedLoss(**recipe.loss.model_dump()),
        opt_func=AdamW,
        lr=recipe.train.lr,
        wd=recipe.train.weight_decay,
        seed=recipe.seed,
    )
    precision = effective_precision(recipe)
    if precision == "fp16":
        learn.to_fp16()
    elif precision == "bf16":
        learn.add_cb(CpuMixedPrecision()) if dls.device.type == "cpu" else learn.to_bf16()
    if dls.device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # crops are all of one size
    return learn


def effective_precision(recipe: Recipe) -> str:
    """Return "fp32", "fp16" or "bf16": what the recipe asks for, or with "auto" what makes the device fast.

    That is fp16 on CUDA, bf16 on a CPU with instructions for it, else fp32.

    Raises:
        RecipeError: fp16 is asked for on a CPU, or bf16 on a GPU that has none.
    """
    asked, cuda = recipe.train.precision, default_device().type == "cuda"
    if asked == "fp16" and not cuda:
        raise RecipeError("train.precision: fp16 needs a CUDA GPU, and there is none; use auto, bf16 or fp32")
    if asked == "bf16" and cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise RecipeError("train.precision: this GPU has no bf16; use auto, fp16 or fp32")
    if asked != "auto":
        return asked
    if cuda:
        return "fp16"
    able = getattr(torch.cpu, "get_capabilities", dict)()  # absent from older torch
    return "bf16" if able.get("amx_bf16") or able.get("avx512_bf16") else "fp32"


def compile_model(
    model: nn.Module,  # compiled in place: its weights keep their names
    x: torch.Tensor,  # a batch to try it with
) -> None:
    """Compile a model, or leave it as it is and say why."""
    from torch._dynamo.exc import TorchDynamoException

    kept = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        model.compile()
        model(x).sum().backward()
    except (TorchDynamoException, RuntimeError) as err:  # no compiler here, or a Python it does not know
        model._compiled_call_impl = None
        reason = next((line for line in str(err).splitlines() if line.strip()), type(err).__name__)
        say(f"train.compile: cannot be done here, so the model is trained as it is ({reason[:200]})")
    model.zero_grad()
    model.load_state_dict(kept)
