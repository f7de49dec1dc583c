"""What a model is, for people (MODEL_CARD.md) and for catalogues (STAC, extension Machine Learning Model)."""

from __future__ import annotations

import json
import re
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import shapely
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from shapely.geometry import mapping

from ..bands import BANDS, CLASS_COLOURS, CLASSES, UNKNOWN_ICE
from ..data.tiles import TileStore
from ..errors import DataError, printable
from ..files import file_hash, names_only, write_text
from ..model.bundle import ModelBundle, described
from ..model.evaluate import class_table
from ..model.registry import architecture
from ..reading import read_json

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
    environment = read_json(run / "environment.json", DataError)
    made = datetime.fromtimestamp(path.stat().st_mtime, UTC).replace(microsecond=0)
    item = stac_item(bundle, store, path, made).to_dict(include_self_link=False)
    write_text(run / "MODEL_CARD.md", model_card(bundle, store, path, made, environment))
    write_text(path.with_suffix(".stac.json"), json.dumps(item, indent=1))


def model_card(
    bundle: ModelBundle,
    store: TileStore,  # the tiles it was trained on
    path: Path,  # the bundle's file
    made: datetime,  # when it was made
    environment: dict[str, Any],  # as from `record.environment`
) -> str:
    """Return the model card, in Markdown; sections after Mitchell et al. 2019, doi 10.1145/3287560.3287596."""
    train, valid = (np.isin(store.keys(), keys) for keys in (bundle.trained_on.train, bundle.trained_on.valid))
    counts, source = store.class_counts()[train].sum(0), store.info.get("source")
    pixels = dict(zip(CLASSES, counts, strict=True))
    if unknown := store.ice_counts()[train].sum():
        pixels[UNKNOWN_ICE] = unknown
    folder = FileSystemLoader(Path(__file__).parent)
    env = Environment(
        loader=folder,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_markdown,
    )
    template = env.get_template("model_card.md.jinja")
    return template.render(
        name=path.parent.name,
        bands=bundle.bands,
        network=str(bundle.model()) if architecture(bundle.arch)[0].fit else described(bundle.arch, bundle.options),
        parameters=_parameters(bundle),
        classes=CLASSES,
        made=made.strftime("%Y-%m-%dT%H:%M:%SZ"),
        file=path.name,
        sha256=file_hash(path),
        sensor=store.info.get("sensor"),
        standardised=bundle.standardised,
        source=source,
        store=store.path.name,
        about=bundle.trained_on,
        box=_box(store),
        size=store.size,
        train=train.sum(),
        valid=valid.sum(),
        shares={name: n / max(sum(pixels.values()), 1) for name, n in pixels.items()},
        tells_debris=bundle.tells_debris,
        metrics=bundle.metrics,
        table=Markup(class_table(torch.tensor(bundle.metrics["confusion"])) if valid.any() else ""),
        licence=LICENCES.get(source or "", "as their source states; glacier_fastai does not know it"),
        command=Markup(printable(shlex.join(map(names_only, environment["command"])), 10_000).replace("`", "'")),
        environment=environment,
        packages=environment["packages"],
    )


def _markdown(value: Any) -> Any:
    """Return what stands in a card: a text of a file, such as a band's name, makes no table, link or HTML."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return re.sub(r"([\\`|<>\[\]*])", r"\\\1", printable(value, 10_000))


def stac_item(
    bundle: ModelBundle,
    store: TileStore,  # the tiles it was trained on
    path: Path,  # the bundle's file
    made: datetime,  # when it was made
) -> pystac.Item:
    """Return the STAC item; its place is that of the training tiles, none where they have no coordinates."""
    box, order = _box(store), ["batch", "channel", "height", "width"]
    classes = [
        {"value": k, "name": c, "color_hint": colour.removeprefix("#").upper()}
        for k, (c, colour) in enumerate(zip(CLASSES, CLASS_COLOURS, strict=True))
    ]
    scaling = [{"type": "z-score", "mean": m, "stddev": s} for m, s in zip(bundle.mean, bundle.std, strict=True)]
    item = pystac.Item(
        id=f"glacier-fastai-{file_hash(path)[:12]}",
        geometry=mapping(_polygon(box)) if box else None,
        bbox=box,
        datetime=made,
        properties={
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
        stac_extensions=[MLM],
    )
    model = pystac.Asset(
        f"./{path.name}",
        title="weights and what they mean, read by glacier_fastai's ModelBundle",
        media_type="application/octet-stream; framework=pytorch; format=safetensors",
        roles=["mlm:model", "mlm:weights"],
        extra_fields={
            "mlm:artifact_type": "safetensors.torch.save_file",
            "bands": [{"name": b, "description": BANDS.get(b, b)} for b in bundle.bands],
        },
    )
    item.add_asset("model", model)
    item.add_asset("card", pystac.Asset("./MODEL_CARD.md", media_type="text/markdown", roles=["metadata"]))
    return item


def _parameters(bundle: ModelBundle) -> int:
    return sum(p.numel() for p in bundle.model().parameters())


def _box(store: TileStore) -> list[float] | None:
    """West, south, east and north of all tiles that have a place on Earth, degrees; synthetic ones lie nowhere.

    Across the antimeridian, where ground is cut, west is greater than east: RFC 7946, section 5.2.
    """
    parts = shapely.get_parts([tile for tile in store.ground() if tile is not None])
    if store.info.get("source") == "synthetic" or not len(parts):
        return None
    west, south, east, north = shapely.total_bounds(parts).tolist()
    left, _, right, _ = shapely.bounds(parts).T
    if west == -180 and east == 180 and ((left >= 0) | (right <= 0)).all():
        west, east = float(left[left >= 0].min()), float(right[right <= 0].max())
    return [west, south, east, north]


def _polygon(box: list[float]) -> shapely.Geometry:
    """Return the ground of a box, cut at the antimeridian."""
    west, south, east, north = box
    if west <= east:
        return shapely.box(*box)
    return shapely.MultiPolygon([shapely.box(west, south, 180, north), shapely.box(-180, south, east, north)])
