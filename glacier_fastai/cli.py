"""The command line. Results go to stdout, messages to stderr; bad input is one line and exit code 2.

Only typer is imported here: everything heavier is imported inside its command, so that ``--help`` is quick.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
import time
from contextlib import chdir
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .errors import DataError, GlacierError, RunStopped, TrainingError, printable
from .memory import out_of_memory
from .terminal import close_stdout, launched, mute_rasterio, open_streams, progress, rank, show_messages, told

__all__ = ["app", "main"]

UsageError: type[Any] = typer.BadParameter.__mro__[1]  # of the click that typer brings
app = typer.Typer(
    name="glacier-fastai",
    help="Glacier maps from multispectral satellite images: prepare tiles, train a U-Net, evaluate it, map scenes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
prepare = typer.Typer(no_args_is_help=True, help="Make a tile store, the one format that training and evaluation read.")
recipes = typer.Typer(
    invoke_without_command=True,
    help="Recipes: the settings of a run. Without a command, lists those that come with the package.",
)
app.add_typer(prepare, name="prepare")
app.add_typer(recipes, name="recipes")

Debug = Annotated[bool, typer.Option("--debug", help="Show the full traceback of an error.")]
RecipeName = Annotated[str, typer.Option("--recipe", help="A name from `glacier-fastai recipes`, or a YAML file.")]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="What to train on: a tile store made by `prepare`, or the competition's or HKH's own folder, whose store "
        "is made on first use and kept beside it (.glacier_fastai).",
    ),
]
Out = Annotated[Path | None, typer.Option("--out", help="Run folder to make; must not exist, but with --resume.")]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on with the run in the run folder, as if it had never been stopped; if there is none, start it.",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option("--weights", help="Bundle (best.safetensors) to start from; bands are matched by name."),
]
Set = Annotated[
    list[str],
    typer.Option("--set", help="Override a field of the recipe, e.g. --set train.lr=1e-4. May be repeated."),
]
Bands = Annotated[
    str,
    typer.Option(
        "--bands",
        help="Names of the file's bands, e.g. blue,green,red,nir; or, of a folder, the file of each: "
        "blue=B2.TIF,swir1=B6.TIF. Default: its band descriptions, or a product's metadata.",
    ),
]
Sensor = Annotated[str, typer.Option("--sensor", help="landsat4 to landsat9, or sentinel2: reads names such as B4.")]


Stats = Annotated[
    Literal["bundle", "scene"],
    typer.Option("--stats", help="Normalise bands as in training (bundle), or by each scene's own statistics (scene)."),
]
Force = Annotated[
    bool, typer.Option("--force", help="Go on where values are so far from those trained on that it makes no sense.")
]
Scale = Annotated[
    str,
    typer.Option(
        "--scale",
        help="What turns the file's numbers into units (reflectance, kelvin): NUMBER for all bands of reflected light, "
        "one for each band of the file, or BAND=NUMBER,... Default: as the file's tags say. Sentinel-2: 1e-4.",
    ),
]
Offset = Annotated[
    str, typer.Option("--offset", help="What is added after --scale, in the same forms. Sentinel-2 since 2022: -0.1.")
]
Resolution = Annotated[
    float,
    typer.Option(
        "--resolution",
        min=0,
        max=1e6,
        help="Side of a pixel, metres. 0: as delivered; where bands differ, the model's.",
    ),
]
Keep = Annotated[
    str,
    typer.Option(
        "--keep",
        help="Of clouds,dilated,cirrus,shadows,saturated: what a product's flags name and is data all the same.",
    ),
]
MaskBuffer = Annotated[
    float, typer.Option("--mask-buffer", min=0, max=1e4, help="Metres by which clouds and shadows are widened.")
]
Mask = Annotated[
    str,
    typer.Option("--mask", help="What is left out beside: polygons, or a raster (or its address) that is not 0 there."),
]
Dem = Annotated[
    str | None,
    typer.Option(
        "--dem",
        help="Elevation model of any grid, or its address: bands elevation, slope, aspect_sin, aspect_cos, curvature.",
    ),
]
MinIce = Annotated[
    float, typer.Option("--min-ice", min=0, max=1, help="Keep tiles of which this share of labelled pixels is ice.")
]
MinValid = Annotated[
    float, typer.Option("--min-valid", min=0, max=1, help="Keep tiles of which this share of pixels has data.")
]

Buffer = Annotated[
    float | None,
    typer.Option(
        "--buffer",
        min=0,
        max=1e5,
        help="Ice this far around an outline is its glacier's, metres. Default: 60, or 2 pixels.",
    ),
]
MinArea = Annotated[
    float, typer.Option("--min-area-km2", min=0, max=1e6, help="Least area of new glaciers, away from all outlines.")
]
Divides = Annotated[
    str | None,
    typer.Option(
        "--divides", help="In place of an inventory: elevation model (or address) along whose drainage ice is cut."
    ),
]


@app.callback()
def _options(debug: Debug = False) -> None:
    mute_rasterio()  # again, for typer has hooks of its own


def main() -> None:
    """Run the command line."""
    open_streams()
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that what is half-written is removed; a launcher waits for none
        if signal.getsignal(number) == signal.SIG_DFL and "WORLD_SIZE" not in os.environ:
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
    try:
        _run()
    except SystemExit as end:
        if (failed := close_stdout()) and not end.code:
            print(f"glacier-fastai: results cannot be written ({failed.strerror})", file=sys.stderr)
            sys.exit(2)
        raise


def _run() -> None:
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    who, mine = "glacier-fastai", 0
    os.environ["MPLBACKEND"] = "Agg"  # pictures are written, never shown
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # what its networks lack is one line of ours
    if os.path.exists("matplotlibrc"):  # of whoever made this folder; it may even name programs to run
        with chdir(os.sep):
            import matplotlib  # noqa: F401  which reads it once
    try:
        if launched()[1] == 1:
            os.environ.pop("RANK", None)  # a batch script's, which fastai would read as a number
        if mine := rank():
            who += f", process {mine}"
        show_messages()
        sys.exit(app(standalone_mode=False))
    except UsageError as err:
        if type(err).__name__ == "NoArgsIsHelpError":  # of a command without words
            err.show()
        else:
            path = err.ctx.command_path if err.ctx else "glacier-fastai"
            line = f"{who}: {err.format_message().rstrip('.')}; `{path} --help` tells more"
            print(printable(" ".join(line.split())), file=sys.stderr)
        sys.exit(err.exit_code)
    except GlacierError as err:
        if debug:
            raise
        line = str(err).rpartition("\n\t")[2]  # fastai puts the name of the callback in front
        line = line.replace("elevation model gives it (dem)", "elevation model gives it (--dem)")
        line = printable(f"{who}: {line}")
        if isinstance(err, RunStopped):
            line += f", with {_again()}" if "WORLD_SIZE" not in os.environ else ", with the same launch and --resume"
        if not (mine and isinstance(err, RunStopped)):  # all processes stop alike
            print(line, file=sys.stderr)
        sys.exit(err.exit_code)
    except (ImportError, MemoryError, RuntimeError) as err:
        if debug or not out_of_memory(err):
            raise
        why = str(err) or type(err).__name__
        print(printable(f"{who}: not enough memory, or threads ({why}); close other programs"), file=sys.stderr)
        sys.exit(2)
    except OSError as err:  # a full or read-only disk
        if debug:
            raise
        what = f"{err.filename or 'input or output'}: {err.strerror or err}"
        print(printable(f"{who}: {what}"), file=sys.stderr)
        sys.exit(2)


def _again() -> str:
    """Return the command that goes on with this one."""
    return shlex.join(["glacier-fastai", *(w for w in sys.argv[1:] if w != "--resume"), "--resume"])


def _say(text: str) -> None:
    """Show what is no result."""
    print(told(text), file=sys.stderr)


def _show(*paths: str | Path) -> None:
    """Print paths: as they are for other programs, printable for a terminal."""
    print(*(printable(str(path), 10_000) if sys.stdout.isatty() else path for path in paths), sep="\n")


def _split(text: str) -> list[str] | None:
    return [t for t in text.split(",") if t.strip()] or None


@recipes.callback()
def _list_recipes(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        from .recipe import load_recipe, recipe_names

        for name in recipe_names():
            print(f"{name:<22}{load_recipe(name).about}")


@recipes.command("show")
def show_recipe(
    name: Annotated[str, typer.Argument(help="Name of a recipe, or a YAML file.")],
    overrides: Set = [],  # noqa: B006  typer copies it
) -> None:
    """Print a recipe as YAML with every default filled in: a template for one's own."""
    from .recipe import load_recipe

    print(load_recipe(name, overrides).to_yaml(), end="")


