"""What a model is, before it is downloaded: its parts, its tokens, the memory it takes. `chiasm info MODEL`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PretrainedConfig

from ..models.anatomy import Anatomy, find_anatomy
from ..models.open import pick_dtype
from ..scenes.errors import UserError
from .image_tokens import PHOTO, ImageTokens, image_tokens
from .memory import head_size, key_value_heads, trace_memory, vision_width, weight_memory

SITES = (
    "embed",
    *(
        f"blocks.*.{what}"
        for what in ("resid_post", "attn_mass", "attn_shuffled", "attn_images", "attn_few", "squares.*")
    ),
    "final",
)
"""What the lenses of the report read of the decoder together."""

TEXT_TOKENS = 64
"""Positions assumed for the text of an example: a template, a question and a short answer."""


def info(
    model: str | Path,
    *,
    batch: int = 1,
    length: int | None = None,
    images: int = 1,
    image_size: tuple[int, int] = PHOTO,
    dtype: str | None = None,
    sites: Sequence[str] = SITES,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Facts about a model as a plain dict (JSON-able): see the keys below; `render` shows them.

    model: "organism" or one of its family, a folder, a `config.json`, or a hub id. No weights are read (but the bundled
    ones): the model is built on the meta device from its configuration. batch, length (positions a row, with pictures;
    default: the pictures' tokens and 64 of text), images a row, image_size (height, width) in pixels, dtype and sites
    describe the trace whose memory is computed, by the formula of `memory.trace_memory`.
    Keys: name, family, class, model_type, parts (name, path, parameters, share), parameters, layers, vision_layers,
    hidden_size, heads, key_value_heads, head_size, vision_width, vocabulary, max_positions, attention, image_token_id,
    picture (tokens, tiles, patches, why, size), weights (bytes by dtype), trace (bytes by part, and what was traced),
    spans (label -> tokens of an example, only where there is a processor).
    Raises UserError if the model cannot be found or is of a family chiasm cannot read.
    """
    for name, value, least in (("batch", batch, 1), ("length", length, 1), ("images", images, 0)):
        if value is not None and value < least:
            raise UserError(f"{name} is {value}; it must be at least {least}")
    anatomy, processor = _open(str(model), revision, trust_remote_code)
    picture = image_tokens(anatomy, image_size, getattr(processor, "image_processor", None))
    in_sequence = picture.tokens * images if picture else 0
    length = in_sequence + TEXT_TOKENS if length is None else length
    dtype = _dtype(dtype, anatomy.model.config)
    memory = trace_memory(
        anatomy, sites, batch=batch, length=length, images=images, picture=picture if images else None, dtype=dtype
    )
    parts = part_sizes(anatomy)
    return {
        "name": str(model),
        "family": anatomy.family,
        "class": type(anatomy.model).__name__,
        "parameters": sum(part["parameters"] for part in parts),
        "parts": parts,
        "layers": anatomy.n_layers,
        "attention": {kind: anatomy.attention_kinds.count(kind) for kind in sorted(set(anatomy.attention_kinds))},
        "hidden_size": anatomy.hidden_size,
        "heads": anatomy.n_heads,
        "key_value_heads": key_value_heads(anatomy),
        "head_size": head_size(anatomy),
        "vocabulary": anatomy.vocab_size,
        "max_positions": anatomy.max_positions,
        "vision_layers": anatomy.n_vision_layers,
        "vision_width": vision_width(anatomy),
        "image_token_id": anatomy.image_token_id,
        "picture": _picture(picture, image_size),
        "weights": weight_memory(anatomy),
        "trace": {
            "batch": batch,
            "length": length,
            "images": images,
            "dtype": dtype,
            "sites": list(sites),
            "bytes": memory.as_dict(),
        },
        "spans": _example_spans(anatomy, processor, image_size) if processor is not None else None,
    }


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) of "WIDTHxHEIGHT"; UserError for anything else."""
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if found is None:
        raise UserError(f"picture size {text!r} must be WIDTHxHEIGHT in pixels, such as 640x480")
    return int(found[2]), int(found[1])


def part_sizes(anatomy: Anatomy) -> list[dict[str, Any]]:
    """Unique parameters of each part: name, path, parameters, share of all. Tied weights count where they are met first."""
    model, layout = anatomy.model, anatomy.layout
    embedding = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
    paths = {
        "projector": layout.projector,  # first, for some families keep it inside the tower
        "vision tower": layout.vision,
        "embedding": embedding,
        "decoder blocks": layout.blocks,
        "final norm": layout.norm,
        "unembedding": layout.unembed,
    }
    sizes, others = dict.fromkeys(paths, 0), {}
    for name, parameter in model.named_parameters():  # tied parameters are named once
        part = next((part for part, path in paths.items() if path and name.startswith(path + ".")), None)
        if part is None:
            others[name] = parameter.numel()
        else:
            sizes[part] += parameter.numel()
    parts = [{"name": part, "path": paths[part], "parameters": n} for part, n in sizes.items()]
    parts += [{"name": "other", "path": _common(others), "parameters": sum(others.values())}] if others else []
    total = sum(part["parameters"] for part in parts)
    return [part | {"share": part["parameters"] / total} for part in parts]


def _common(names: dict[str, int]) -> str:
    """What the names outside every part belong to, shortly: their first two components that are not `model`."""
    roots = dict.fromkeys(".".join(re.sub(r"^model\.", "", name).split(".")[:1]) for name in names)
    return ", ".join(roots)


def _picture(picture: ImageTokens | None, size: tuple[int, int]) -> dict[str, Any] | None:
    if picture is None:
        return None
    return {
        "tokens": picture.tokens,
        "tiles": picture.tiles,
        "patches": picture.patches,
        "why": picture.why,
        "size": list(size),
    }


# -- finding the model -------------------------------------------------------------------------------------------------


def _open(model: str, revision: str | None, trust_remote_code: bool) -> tuple[Anatomy, Any]:
    if re.fullmatch(r"organism(/\w+)?", model):
        from ..models import open_vlm  # the only case with weights to read: a few megabytes, in the package

        vlm = open_vlm(model)
        return vlm.anatomy, vlm.processor
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = read_config(model, **options)
    processor = None
    if Path(model).suffix != ".json":
        # Without a processor the facts are still worth having: a checkpoint folder often has none.
        with suppress(OSError, ValueError, KeyError, ImportError, TypeError, AttributeError):
            processor = AutoProcessor.from_pretrained(model, **options)
    return find_anatomy(meta_model(config, trust_remote_code=trust_remote_code)), processor


def read_config(model: str, **options: Any) -> PretrainedConfig:
    """The configuration in a `config.json`, a folder or on the hub; UserError if there is none."""
    path = Path(model)
    if not path.exists() and (path.suffix == ".json" or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model)):
        raise UserError(f"model {model!r}: there is no such file or folder")
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        raise UserError(f"model {model!r}: the folder holds an adapter; give the model that it was trained on")
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(f"model {model!r}: the folder has no config.json; give a folder written by save_pretrained")
    try:
        return AutoConfig.from_pretrained(model, **options)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        where = "read" if path.exists() else "found here or on the hub (is there a network?)"
        raise UserError(f"model {model!r}: its configuration cannot be {where}: {reason}") from error


def meta_model(config: PretrainedConfig, *, trust_remote_code: bool = False) -> nn.Module:
    """The model of a configuration, on the meta device: every shape, no memory. UserError if it is not a VLM."""
    try:
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config, trust_remote_code=trust_remote_code)
    except ValueError as error:
        raise UserError(
            f"model_type {config.model_type!r} is not a vision-language model that transformers can build; "
            "chiasm reads models of AutoModelForImageTextToText"
        ) from error


def _dtype(asked: str | None, config: PretrainedConfig) -> str:
    """The number format asked for ("fp16", "float16", …), or the one the checkpoint is stored in, if it says so."""
    found = pick_dtype(asked or "auto")
    if found == "auto":
        found = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None) or torch.float32
    return str(found).removeprefix("torch.")


def _example_spans(anatomy: Anatomy, processor: Any, size: tuple[int, int]) -> dict[str, int] | None:
    """How many positions of an example each span takes: one grey picture and a question."""
    from PIL import Image

    from ..models import open_vlm

    writer = open_vlm(model=anatomy.model, processor=processor).writer  # not `prepare`: the model may be on meta
    spans = writer([[Image.new("RGB", (size[1], size[0]), "grey")]], ["What is in the picture?"], None).spans
    return {name: n for name in spans.names if (n := int(spans.mask(name).sum()))}


# -- showing -----------------------------------------------------------------------------------------------------------


def render(facts: dict[str, Any]) -> RenderableType:
    """The facts as tables for a terminal."""
    title = Text.assemble((facts["name"], "bold"), f"  {facts['class']}, {_count(facts['parameters'])} parameters")
    blocks: list[RenderableType] = [title, _parts_table(facts), _numbers_table(facts), _memory_table(facts)]
    if facts["spans"]:
        spans = "  ".join(f"{name} {n}" for name, n in facts["spans"].items())
        blocks.append(Text(f"Positions of an example: {spans}"))
    return Group(*(item for block in blocks for item in (block, Text())))


def _parts_table(facts: dict[str, Any]) -> Table:
    table = Table("part", "where", box=None, pad_edge=False)
    table.add_column("parameters", justify="right")
    table.add_column("share", justify="right")
    for part in facts["parts"]:
        tied = part["name"] == "unembedding" and not part["parameters"]
        count = "tied" if tied else _count(part["parameters"])
        table.add_row(part["name"], part["path"], count, "" if tied else f"{part['share']:.1%}")
    return table


def _numbers_table(facts: dict[str, Any]) -> Table:
    attention = ", ".join(f"{n} {kind}" for kind, n in facts["attention"].items())
    rows = {
        "decoder": f"{facts['layers']} layers ({attention} attention), width {facts['hidden_size']}",
        "heads": f"{facts['heads']} query, {facts['key_value_heads']} key-value, of {facts['head_size']}",
        "vision": f"{facts['vision_layers']} layers, width {facts['vision_width']}",
        "vocabulary": f"{facts['vocabulary']:,}, image token {facts['image_token_id']}",
        "positions": f"{facts['max_positions']:,}" if facts["max_positions"] else "no limit in the configuration",
    }
    if picture := facts["picture"]:
        height, width = picture["size"]
        rows["a picture"] = f"{picture['tokens']:,} tokens for {width}x{height} pixels; {picture['why']}"
    else:
        rows["a picture"] = "not known for this family without its processor"
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, text in rows.items():
        table.add_row(Text(name, style="dim"), text)
    return table


def _memory_table(facts: dict[str, Any]) -> Table:
    trace, table = facts["trace"], Table(box=None, pad_edge=False, title_justify="left")
    table.title = Text("Memory, computed from shapes (not run)", style="bold")
    table.add_column("what")
    table.add_column("GiB", justify="right")
    for name, size in facts["weights"].items():
        table.add_row(f"weights in {name}", _gib(size))
    what = f"batch {trace['batch']}, {trace['length']:,} positions, {trace['dtype']}"
    labels = {
        "peak": f"to trace {', '.join(trace['sites'])}",
        "peak_generating": "to trace a generation of that length",
    }
    for name, size in trace["bytes"].items():
        table.add_row(f"[bold]{labels[name]}[/] ({what})" if name in labels else f"  trace: {name}", _gib(size))
    return table


def _count(n: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.2f} {unit}"
    return str(n)


def _gib(size: int) -> str:
    return f"{size / 2**30:.3f}" if size < 2**30 else f"{size / 2**30:.2f}"
