"""Opening a model: the bundled organism, a folder, a hub id, or objects that exist already."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ..scenes.errors import UserError
from .vlm import VLM

_DTYPES = {
    "float32": torch.float32, "fp32": torch.float32, "float16": torch.float16, "fp16": torch.float16,
    "bfloat16": torch.bfloat16, "bf16": torch.bfloat16, "auto": "auto",
}  # fmt: skip


def open_vlm(
    source: str | Path | None = None,
    *,
    model=None,
    processor=None,
    adapter: str | Path | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    device_map=None,
    quantization_config=None,
) -> VLM:
    """Opens a vision-language model for study.

    source: "organism" or "organism/<member>", a Hugging Face folder, or a hub id; or pass `model=` (and `processor=`) that
    are built already. adapter: a PEFT adapter's folder or hub id, or a tuning run's folder. dtype: "auto" (the checkpoint's, the default on an
    accelerator), "fp32" (the default on CPU), "bf16", "fp16". device: default CUDA, then MPS, then CPU; `device_map` and
    `quantization_config` go to transformers as they are. Raises UserError, one line, when it cannot be opened.
    """
    if (source is None) == (model is None):
        raise UserError("open_vlm needs either a source ('organism', a folder, a hub id) or model=, not both")
    if model is None:
        where = pick_device(device)
        asked = {"processor": processor, "revision": revision, "trust_remote_code": trust_remote_code}
        if str(source).split("/")[0] == "organism":  # a folder of that name is written ./organism
            from .organism import load_organism

            model, processor = load_organism(str(source).partition("/")[2] or "tuned")
            model = model.to(where, pick_dtype(dtype or "fp32"))
        else:
            kwargs = {"dtype": pick_dtype(dtype or ("fp32" if where.type == "cpu" else "auto"))}
            if device_map is not None or quantization_config is not None:
                kwargs |= {"device_map": device_map or {"": str(where)}, "quantization_config": quantization_config}
            model, processor = _load(str(source), kwargs, **asked)
            if "device_map" not in kwargs:
                model = model.to(where)
    elif device is not None:
        model = model.to(pick_device(device))
    if adapter is not None:
        model = _with_adapter(model, str(adapter))
    if processor is not None:
        check_processor(model, processor)
    return VLM(model, processor, name=str(source) if source else None, revision=revision)


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or the best there is; UserError for one that is not there."""
    if device is None:
        cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        device = torch.device(device)
    except RuntimeError:
        raise UserError(f"device {device!r} is not known: use cpu, cuda, cuda:1 or mps") from None
    there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1, "meta": 1}
    if (device.index or 0) >= there.get(device.type, 0):
        found = [f"{n} {kind}" for kind, n in there.items() if n and kind != "meta"]
        raise UserError(f"device {str(device)!r} is not on this machine (it has {', '.join(found)}): use --device cpu")
    return device


def pick_dtype(dtype: str | torch.dtype) -> torch.dtype | str:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in _DTYPES:
        raise UserError(f"dtype {dtype!r} is not known: use one of {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


def _load(source: str, kwargs: dict, *, processor, revision: str | None, trust_remote_code: bool):
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    folder = Path(source)
    hub = {"revision": revision, "trust_remote_code": trust_remote_code}
    if folder.is_dir():
        _check_folder(folder)
    elif folder.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise UserError(
            f"model {source!r} is not a folder: give 'organism', a Hugging Face model folder, or a hub id 'owner/name'"
        )
    try:
        config = AutoConfig.from_pretrained(source, **hub)
        if type(config) not in AutoModelForImageTextToText._model_mapping and not trust_remote_code:
            raise UserError(
                f"model {source!r} ({config.model_type}) is not an image-text-to-text model that transformers knows: "
                "open a vision-language model"
            )
        model = AutoModelForImageTextToText.from_pretrained(source, config=config, **hub, **kwargs)
        if processor is None:
            processor = AutoProcessor.from_pretrained(source, **hub)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(_why(source, folder.is_dir(), error)) from error
    return model, processor


def _check_folder(folder: Path) -> None:
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"model folder {str(folder)!r} has no config.json: give a folder written by save_pretrained")
    try:
        json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{str(config)!r} is not JSON ({error}): fetch the model again") from error


def _why(source: str, local: bool, error: Exception) -> str:
    text = " ".join(str(error).split())[:240]
    if local:
        return f"model folder {source!r} cannot be opened: {text}"
    return (
        f"model {source!r} is neither 'organism', nor a folder here, nor could it be fetched from the hub "
        f"(no network, offline mode, or no such id): {text}"
    )


def _with_adapter(model, adapter: str):
    from peft import PeftModel
    from safetensors import SafetensorError

    inside = Path(adapter) / "adapter"  # of a run of `chiasm tune`
    try:
        return PeftModel.from_pretrained(model, str(inside) if inside.is_dir() else adapter)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        text = " ".join(str(error).split())[:240]
        raise UserError(f"adapter {adapter!r} cannot be put on this {model.config.model_type}: {text}") from error


def check_processor(model, processor) -> None:
    """Refuses a processor that does not belong to the model: image token, vocabulary, picture size, patch size."""
    config, tokenizer = model.config, getattr(processor, "tokenizer", processor)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UserError(
            f"the processor's tokenizer has {len(tokenizer)} tokens, the model embeds {rows}: use the model's own processor"
        )
    wanted = getattr(config, "image_token_id", None)
    theirs = {getattr(processor, "image_token_id", None), getattr(tokenizer, "image_token_id", None)} - {None}
    if (
        wanted is not None and theirs and wanted not in theirs
    ):  # Gemma3's processor names the token that opens a picture
        raise UserError(
            f"the processor's image token has id {min(theirs)}, the model expects {wanted}: use the model's own processor"
        )
    patch = getattr(processor, "patch_size", None)
    tower = getattr(getattr(config, "vision_config", None), "patch_size", None)
    merge = getattr(config, "downsample_factor", None) or 1  # Aya's processor counts merged patches
    if isinstance(patch, int) and isinstance(tower, int) and patch not in (tower, tower * merge):
        raise UserError(
            f"the processor counts patches of {patch} pixels, the model's tower has {tower}: use the model's own processor"
        )