@recipes.command("schema")
def schema() -> None:
    """Print the JSON schema of recipes, for editors that check and complete YAML."""
    from .recipe import Recipe

    print(json.dumps(Recipe.model_json_schema(), indent=1))


@prepare.command("scene")
def prepare_scene(
    scenes: Annotated[
        list[str], typer.Argument(help="GeoTIFFs, their addresses, or products; all with the same bands.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Tile store to make; must not exist.")],
    label: Annotated[
        list[str],
        typer.Option(
            help="Label raster on the scene's grid: 0 background, 1 glacier, 2 debris, 3 lake, 254 ice of unknown "
            "kind, 255 no label; or a binary mask of 0 and 255. One per scene, in the same order."
        ),
    ] = [],  # noqa: B006
    align: Annotated[
        bool, typer.Option("--align", help="Bring labels on another grid to the scene's (nearest pixel).")
    ] = False,
    outlines: Annotated[
        list[str],
        typer.Option(
            help="Polygons (GeoPackage, Shapefile, ...) instead, for all scenes; outside of them is background. "
            "FILE, of ice of unknown kind as in inventories, or CLASS=FILE, for instance glacier=clean.shp and "
            "debris=debris.shp. "
            "May be repeated."
        ),
    ] = [],  # noqa: B006
    class_field: Annotated[
        str,
        typer.Option(
            help="Column of the outlines that holds class names or codes. Default: all of FILE are ice of unknown kind."
        ),
    ] = "",
    all_touched: Annotated[
        bool,
        typer.Option("--all-touched", help="Burn every pixel that an outline touches, not only centres within it."),
    ] = False,
    empty_is_background: Annotated[
        bool,
        typer.Option(
            "--empty-is-background",
            help="A scene on which no outline lies, though some lie on others, is background. Default: unlabelled.",
        ),
    ] = False,
    bands: Bands = "",
    sensor: Sensor = "",
    scale: Scale = "",
    offset: Offset = "",
    resolution: Resolution = 0.0,
    keep: Keep = "",
    mask_buffer: MaskBuffer = 0.0,
    mask: Mask = "",
    dem: Dem = None,
    tile_size: Annotated[int, typer.Option(min=32, max=65536, help="Side of a tile, pixels.")] = 128,
    overlap: Annotated[int, typer.Option(min=0, max=65536, help="Least overlap of neighbouring tiles, pixels.")] = 0,
    min_ice: MinIce = 0.0,
    min_valid: MinValid = 0.0,
) -> None:
    """Cut scenes and their labels into tiles.

    Declared nodata and NaN are ignored from here on. Vector files are brought to the scene's coordinate system.

    Example: `glacier-fastai prepare scene scene.tif --outlines rgi.gpkg --out tiles`
    """
    from .data.sources.outlines import parse_outlines
    from .data.sources.scene import prepare_scenes

    _describe(
        prepare_scenes(
            scenes,
            out,
            labels=label,
            align=align,
            outlines=parse_outlines(outlines),
            class_field=class_field or None,
            all_touched=all_touched,
            empty_is_background=empty_is_background,
            **_how(bands, sensor, scale, offset, resolution, keep, mask_buffer, mask, dem),
            tile_size=tile_size,
            overlap=overlap,
            min_ice=min_ice,
            min_valid=min_valid,
        )
    )


