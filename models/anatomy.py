"""Where each VLM family keeps its parts: one table, and the model's parts found by it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from ..scenes.errors import UserError


@dataclass(frozen=True)
class Layout:
    """A row of the table: dotted module paths of one family, and how its picture enters the sequence.

    `grid` names how visual tokens lie on the picture (see `geometry.py`): "square", "anyres", "merged", "tiles", "rows"
    or "none" (query tokens without a place) and "cross" (the picture is not in the sequence). `prefix` counts the CLS or
    register tokens in front of the tower's patches.
    """

    blocks: str
    norm: str
    vision: str
    vision_blocks: tuple[str, ...]
    projector: str
    grid: str
    prefix: int = 0
    unembed: str = "lm_head"


def _llava(vision_blocks: str = "encoder.layers", projector: str = "multi_modal_projector", **rest) -> Layout:
    tower = "model.vision_tower"
    return Layout(
        blocks="model.language_model.layers",
        norm="model.language_model.norm",
        vision=tower,
        vision_blocks=(f"{tower}.{vision_blocks}",),
        projector=f"model.{projector}",
        **rest,
    )


def _qwen() -> Layout:
    return Layout(
        blocks="model.language_model.layers",
        norm="model.language_model.norm",
        vision="model.visual",
        vision_blocks=("model.visual.blocks",),
        projector="model.visual.merger",
        grid="merged",
    )


def _idefics(grid: str) -> Layout:
    return Layout(
        blocks="model.text_model.layers",
        norm="model.text_model.norm",
        vision="model.vision_model",
        vision_blocks=("model.vision_model.encoder.layers",),
        projector="model.connector",
        grid=grid,
    )


def _blip(blocks: str, norm: str) -> Layout:
    return Layout(
        blocks=blocks,
        norm=norm,
        vision="vision_model",
        vision_blocks=("vision_model.encoder.layers",),
        projector="language_projection",
        grid="none",
        prefix=1,
        unembed="language_model.lm_head",
    )


_OPT = _blip("language_model.model.decoder.layers", "language_model.model.decoder.final_layer_norm")
_LLAMA_BLIP = _blip("language_model.model.layers", "language_model.model.norm")

LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "llava": (_llava(grid="square", prefix=1),),
    "llava_next": (_llava(grid="anyres", prefix=1),),
    "llava_onevision": (_llava(grid="anyres"),),
    "instructblip": (_LLAMA_BLIP, _OPT),
    "blip-2": (_OPT, _LLAMA_BLIP),
    "qwen2_vl": (_qwen(),),
    "qwen2_5_vl": (_qwen(),),
    "qwen3_vl": (_qwen(),),
    "qwen3_5": (_qwen(),),
    "paligemma": (_llava(grid="square"),),
    "gemma3": (_llava(grid="square"),),
    "aya_vision": (_llava(grid="tiles"),),
    "idefics3": (_idefics("tiles"),),
    "smolvlm": (_idefics("tiles"),),
    "idefics2": (_idefics("none"),),
    "internvl": (_llava("encoder.layer", grid="tiles", prefix=1),),
    "mistral3": (_llava("transformer.layers", grid="rows"),),
    "mllama": (
        Layout(
            blocks="model.language_model.layers",
            norm="model.language_model.norm",
            vision="model.vision_model",
            vision_blocks=("model.vision_model.transformer.layers", "model.vision_model.global_transformer.layers"),
            projector="model.multi_modal_projector",
            grid="cross",
            prefix=1,
        ),
    ),
}
"""Keyed by `config.model_type`; several rows where a family comes with several kinds of language model."""


@dataclass(frozen=True)
class Anatomy:
    """The parts of one model. Cheap to make; works on the meta device too."""

    model: nn.Module
    family: str
    layout: Layout

    @cached_property
    def text_config(self):
        return self.model.config.get_text_config()

    @cached_property
    def vision_config(self):
        return getattr(self.model.config, "vision_config", None)

    @cached_property
    def blocks(self) -> nn.ModuleList:
        """The decoder layers; every one outputs the residual stream (B, T, D)."""
        return self.model.get_submodule(self.layout.blocks)

    @cached_property
    def decoder(self) -> nn.Module:
        """The module that holds the blocks: it is handed embeddings, mask and cache, and hands the blocks on to the norm."""
        return self.model.get_submodule(self.layout.blocks.rpartition(".")[0])

    @cached_property
    def vision_blocks(self) -> list[nn.Module]:
        """The vision tower's layers in order (Mllama: local layers, then global ones)."""
        return [block for path in self.layout.vision_blocks for block in self.model.get_submodule(path)]

    @cached_property
    def projector(self) -> nn.Module:
        return self.model.get_submodule(self.layout.projector)

    @cached_property
    def norm(self) -> nn.Module:
        """The final norm, between the last block and the unembedding (identity where a model has none)."""
        return self.model.get_submodule(self.layout.norm) if self.layout.norm else nn.Identity()

    @cached_property
    def unembedding(self) -> nn.Module:
        return self.model.get_submodule(self.layout.unembed)

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def n_vision_layers(self) -> int:
        return len(self.vision_blocks)

    @property
    def hidden_size(self) -> int:
        return self.text_config.hidden_size

    @property
    def n_heads(self) -> int:
        return self.text_config.num_attention_heads

    @property
    def vocab_size(self) -> int:
        return self.unembedding.weight.shape[0]

    @property
    def image_token_id(self) -> int:
        return self.model.config.image_token_id

    @cached_property
    def max_positions(self) -> int | None:
        return getattr(self.text_config, "max_position_embeddings", None)

    @cached_property
    def attention_kinds(self) -> tuple[str, ...]:
        """What each decoder layer does between tokens: "full", "sliding", "linear" or "cross" (to the picture)."""
        types = getattr(self.text_config, "layer_types", None) or [""] * self.n_layers
        kinds = []
        for block, kind in zip(self.blocks, types, strict=False):
            if hasattr(block, "cross_attn"):
                kinds.append("cross")
            elif not hasattr(block, "self_attn"):
                kinds.append("linear")
            else:
                kinds.append("sliding" if "sliding" in kind else "full")
        return tuple(kinds)

    @property
    def image_in_sequence(self) -> bool:
        return self.layout.grid != "cross"

    def attention(self, layer: int) -> nn.Module | None:
        """The module whose softmax mixes tokens in this layer, or None for a linear-attention layer."""
        block = self.blocks[layer]
        return getattr(block, "self_attn", None) or getattr(block, "cross_attn", None)

    def unembed(self, normed: Tensor) -> Tensor:
        """Logits (..., V) of final-normed states (..., D). No family in the table scales or caps them behind this."""
        weight = self.unembedding.weight
        return self.unembedding(normed.to(weight.device, weight.dtype))

    def check_layer(self, layer: int, *, vision: bool = False) -> int:
        """The layer as a non-negative number, or a clear refusal."""
        n, what = (self.n_vision_layers, "vision") if vision else (self.n_layers, "decoder")
        if not -n <= layer < n:
            raise UserError(f"layer {layer} is outside this model's 0..{n - 1} ({self.family} has {n} {what} layers)")
        return layer % n

    @property
    def merge(self) -> int:
        """How many patches a side go into one visual token (pixel shuffle, patch merger, average pooling)."""
        config, vision = self.model.config, self.vision_config
        for value in (
            getattr(config, "scale_factor", None),
            getattr(config, "spatial_merge_size", None),
            getattr(config, "downsample_factor", None),
            getattr(vision, "spatial_merge_size", None),
        ):
            if value:
                return int(value)
        if ratio := getattr(config, "downsample_ratio", None):
            return round(1 / ratio)
        if pooled := getattr(config, "mm_tokens_per_image", None):
            return first(vision.image_size) // first(vision.patch_size) // math.isqrt(pooled)
        return 1


