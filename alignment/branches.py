"""One forward pass over all branches of a batch, in one of three layouts that give the same per-token outputs.

"rows": every row by itself. "features": every row by itself, each distinct picture encoded once. "prefix": both answers behind
one picture and prompt (see `shared_prefix`). The last two take a batch with distinct images.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from trl.trainer.utils import FusedCausalLMOutput

from ..models.anatomy import Anatomy
from ..scenes.errors import UserError
from .collator import REFERENCE_COLUMNS, TOKEN_KEYS
from .shared_prefix import pack, row_positions

LAYOUTS = ("rows", "features", "prefix")
PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
_ROW_KEYS = ("input_ids", "attention_mask", *TOKEN_KEYS)
_NOT_FOR_THE_MODEL = ("completion_mask", "branch", "labels", *REFERENCE_COLUMNS)


def forward_rows(model, anatomy: Anatomy, batch: dict[str, Tensor], layout: str, **options) -> FusedCausalLMOutput:
    """Per-token outputs (rows, T-1) of every row of the batch, 0 where nothing is scored, by one call of the model.

    model: with TRL's fused head, wrapped or not; anatomy: its own. options go to the model.
    """
    labels = batch["labels"]
    kwargs = {name: value for name, value in batch.items() if name not in _NOT_FOR_THE_MODEL}
    options |= {"use_cache": False, "fused_lm_head": True}
    if layout == "prefix":
        packed = pack(batch, row_positions(anatomy, batch), _mask_dtype(anatomy, labels.device))
        tensors = dict(packed.tensors)
        labels = tensors.pop("labels")
        output = model(**kwargs | tensors, labels=labels, **options)
        values = {name: output[name] for name in PER_TOKEN if output.get(name) is not None}
        return FusedCausalLMOutput(**{name: packed.unpack(value) for name, value in values.items()})
    if layout == "features":
        kwargs = _with_features(anatomy, kwargs, int(batch["branch"].max()) + 1)
    return model(**kwargs, labels=labels, **options)


def plain_logits(model, batch: dict[str, Tensor]) -> Tensor:
    """Logits (rows, T, V) of a batch without distinct images, by the model's own head."""
    kwargs = {name: value for name, value in batch.items() if name not in _NOT_FOR_THE_MODEL}
    return model(**kwargs, use_cache=False).logits[:, -batch["labels"].shape[1] :]


def first_rows(output: FusedCausalLMOutput, rows: int) -> FusedCausalLMOutput:
    """The output cut to its first rows; what is not per row (the auxiliary loss of a mixture) stays."""
    return FusedCausalLMOutput(
        **{k: v[:rows] if torch.is_tensor(v) and v.ndim else v for k, v in output.items() if v is not None}
    )


def row_sums(output: FusedCausalLMOutput, inputs) -> Tensor:
    """(rows,) log-probabilities. Prompt learning puts outputs in front: the last ones are those of the rows."""
    return output.log_probs[:, -(inputs["labels"].shape[1] - 1) :].sum(1)


def check_branches(batch: dict[str, Tensor]) -> int:
    """The number of branches, 2 or 3. Raises UserError for rows that another collator made."""
    branch, rows = batch.get("branch"), len(batch["input_ids"])
    if branch is not None:
        branches = int(branch.max()) + 1
        if branches in (2, 3) and rows % branches == 0:
            expected = torch.arange(branches, device=branch.device).repeat_interleave(rows // branches)
            if torch.equal(branch, expected):
                return branches
    raise UserError(
        f"this batch of {rows} rows is not in the order chosen, rejected, chosen under the rejected image: use "
        "VisualPreferenceCollator (a stock collator makes two branches only)"
    )


def why_no_features(anatomy: Anatomy) -> str | None:
    """The reason why this model cannot be handed ready picture features, or None if it can."""
    if "mm_encoder_outputs" not in inspect.signature(anatomy.model.base_model.forward).parameters:
        return f"{anatomy.family} does not take ready picture features"
    return None


def _with_features(anatomy: Anatomy, kwargs: dict[str, Tensor], branches: int) -> dict:
    encode = anatomy.model.base_model.get_image_features
    takes = inspect.signature(encode).parameters
    pictures = {name: value for name, value in kwargs.items() if name not in _ROW_KEYS}
    kwargs = {name: value for name, value in kwargs.items() if name in _ROW_KEYS}
    features = encode(**{k: v for k, v in pictures.items() if k in takes}, return_dict=True).pooler_output
    kwargs |= {name: _repeat(grid, branches) for name, grid in pictures.items() if name.endswith("grid_thw")}
    output = BaseModelOutputWithPooling(pooler_output=_repeat(features, branches))
    return kwargs | {"mm_encoder_outputs": {"image": output}}


def _repeat(values, branches: int):
    """Items of N images and N rejected images as those of three branches; of N images as those of two."""
    half = len(values) // 2 if branches == 3 else len(values)
    parts = [values[:half], values[:half], values[half:]]
    return torch.cat(parts) if torch.is_tensor(values) else [item for part in parts for item in part]


def _mask_dtype(anatomy: Anatomy, device: torch.device) -> torch.dtype:
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return anatomy.model.dtype