def _how(
    bands: str,
    sensor: str,
    scale: str = "",
    offset: str = "",
    resolution: float = 0.0,
    keep: str = "",
    mask_buffer: float = 0.0,
    mask: str = "",
    dem: str | None = None,
) -> Any:
    """Return how scenes are to be read, from the options."""
    from .data.scenes.opening import HowRead
    from .data.scenes.units import parse_scaling

    names: Any = _split(bands)
    if names and all("=" in name for name in names):
        names = dict(name.split("=", 1) for name in names)
    return HowRead(
        bands=names,
        sensor=sensor or None,
        scale=parse_scaling(scale, "scale"),
        offset=parse_scaling(offset, "offset"),
        resolution=resolution or None,
        keep=_split(keep) or (),
        mask_buffer=mask_buffer,
        mask=mask or None,
        dem=dem,
    )


@prepare.command("competition")
def prepare_competition(
    folder: Annotated[Path, typer.Argument(help="Folder with Band1 to Band5 and, to train, label (or Train/...).")],
    out: Annotated[Path, typer.Option("--out", help="Tile store to make; must not exist.")],
    scale: Scale = "",
    offset: Offset = "",
) -> None:
    """Turn a GlacierHack 2025 folder into a tile store. Not needed before training: `--data` takes the folder too.

    Files are matched by the tile's number. Pixels with all bands 0 have no data. Without labels, the tiles are for
    prediction only. The numbers are Landsat Collection 2 by their range (inferred): reflectance and kelvin come with
    --scale 2.75e-5,2.75e-5,2.75e-5,2.75e-5,0.00341802 --offset=-0.2,-0.2,-0.2,-0.2,149
    """
    from .data.scenes.units import parse_scaling
    from .data.sources.competition import prepare_competition as run

    _describe(run(folder, out, scale=parse_scaling(scale, "scale"), offset=parse_scaling(offset, "offset")))


@prepare.command("hkh")
def prepare_hkh(
    out: Annotated[Path, typer.Option("--out", help="Tile store to make; must not exist.")],
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DIR]",
            help="Folder of the unpacked data (glacier_data, or its slices or splits), or hkh_patches.tar.gz. With "
            "--download: folder to keep the archive in.",
        ),
    ] = None,
    bands: Annotated[str, typer.Option(help="Bands to keep, by name; thermal is the high-gain one.")] = (
        "blue,green,red,swir1,thermal"
    ),
    min_ice: MinIce = 0.05,
    min_valid: MinValid = 0.1,
    download: Annotated[
        bool,
        typer.Option(
            "--download",
            help="Fetch the archive (74 GB). With DIR it is kept there, and an interrupted download goes on where it "
            "ended. Without, the tiles are cut out of the stream and nothing else is kept, but a killed command starts "
            "over.",
        ),
    ] = False,
) -> None:
    """Turn the HKH data (ICIMOD and LILA, Landsat 7) into a tile store of the bands wanted.

    Tiles of `splits` are already standardised: they stay as they are, with their own split.
    """
    from .data.sources.hkh import download_hkh
    from .data.sources.hkh import prepare_hkh as run

    kept: dict[str, Any] = {"bands": _split(bands) or [], "min_ice": min_ice, "min_valid": min_valid}
    with progress("tiles") as show:
        if download:
            store = download_hkh(source, out, **kept, progress=show)
        elif source is not None:
            store = run(source, out, **kept, progress=show)
        else:
            raise DataError("no data: name the folder or the archive, or ask for --download")
    _describe(store)