def first(value) -> int:
    """Sizes come as an int or as (height, width)."""
    return int(value[0]) if isinstance(value, list | tuple) else int(value)


def _has(model: nn.Module, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


def missing_parts(model: nn.Module, layout: Layout) -> list[str]:
    """The paths of a layout that this model does not have."""
    paths = [layout.blocks, layout.norm, layout.vision, *layout.vision_blocks, layout.projector, layout.unembed]
    return [path for path in paths if path and not _has(model, path)]


def find_anatomy(model: nn.Module) -> Anatomy:
    """The anatomy of a Hugging Face VLM: from the table, else by a checked structural search.

    Raises UserError when the family is in neither, saying what was looked for.
    """
    from .search import search_layout  # only for families outside the table

    inner = unwrapped(model)
    family = getattr(getattr(inner, "config", None), "model_type", None)
    if family is None:
        raise UserError(
            f"{type(model).__name__} is not a Hugging Face model (it has no config.model_type): "
            "pass the result of AutoModelForImageTextToText.from_pretrained"
        )
    for layout in LAYOUTS.get(family, ()):
        if not missing_parts(inner, layout):
            return Anatomy(inner, family, layout)
    return Anatomy(inner, family, search_layout(inner))


def unwrapped(model: nn.Module) -> nn.Module:
    """The Hugging Face model inside a PEFT wrapper, if there is one; adapters stay active in its layers."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
