"""Wings: a visual and a textual learner beside every attention layer of a decoder, and a router that blends them.

Source: Zhang et al., "Wings: Learning Multimodal LLMs without Text-only Forgetting" (arXiv 2406.03496), section 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot, pad, rms_norm, silu

from ..models.anatomy import Anatomy
from ..models.attention import Call
from ..models.inputs import marker_ids
from ..scenes.errors import UserError
from .learners import LoRRA
from .parts import load_weights, part_settings, save_part
from .wing_hooks import attached
from .wing_pass import SEGMENTS, WingPass

KIND = "wings"
ROUTERS = ("spans", "positions", None)


@dataclass(frozen=True)
class WingsConfig:
    """rank: of the learners. visual, textual: which there are (the released recipe trains the visual one alone first).
    router: what the weights of the two depend on. "spans": the attention the layer gives to sink, system, text before,
    text after and picture, mean over heads; "positions": to each of the first `width` positions, sum over heads, as released;
    None where there is one learner. normalised: learners are asked with the stream at unit RMS, else with the raw stream.
    legacy_mask: the released mask, by which the textual learner sees text to come. legacy_sum: the released sum, which adds
    the blend twice. layers: numbers of decoder layers, None for all that attend by a softmax over the sequence."""

    rank: int = 64
    visual: bool = True
    textual: bool = True
    router: str | None = "spans"
    width: int = 4096
    normalised: bool = True
    legacy_mask: bool = False
    legacy_sum: bool = False
    layers: tuple[int, ...] | None = None

    def __post_init__(self):
        if not self.visual and not self.textual:
            raise UserError("visual=False, textual=False leaves no learner: keep one of them")
        if self.router not in ROUTERS:
            raise UserError(f"router={self.router!r}: give 'spans', 'positions' or None")
        if (self.router is not None) != (self.visual and self.textual):
            raise UserError(
                f"router={self.router!r} with visual={self.visual}, textual={self.textual}: two learners need a router, "
                "one is added as it is (router=None)"
            )

    @classmethod
    def released(cls, **changes) -> WingsConfig:
        """As the published code computes it, faults included."""
        return cls(**{"router": "positions", "normalised": False, "legacy_mask": True, "legacy_sum": True} | changes)


class Router(nn.Module):
    """Weights of the visual and the textual learner, from the attention of the layer they stand beside.

    A linear map of attention is attention with the map's columns as values, so any attention kernel computes it.
    """

    def __init__(self, config: WingsConfig):
        super().__init__()
        self.by_span = config.router == "spans"
        self.linear = nn.Linear(SEGMENTS if self.by_span else config.width, 2)

    def forward(self, call: Call, now: WingPass) -> Tensor:
        """(B, Tq, 2), positive, sum 1. Raises UserError for a sequence beyond the positions it has."""
        weight = self.linear.weight
        if self.by_span:
            columns = one_hot(now.segments.to(weight.device) + 1, SEGMENTS + 1)[..., 1:].to(weight) @ weight.T
        else:
            places = now.positions.to(weight.device).clamp(min=0)
            if int(places.max()) >= weight.shape[1]:
                raise UserError(
                    f"{int(places.max()) + 1} positions are more than the router's {weight.shape[1]}: shorten the prompt, or "
                    'use router="spans", which takes any length'
                )
            columns = weight.T[places]
        mass = call.mass(_at_keys(columns, call.key.shape[2]))
        read = mass.mean(1) if self.by_span else mass.sum(1)
        return silu(read + self.linear.bias).softmax(-1)


def _at_keys(columns: Tensor, n: int) -> Tensor:
    """Columns (B, T, 2) at the n keys that a layer has: a window has forgotten the first, a static cache has room behind."""
    return columns[:, -n:] if n <= columns.shape[1] else pad(columns, (0, 0, 0, n - columns.shape[1]))


class Wings(nn.Module):
    """The learners and routers of one model. Nothing of the model is in it, and the model is changed only while attached:

        wings = Wings(vlm)                        # begins as nothing: the model's outputs are what they were
        with wings.attached(vlm):
            loss = vlm.forward(inputs, labels=labels).loss

    After self-attention's residual add, h = h + w_visual * visual(h) + w_textual * textual(h); a row without a picture
    gets its textual learner with weight 1, as does one learner alone. Keys of both are the decoder's input embeddings:
    the picture's features, seen by every query, and the text's, seen from their own position on. In a layer whose
    feed-forward runs beside attention (Cohere) the sum reaches the stream and not this feed-forward.
    """

    def __init__(self, vlm, config: WingsConfig | None = None):
        """Raises UserError for a model whose pictures are not in the sequence, and for layers without such attention."""
        super().__init__()
        self.config = config = config or WingsConfig()
        anatomy: Anatomy = vlm.anatomy
        if not anatomy.image_in_sequence:
            raise UserError(
                f"{anatomy.family} keeps its picture out of the sequence: learners need a decoder-only family"
            )
        fit = [i for i, kind in enumerate(anatomy.attention_kinds) if kind in ("full", "sliding")]
        layers = fit if config.layers is None else [anatomy.check_layer(i) for i in config.layers]
        if refused := [i for i in layers if i not in fit]:
            raise UserError(
                f"layer {refused[0]} attends by {anatomy.attention_kinds[refused[0]]} attention: choose among {fit}"
            )
        self.layers = tuple(layers)
        self.sizes = sizes_of(anatomy)
        theta = rope_theta(anatomy.text_config)
        names = [name for name in ("visual", "textual") if getattr(config, name)]
        self.learners = nn.ModuleDict()
        for i in layers:
            parts = {name: LoRRA(anatomy.hidden_size, anatomy.n_heads, config.rank, theta) for name in names}
            if config.router is not None:
                parts["router"] = Router(config)
            device = next(anatomy.blocks[i].parameters()).device
            self.learners[str(i)] = nn.ModuleDict(parts).to("cpu" if device.type == "meta" else device)

    @contextmanager
    def attached(self, vlm) -> Iterator[Wings]:
        """While open, the passes that this thread makes through the model (forward, generate, trace, training) go through
        the learners. What each position is, is taken from the pass where `vlm` makes it, else found from `input_ids`, by
        which a system part cannot be told. Gradient checkpointing is refused: it makes passes of its own."""
        self.check_sizes(vlm.anatomy)
        with attached(self, vlm.anatomy, markers_of(vlm)):
            yield self

    def check_sizes(self, anatomy: Anatomy) -> None:
        """Raises UserError for a model of other sizes than the one these are of."""
        if (sizes := sizes_of(anatomy)) != self.sizes:
            raise UserError(
                f"these wings are of a model with {self.sizes}, not {sizes}: attach them to the model they were made for"
            )

    def blend(self, layer: int, stream: Tensor, now: WingPass, weights: Tensor | None) -> Tensor:
        """(B, Tq, D) what is added to the stream (B, Tq, D) after a layer's attention; weights (B, Tq, 2) of its router."""
        parts = self.learners[str(layer)]
        dtype, device = next(parts.parameters()).dtype, stream.device
        query = stream.to(dtype)
        if self.config.normalised:
            query = rms_norm(query, query.shape[-1:])
        places = now.positions.to(device)
        given = (query, now.features.to(device, dtype), places[:, -now.length :], places)
        outs = []
        if self.config.visual:
            outs.append(parts["visual"](*given, now.visual.to(device)))
        if self.config.textual:
            outs.append(parts["textual"](*given, now.textual.to(device)))
        if weights is not None:
            alone = weights.new_tensor([0.0, 1.0])
            weights = torch.where(now.pictured.to(device)[:, None, None], weights, alone).to(dtype)
            outs = [weight * out for weight, out in zip(weights.split(1, -1), outs, strict=True)]
        return sum(outs) * (2 if self.config.legacy_sum else 1)

    def save(self, folder: str | Path) -> Path:
        """Writes weights (safetensors) and settings (JSON) into a folder, without the model."""
        return save_part(self, folder, {"kind": KIND, **self.sizes, "config": asdict(self.config)})

    @classmethod
    def load(cls, folder: str | Path, vlm) -> Wings:
        """What `save` wrote, for the model it was made for. Raises UserError where it does not fit."""
        config = part_settings(folder, KIND)["config"]
        layers = config["layers"]
        wings = cls(vlm, WingsConfig(**config | {"layers": None if layers is None else tuple(layers)}))
        load_weights(wings, folder)
        return wings


def markers_of(vlm) -> dict:
    """Ids of the tokens that belong to a picture, as the model's tokenizer has them."""
    return marker_ids(vlm.writer.tokenizer if vlm.writer else None, vlm.anatomy)


def sizes_of(anatomy: Anatomy) -> dict[str, int]:
    """What learners have to fit."""
    return {"hidden_size": anatomy.hidden_size, "num_heads": anatomy.n_heads, "n_layers": anatomy.n_layers}


def rope_theta(text_config) -> float:
    """The base of the language model's rotary embedding, without scaling; 10 000 for a model without one. Where layers
    have their own, that of full attention."""
    settings = getattr(text_config, "rope_parameters", None) or {}
    settings = settings.get("full_attention", settings)
    return float(settings.get("rope_theta") or getattr(text_config, "rope_theta", None) or 10_000.0)