@prepare.command("synthetic")
def prepare_synthetic(
    out: Annotated[Path, typer.Option("--out", help="Tile store to make; must not exist.")],
    sensor: Annotated[str, typer.Option(help="Made-up sensor: landsat7 or landsat8.")] = "landsat8",
    scenes: Annotated[int, typer.Option(min=1, max=10_000, help="Number of landscapes.")] = 6,
    scene_size: Annotated[int, typer.Option(min=64, max=16_384, help="Side of a landscape, pixels of 30 m.")] = 256,
    tile_size: Annotated[int, typer.Option(min=32, max=16_384, help="Side of a tile, pixels.")] = 128,
    bands: Annotated[str, typer.Option(help="Bands, by name.")] = "blue,green,red,swir1,thermal",
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="The same seed gives the same landscapes.")] = 0,
) -> None:
    """Make up glacier landscapes: synthetic data, to try things without a download."""
    from .data.sources.synthetic import synthetic_store

    _describe(
        synthetic_store(
            out,
            sensor=sensor,
            n_scenes=scenes,
            scene_size=scene_size,
            tile_size=tile_size,
            bands=_split(bands) or [],
            seed=seed,
        )
    )


def _describe(store) -> None:
    counts = dict(zip(store.info["classes"], store.class_counts().sum(0), strict=True))
    if ice := store.ice_counts().sum():
        counts["ice of unknown kind"] = ice
    total = max(sum(counts.values()), 1)
    shares = ", ".join(f"{c} {n / total:.2%}" for c, n in counts.items())
    _say(f"{store.path}: {len(store)} tiles of {store.size} px, bands {', '.join(store.bands)}")
    _say(f"labelled pixels: {shares}")
    _show(store.path)


@app.command()
def pretrain(
    recipe: RecipeName = "hkh_pretrain",
    data: Data = None,
    out: Out = None,
    resume: Resume = False,
    overrides: Set = [],  # noqa: B006
) -> None:
    """Train from scratch, validating on fold 0. Prints the path of the bundle."""
    began = time.monotonic()
    from .recipe import load_recipe
    from .train.run import pretrain as run

    _result(run(load_recipe(recipe, overrides), data, out, started=began, resume=resume) / "best.safetensors")


@app.command()
def finetune(
    recipe: RecipeName = "competition_finetune",
    fold: Annotated[
        str, typer.Option(help="Fold to validate on; or `all`: every tile, keeping the last weights.")
    ] = "0",
    weights: Weights = None,
    data: Data = None,
    out: Out = None,
    resume: Resume = False,
    overrides: Set = [],  # noqa: B006
) -> None:
    """Train one fold, from scratch or from a bundle. Prints the path of the bundle.

    Example: `glacier-fastai finetune --fold 3 --weights runs/pretrain/best.safetensors --data tiles`
    """
    began = time.monotonic()
    from .recipe import load_recipe
    from .train.run import finetune as run

    chosen = load_recipe(recipe, overrides)
    _result(
        run(chosen, data, out, fold=_fold(fold), weights=weights, started=began, resume=resume) / "best.safetensors"
    )


def _result(path: Path) -> None:
    """Print a result; of the processes of a launch rank 0 does."""
    if not rank():
        _show(path)


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"\d{1,9}", text, re.ASCII))


def _fold(text: str) -> int | None:
    if text == "all":
        return None
    if not _is_number(text):
        raise DataError(f"fold {text[:40]}: use a number, or all")
    return int(text)


@app.command()
def crossval(
    recipe: RecipeName = "competition_finetune",
    weights: Weights = None,
    data: Data = None,
    out: Out = None,
    resume: Resume = False,
    overrides: Set = [],  # noqa: B006
) -> None:
    """Train every fold in turn, train.max_minutes for all together. Prints the paths of the scores and the ensemble.

    Keeps what each model says of the tiles it never saw (OUT/oof), and calibrates the ensemble of all of them with it
    (OUT/ensemble.yaml, and a picture of its reliability beside it), unless the data have a single fold.
    """
    began = time.monotonic()
    from .recipe import load_recipe
    from .train.run import crossval as run

    made = run(load_recipe(recipe, overrides), data, out, weights=weights, started=began, resume=resume)
    for path in (made / "crossval.csv", made / "ensemble.yaml"):
        if path.exists():
            _result(path)


@app.command()
def calibrate(
    crossvals: Annotated[list[Path], typer.Argument(help="Folders of `crossval`: of several seeds or architectures.")],
    out: Annotated[
        Path, typer.Option("--out", help="File to write, NAME.yaml; it names the models, wherever they lie.")
    ],
    bias: Annotated[bool, typer.Option("--bias", help="Fit a bias per class beside the temperature.")] = False,
) -> None:
    """Make one calibrated ensemble of the models of several cross-validations. Prints the path of its file.

    Temperature, decision offsets and area intervals are fitted to the mean prediction of each tile by the models that
    never saw it. What is printed of their effect is measured on each fold with what was fitted to the others.
    """
    from .model.calibrate import calibrate as run

    run(crossvals, out, bias)
    _show(out)


