"""What a model is, for people (MODEL_CARD.md) and for catalogues (STAC, extension Machine Learning Model)."""

from __future__ import annotations

import json
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.colors import to_rgb
from rasterio.errors import RasterioError
from rasterio.warp import transform_bounds

from ..bands import BANDS, CLASS_COLOURS, CLASSES
from ..data.tiles import TileStore
from ..files import file_hash, write_text
from ..model.bundle import ModelBundle, TrainedOn, described
from ..model.evaluate import class_table

__all__ = ["model_card", "stac_item", "write_card"]

MLM = "https://stac-extensions.github.io/mlm/v1.6.0/schema.json"
LICENCES = {
    "hkh": "HKH (ICIMOD, LILA): sources disagree between CDLA-Permissive-1.0, PDDL-1.0 and CC BY 4.0; ask ICIMOD",
    "competition": "GlacierHack 2025: the competition's rules",
    "synthetic": "made up by glacier_fastai: none",
}


def write_card(
    run: Path,  # run folder with environment.json and the bundle
    bundle: ModelBundle,  # the one in it
    path: Path,  # where it is
    store: TileStore,  # the tiles it was trained on
) -> None:
    """Write RUN/MODEL_CARD.md, and a STAC item beside the bundle, named like it."""
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    made = datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    item = stac_item(bundle, store, path, made)
    write_text(run / "MODEL_CARD.md", model_card(bundle, store, path, made, environment))
    write_text(path.with_suffix(".stac.json"), json.dumps(item, indent=1))


def model_card(
    bundle: ModelBundle,
    store: TileStore,  # the tiles it was trained on
    path: Path,  # the bundle's file
    made: str,  # when it was made, RFC 3339
    environment: dict[str, Any],  # as from `record.environment`
) -> str:
    """Return the model card, in Markdown; sections after Mitchell et al. 2019, doi 10.1145/3287560.3287596."""
    about, info = bundle.trained_on, store.info
    source, sensor = info.get("source") or "unnamed", info.get("sensor") or "not named"
    train, valid = (np.isin(store.keys(), keys) for keys in (about.train, about.valid))
    counts = store.class_counts()[train].sum(0)
    shares = ", ".join(f"{c} {n / max(counts.sum(), 1):.2%}" for c, n in zip(CLASSES, counts, strict=True))
    box = _box(store)
    where = "not known, or nowhere"
    if box:
        where = f"{box[0]:.3f} to {box[2]:.3f} degrees east, {box[1]:.3f} to {box[3]:.3f} degrees north"
    made_up = (
        "\n- **The training data are synthetic.** Of real glaciers the model knows nothing."
        if source == "synthetic"
        else ""
    )
    values = "already standardised" if bundle.standardised else "as delivered there"
    git, packages = environment.get("git"), environment["packages"]
    state = f", commit {git['commit']}{', with changes' if git['changed'] else ''}" if git else ""
    return f"""# {path.parent.name}: glaciers in {", ".join(bundle.bands)}

Network: {described(bundle.arch, bundle.options)}, {_parameters(bundle):,} parameters, without ImageNet weights. It
gives every pixel's probability of {", ".join(CLASSES)}.
Made {made} by glacier_fastai {packages["glacier-fastai"]}. SHA-256 of `{path.name}`: {file_hash(path)}.

## Intended use

Maps of clean ice, debris-covered ice and lakes from scenes like the training data: sensor {sensor}, values {values},
at its pixel size. On other sensors or regions fine-tune it first. Look at maps before you use areas of them; do not
base warnings of hazards on them alone.

## Training data

| | |
|---|---|
| source | {source} ({store.path.name}, hash {about.hash}) |
| where | {where} |
| tiles | {train.sum()} of {store.size} px trained on, {valid.sum()} validated on |
| split | {_split(about)} |
| labelled pixels trained on | {shares} |

## Results

{_results(bundle, int(valid.sum()))}

## Limits

- Snow, cloud and shadow are no classes of their own: fresh snow may be taken for ice.
- Classes that are rare above are learned from few examples.
- Its probabilities are not calibrated; `glacier-fastai crossval` measures whether that helps.{made_up}

## Licences

- glacier_fastai: Apache-2.0
- training data: {LICENCES.get(source, "as their source states; glacier_fastai does not know it")}
- these weights: to be stated by whoever publishes them, within the licence of the data

## How to reproduce

`{shlex.join(environment["command"])}`

with `recipe.yaml` beside this file, on the same tiles. Python {environment["python"]}, torch {packages["torch"]},
fastai {packages["fastai"]}; device {environment["device"]}, processes {environment["processes"]}, threads of each
{environment["threads"]}{state}.
"""