LAUNCHED = ("pretrain", "finetune", "crossval", "predict")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def launch(
    context: typer.Context,
    processes: Annotated[int, typer.Option(min=1, max=1024, help="Processes on this machine, one a GPU.")],
    machines: Annotated[int, typer.Option(min=1, max=1024, help="Machines; the same command is run on each.")] = 1,
    rendezvous: Annotated[str, typer.Option(help="HOST:PORT of one of the machines, where all of them meet.")] = "",
) -> None:
    """Train, or predict, in several processes, on one machine or many, with torchrun. After `--` comes the command.

    Example: `glacier-fastai launch --processes 2 -- pretrain --data glacier_data`
    """
    if not context.args or context.args[0] not in LAUNCHED:
        raise TrainingError(f"launch: after -- give a command, {', '.join(LAUNCHED)}, with its options")
    from .train.launch import launch as run

    run(context.args, processes, machines, rendezvous)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="Model bundle, NAME.safetensors, or an ensemble.yaml.")],
    data: Annotated[Path, typer.Option("--data", help="Tile store with labels, or a raw folder as in training.")],
    fold: Annotated[
        str,
        typer.Option(
            help="Look at this fold only, at `all` tiles, or at those of the source's own `test` split. Default: the "
            "tiles that the bundle was validated on, or without any of them all that it was not trained on."
        ),
    ] = "",
    stats: Stats = "bundle",
    force: Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all scores as JSON.")] = False,
) -> None:
    """Score a model on labelled tiles: four-class MCC and IoU, ice against the rest, and a table by class.

    Of an ensemble, by default all tiles are scored that none of its models has seen, and calibration as well (ECE).
    """
    from .data.raw import open_tiles
    from .model.ensemble import Ensemble
    from .model.evaluate import evaluate as run
    from .model.evaluate import score_table, tiles_to_score

    ensemble = Ensemble.load([model])
    store = open_tiles(data, [band for band, _ in ensemble.channels])
    tiles, which = tiles_to_score(ensemble, store, int(fold) if _is_number(fold) else fold or None)
    result = run(ensemble, store, tiles, statistics=stats, force=force)
    _say(f"{store.path}: {which}")
    print(json.dumps(result, indent=1) if as_json else told(score_table(result)))


@app.command()
def predict(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL... SCENE...",
            help="First the model: a bundle (.safetensors), several, or an ensemble.yaml. Then scenes: GeoTIFFs with "
            "the model's bands, products of Landsat, Sentinel-2 or HLS (folder, archive or metadata), STAC items, "
            "addresses of GeoTIFFs or items (https, s3), patterns in quotes, or a manifest (.txt with one per line, "
            ".csv with a column scene).",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the maps.")],
    bands: Bands = "",
    sensor: Sensor = "",
    scale: Scale = "",
    offset: Offset = "",
    resolution: Resolution = 0.0,
    keep: Keep = "",
    mask_buffer: MaskBuffer = 0.0,
    mask: Mask = "",
    dem: Dem = None,
    confidence: Annotated[
        bool, typer.Option("--confidence", help="Write the probability that the class shown is right.")
    ] = False,
    probabilities: Annotated[
        Literal["uint8", "float32"] | None,
        typer.Option(help="Write the probabilities of all classes, bytes in steps of 1/254."),
    ] = None,
    outlines: Annotated[
        bool, typer.Option("--outlines", help="Write polygons of glaciers and classes with areas (GeoPackage).")
    ] = False,
    geoparquet: Annotated[bool, typer.Option("--geoparquet", help="Write them as GeoParquet, too.")] = False,
    doubtful: Annotated[
        int,
        typer.Option(
            min=0, max=10_000, help="Write this many places where looking pays most, as boxes to tick (GeoPackage)."
        ),
    ] = 0,
    page: Annotated[
        bool, typer.Option("--page", help="Write a page to look at the map with its scene (HTML), and outlines for it.")
    ] = False,
    simplify: Annotated[
        float,
        typer.Option(min=0, max=1000, help="Simplify the outlines: tolerance in pixels. Areas are measured before."),
    ] = 0.0,
    glaciers: Annotated[
        str | None,
        typer.Option("--glaciers", help="Inventory (RGI, GLIMS): write a table of the ice by glacier, too."),
    ] = None,
    divides: Divides = None,
    buffer: Buffer = None,
    min_area_km2: MinArea = 0.01,
    stats: Stats = "bundle",
    stac: Annotated[str, typer.Option(help="Address of a STAC API: map the items that it finds by what follows.")] = "",
    bbox: Annotated[str, typer.Option(help="WEST,SOUTH,EAST,NORTH in degrees; items are mapped whole.")] = "",
    start: Annotated[str, typer.Option("--from", help="First day, 2020-07-01; default the first that there is.")] = "",
    end: Annotated[str, typer.Option("--to", help="Last day, 2020-09-30; default the last that there is.")] = "",
    max_cloud: Annotated[float, typer.Option(min=0, max=100, help="Largest share of clouds, percent.")] = 100.0,
    collection: Annotated[list[str], typer.Option(help="Of the API. May be repeated. Default: all.")] = [],  # noqa: B006
    window: Annotated[
        int, typer.Option(min=32, max=65536, help="Side of the windows that the model sees, pixels.")
    ] = 512,
    batch_size: Annotated[
        int, typer.Option(min=0, max=65536, help="Windows at once; 0 finds out on a GPU, and is 1 on a CPU.")
    ] = 0,
    composite: Annotated[
        str, typer.Option(help="Make one map of this name of all scenes: dates of one place, or neighbours.")
    ] = "",
    composite_by: Annotated[
        Literal["mean", "least-snow"],
        typer.Option(help="A pixel is the mean of all dates that see it, or as the least snowy of them says."),
    ] = "mean",
    part: Annotated[str, typer.Option(help="i/n: do only every n-th scene, from the i-th on, here.")] = "",
    on_error: Annotated[
        Literal["continue", "stop"], typer.Option(help="After a scene that fails among several.")
    ] = "continue",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace maps of other models or settings.")] = False,
    force: Force = False,
    overrides: Set = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON record per scene instead of paths.")] = False,
) -> None:
    """Map whole scenes: writes OUT/SCENE_classes.tif on each scene's grid, and prints its path.

    Codes are 0 background, 1 glacier, 2 debris, 3 lake, 255 no data. Scenes that were done before with the same models
    and settings are passed by. Under `launch`, torchrun or accelerate, every process does its share of the scenes.
    `--set predict.views=true` and its like change how the model is used.

    Example: `glacier-fastai predict runs/crossval/ensemble.yaml "scenes/*.tif" --out maps --outlines`
    """
    from .terminal import one_arena

    one_arena()  # before torch is imported
    from .model.ensemble import Ensemble
    from .predict.composite import predict_composite
    from .predict.glaciers import ByGlacier
    from .predict.scenes import find_scenes, predict_scenes, raise_failed, split_models, summary
    from .predict.whole import Wanted

    if stac:
        from .data.scenes.stac import stac_items

        items = stac_items(stac, _split(bbox) or (), start, end, max_cloud=max_cloud, collections=collection)
        paths = [*paths, *(item.get_self_href() or "" for item in items)]
    elif bbox or start or end or collection or max_cloud < 100:
        raise DataError("--bbox, --from, --to, --max-cloud and --collection choose items of an API; name it by --stac")
    if glaciers is divides is None and (buffer is not None or min_area_km2 != 0.01):
        raise DataError("--buffer and --min-area-km2 are for the ice by glacier; give --glaciers or --divides")
    if composite_by != "mean" and not composite:
        raise DataError("--composite-by says how several scenes become one map; name that by --composite")
    models, scenes = split_models(paths)
    ensemble = Ensemble.load(models, overrides)
    by = ByGlacier(glaciers, buffer, min_area_km2, divides) if glaciers or divides else None
    what: Any = {"glaciers": by, "doubtful": doubtful}
    wanted = Wanted(probabilities, confidence, outlines or page, geoparquet, simplify, stats, window, **what)
    how = _how(bands, sensor, scale, offset, resolution, keep, mask_buffer, mask, dem)
    use: Any = {"force": force, "batch_size": batch_size or None, "overwrite": overwrite, **how}
    write_page: Any = None
    if page:
        from .show.page import page_of

        write_page = partial(page_of, overwrite=overwrite, **how)
    if composite:
        if part or launched()[1] > 1:
            raise DataError("a composite is made by one process: leave out --part, and do not launch several")
        dates = find_scenes(scenes)
        made = predict_composite(ensemble, dates, out, composite, wanted, by=composite_by, **use)
        if page:
            made["files"]["page"] = str(write_page(made["files"], dates, made["done_before"]))
        print(json.dumps(made, indent=1)) if as_json else _show(*made["files"].values())
        return
    table = predict_scenes(ensemble, scenes, out, wanted, part=part, on_error=on_error, page=write_page, **use)
    if as_json:
        print(table.to_json(orient="records", indent=1))
    elif len(table):
        for files in table["files"].dropna():
            _show(*files.values())
    if len(table) > 1:
        _say(summary(table))
    raise_failed(table)