def stac_item(
    bundle: ModelBundle,
    store: TileStore,  # the tiles it was trained on
    path: Path,  # the bundle's file
    made: str,  # when it was made, RFC 3339
) -> dict[str, Any]:
    """Return the STAC item; its place is that of the training tiles, none where they have no coordinates."""
    box, digest = _box(store), file_hash(path)
    classes = [
        {"value": k, "name": c, "color_hint": "".join(f"{round(255 * v):02X}" for v in to_rgb(colour))}
        for k, (c, colour) in enumerate(zip(CLASSES, CLASS_COLOURS, strict=True))
    ]
    scaling = [{"type": "z-score", "mean": m, "stddev": s} for m, s in zip(bundle.mean, bundle.std, strict=True)]
    order = ["batch", "channel", "height", "width"]
    item: dict[str, Any] = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [MLM],
        "id": f"glacier-fastai-{digest[:12]}",
        "geometry": None,
        "properties": {
            "datetime": made,
            "description": f"Glacier maps from {', '.join(bundle.bands)}; see MODEL_CARD.md",
            "mlm:name": path.parent.name,
            "mlm:architecture": described(bundle.arch, bundle.options),
            "mlm:tasks": ["semantic-segmentation"],
            "mlm:framework": "pytorch",
            "mlm:framework_version": torch.__version__.partition("+")[0],
            "mlm:total_parameters": _parameters(bundle),
            "mlm:pretrained": False,
            "mlm:accelerator_constrained": False,
            "mlm:input": [
                {
                    "name": "tile",
                    "bands": [{"name": b} for b in bundle.bands],
                    "input": {"shape": [-1, len(bundle.bands), -1, -1], "dim_order": order, "data_type": "float32"},
                    "value_scaling": scaling,
                    "description": "standardised; 0 in every band where there is no data",
                }
            ],
            "mlm:output": [
                {
                    "name": "logits",
                    "tasks": ["semantic-segmentation"],
                    "result": {"shape": [-1, len(CLASSES), -1, -1], "dim_order": order, "data_type": "float32"},
                    "classification:classes": classes,
                }
            ],
        },
        "links": [],
        "assets": {
            "model": {
                "href": f"./{path.name}",
                "title": "weights and what they mean, read by glacier_fastai's ModelBundle",
                "type": "application/octet-stream; framework=pytorch; format=safetensors",
                "roles": ["mlm:model", "mlm:weights"],
                "mlm:artifact_type": "safetensors.torch.save_file",
                "bands": [{"name": b, "description": BANDS.get(b, b)} for b in bundle.bands],
            },
            "card": {"href": "./MODEL_CARD.md", "type": "text/markdown", "roles": ["metadata"]},
        },
    }
    if box:
        west, south, east, north = box
        ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
        item |= {"bbox": box, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    return item


def _parameters(bundle: ModelBundle) -> int:
    return sum(p.numel() for p in bundle.model().parameters())


def _split(about: TrainedOn) -> str:
    if about.fold is None:
        return "none: every tile was trained on"
    kind = "spatial: no training tile touches a validation tile" if about.spatial else "not spatial"
    return f"fold {about.fold} of {about.folds}, {kind}"


def _results(bundle: ModelBundle, tiles: int) -> str:
    if not tiles:
        return "Nothing was measured: there were no validation tiles."
    m = bundle.metrics
    table = class_table(torch.tensor(m["confusion"]))
    indented = "\n".join(f"    {line}" for line in table.splitlines())
    return (
        f"On the {tiles} validation tiles, without test-time views: MCC {m['mcc']:.4f}, of ice against the rest "
        f"{m['ice_mcc']:.4f}, mean IoU {m['mean_iou']:.4f}.\nEpoch {m['epoch']} was kept for its score on these very "
        f"tiles, which flatters it a little.\n\n{indented}"
    )


def _box(store: TileStore) -> list[float] | None:
    """West, south, east and north of all tiles that have coordinates, degrees; synthetic ones lie nowhere."""
    if store.info.get("source") == "synthetic":
        return None
    place = store.footprints()
    found = []
    for frame in dict.fromkeys(place["frame"]):
        kind, _, crs = frame.partition(" ")
        if kind == "crs":
            x0, y0, x1, y1 = place["box"][place["frame"] == frame].T
            try:
                found.append(transform_bounds(crs, "EPSG:4326", x0.min(), -y1.max(), x1.max(), -y0.min()))
            except (RasterioError, ValueError):  # a grid without a place on Earth
                continue
    if not found:
        return None
    west, south, east, north = np.array(found).T
    return [float(west.min()), float(south.min()), float(east.max()), float(north.max())]