@app.command()
def glaciers(
    maps: Annotated[
        list[str],
        typer.Argument(metavar="MAP...", help="Maps made before, SCENE_classes.tif, or patterns of them in quotes."),
    ],
    inventory: Annotated[
        str | None,
        typer.Option("--inventory", help="Outlines of glaciers: RGI 5, 6, 7, GLIMS, or polygons of your own."),
    ] = None,
    divides: Divides = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the tables. Default: beside each map.")] = None,
    buffer: Buffer = None,
    min_area_km2: MinArea = 0.01,
    date: Annotated[
        str, typer.Option(help="Day of the scene, YYYY-MM-DD. Default: what the map's record or name says.")
    ] = "",
    dem: Annotated[
        str | None,
        typer.Option("--dem", help="Elevation model, for heights, slope and aspect. Default: that of --divides."),
    ] = None,
    geoparquet: Annotated[bool, typer.Option("--geoparquet", help="Write the table as GeoParquet, too.")] = False,
    form: Annotated[
        Literal["rgi7", "glims"] | None,
        typer.Option("--format", help="Write an inventory in the format of RGI 7 or GLIMS, too."),
    ] = None,
    analyst: Annotated[str, typer.Option(help="Who answers for that inventory.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace tables that are there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON record per map instead of paths.")] = False,
) -> None:
    """Give the ice of maps to the glaciers of an inventory: a row for each, with its areas; prints the tables' paths.

    Ice within an outline is that glacier's, ice close by the nearest one's; what lies apart becomes new glaciers.
    Without an inventory, `--divides dem.tif` cuts the map's own ice along the drainage of an elevation model.
    Every pixel of ice counts once. Confidence and intervals come from the maps beside, where there are any.

    Example: `glacier-fastai glaciers maps/scene_classes.tif --inventory rgi.gpkg`
    """
    from .predict.glaciers import find_maps, summary
    from .predict.glaciers import glaciers as run

    if (inventory is None) == (divides is None):
        raise DataError("glaciers are those of an inventory or of divides; give --inventory or --divides")
    how: dict[str, Any] = {"buffer": buffer, "min_area": min_area_km2, "divides": divides, "date": date, "dem": dem}
    how |= {"form": form, "analyst": analyst}
    found = find_maps(maps)
    if date and len(found) > 1:
        raise DataError(f"{len(found)} maps and one date; give the maps of each day on their own")
    made = []
    for path in found:
        made.append(run(path, inventory, out, **how, geoparquet=geoparquet, overwrite=overwrite))
        _say(summary(made[-1]))
        if not as_json:
            _show(*made[-1]["files"].values())
    if as_json:
        print(json.dumps(made, indent=1))


@app.command()
def change(
    first: Annotated[
        Path, typer.Argument(help="Table of `glaciers` (SCENE_glaciers.gpkg or .csv), or a map of classes.")
    ],
    second: Annotated[Path, typer.Argument(help="The same of another date.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for what is found.")],
    inventory: Annotated[
        str | None, typer.Option("--inventory", help="For maps: the glaciers that are compared (RGI, GLIMS).")
    ] = None,
    buffer: Buffer = None,
    dates: Annotated[
        str, typer.Option(help="For maps: days of the scenes, YYYY-MM-DD,YYYY-MM-DD. Default: as their records say.")
    ] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Compare what other models, buffers or pixels were used for, too.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON record instead of paths.")] = False,
) -> None:
    """Compare the glaciers of two dates: change of area and rate per year, of each, by size class and in all.

    Writes tables, a figure, and polygons of loss and gain; prints their paths. What is within its noise is marked.

    Example: `glacier-fastai change a_glaciers.gpkg b_glaciers.gpkg --out change`
    """
    from .predict.change import change as run
    from .predict.change import summary

    days = (dates.split(",") + ["", ""])[:2] if dates.count(",") < 2 else None
    if days is None or (dates and not all(days)):
        raise DataError(f"dates {dates}: write two days, YYYY-MM-DD,YYYY-MM-DD")
    how: dict[str, Any] = {"inventory": inventory, "buffer": buffer, "dates": (days[0], days[1])}
    made = run(first, second, out, **how, force=force, overwrite=overwrite)
    _say(summary(made))
    if as_json:
        print(json.dumps(made, indent=1))
    else:
        _show(*made["files"].values())


@app.command()
def correct(
    source: Annotated[
        str, typer.Argument(metavar="SCENE|STORE", help="The scene that was mapped, or a tile store of its ground.")
    ],
    edited: Annotated[
        str, typer.Argument(help="The map's outlines as you left them: polygons with a column of classes, any format.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Tile store to make; must not exist.")],
    checked: Annotated[
        str | None,
        typer.Option(
            "--checked",
            help="Polygons of ground where you looked at everything; with a column checked (as in SCENE_doubtful.gpkg) "
            "those that are ticked. Default: only what was changed, and 3 pixels around.",
        ),
    ] = None,
    mapped: Annotated[
        str | None, typer.Option("--map", help="The map. Default: SCENE_classes.tif beside the edited outlines.")
    ] = None,
    class_field: Annotated[str, typer.Option(help="Column that holds class names or codes.")] = "class",
    bands: Bands = "",
    sensor: Sensor = "",
    scale: Scale = "",
    offset: Offset = "",
    resolution: Resolution = 0.0,
    keep: Keep = "",
    mask_buffer: MaskBuffer = 0.0,
    mask: Mask = "",
    dem: Dem = None,
    tile_size: Annotated[
        int | None, typer.Option(min=32, max=65536, help="Side of a scene's tiles, pixels. Default: 128.")
    ] = None,
) -> None:
    """Make labels of outlines that you corrected in a GIS, to train on with `finetune --weights`. Prints the store.

    Of a scene, tiles with labels where you looked, and none elsewhere; of a tile store, all its tiles with new labels
    there. Without a polygon, ground that you looked at is background.

    Example: `glacier-fastai correct scene.tif maps/scene_outlines.gpkg --out corrected`
    """
    from .predict.correct import correct as run

    how = _how(bands, sensor, scale, offset, resolution, keep, mask_buffer, mask, dem)
    use: Any = {"checked": checked, "mapped": mapped, "class_field": class_field, "tile_size": tile_size}
    _describe(run(source, edited, out, **use, **how))


@app.command()
def export(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="Bundles, or an ensemble.yaml.")],
    out: Annotated[Path, typer.Option("--out", help="File to write.")],
    to: Annotated[
        Literal["onnx", "torch"], typer.Option(help="ONNX, for QGIS's Deepness and others, or torch.export.")
    ] = "onnx",
    as_json: Annotated[bool, typer.Option("--json", help="Print what the file says of itself.")] = False,
) -> None:
    """Write a model for other programs: from numbers as files hold them to probabilities. Prints its path.

    Scale and offset, indices, normalisation, nodata, calibration, and the mean of several models are inside.

    Example: `glacier-fastai export run/best.safetensors --out glaciers.onnx`
    """
    from .model.ensemble import Ensemble
    from .predict.export import export_model

    about = export_model(Ensemble.load(models), out, to)
    print(f"largest difference of probabilities {about['difference']:.1e}", file=sys.stderr)
    print(json.dumps(about, indent=1)) if as_json else _show(out)


@app.command()
def submit(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="Bundles, or an ensemble.yaml.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to make; must not exist.")],
    seconds: Annotated[
        float,
        typer.Option(
            min=0, max=1e6, help="Seconds per tile: what views and scales take beyond that is left out. 0: no limit."
        ),
    ] = 0.0,
    max_size: Annotated[float, typer.Option(min=1, max=1e6, help="Megabytes that model.pth may have.")] = 300.0,
    check: Annotated[
        Path | None,
        typer.Option(
            "--check",
            help="Competition folder: run the submission on it in processes of its own, in both interfaces; compare.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")] = False,
    overrides: Set = [],  # noqa: B006
) -> None:
    """Make a submission to GlacierHack 2025: a folder with solution.py and model.pth. Prints its path.

    The file needs nothing of this package: Python 3.9, torch 2.0 and numpy on a CPU.

    Example: `glacier-fastai submit runs/crossval/ensemble.yaml --out submission --check competition`
    """
    from .model.ensemble import Ensemble
    from .predict.submission import check_submission, tiles_to_check, write_submission

    ensemble = Ensemble.load(models, overrides)
    if check is not None:
        tiles_to_check(check)
    made = write_submission(ensemble, out, seconds, max_size, overwrite)
    if check is not None:
        found = check_submission(made, ensemble, check)
        print(
            f"{found['tiles']} tiles: masks written and returned are those of predict; "
            f"model.pth {found['megabytes']} MB, {found['seconds_per_tile']} s per tile without limit",
            file=sys.stderr,
        )
    _show(made)


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders of `crossval` for all their folds.")
    ],
    out: Annotated[Path, typer.Option("--out", help="HTML file to write.")] = Path("report.html"),
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Tile store or raw folder of the runs. Default: where each of them found it."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Write a page about runs, side by side: one HTML file that needs no network. Prints its path.

    It holds what was run, scores and their spread, curves, confusion, reliability, tiles and what bands are worth. Run
    folders are only read; what one that was cut short lacks is said at the top.

    Example: `glacier-fastai report runs/crossval --out crossval.html`
    """
    from .show.report import write_report

    write_report(runs, out, data, overwrite)
    _show(out)


@app.command()
def page(
    maps: Annotated[
        list[Path], typer.Argument(metavar="MAP [MAP]", help="A map, SCENE_classes.tif, or two of one place.")
    ],
    out: Annotated[Path, typer.Option("--out", help="HTML file to write.")] = Path("map.html"),
    scenes: Annotated[
        list[str],
        typer.Option("--scene", help="The scene of each map, in the same order; of a composite, all of them."),
    ] = [],  # noqa: B006
    bands: Bands = "",
    sensor: Sensor = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Write a page to look at a map with its scene, or at two dates: one HTML file without network. Prints its path.

    What lies beside a map is on it, too: confidence, and glaciers with their outlines, as a table that finds them.

    Example: `glacier-fastai page maps/2000_classes.tif maps/2020_classes.tif --scene 2000.tif --scene 2020.tif`
    """
    from .show.page import write_page

    write_page(maps, out, scenes, overwrite=overwrite, **_how(bands, sensor))
    _show(out)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder to make; must not exist.")] = Path("glacier-demo"),
) -> None:
    """See all of it in under 5 minutes on 2 CPU cores, without a download, on synthetic landscapes.

    Pretrains on one made-up sensor, fine-tunes one fold on another, evaluates on landscapes neither has seen, and maps
    a scene. Prints where the pictures, the map and the report are.
    """
    from .show.demo import run

    for name, path in run(out).items():
        print(f"{name:<16}{path}")
