"""Pictures as vectors, to find similar ones: by the model's own vision tower, by any encoder of a name, or by scene graph."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from ..scenes.claims import facts
from ..scenes.errors import UserError

GRAPH_DIMS = 1024


class Encoder(Protocol):
    """name: with what decides the vectors (weights, preprocessing). A call gives (N, D) vectors of any length, on the CPU."""

    name: str

    def __call__(self, images: Sequence[Image.Image], truths: Sequence[Any] = ()) -> Tensor: ...


class _Seen(Exception):
    """The tower is through; what comes after it is not needed."""


class Tower:
    """The VLM's own vision tower: the mean of the patch features that the projector reads: what the language
    model gets to see, before the projector. The decoder does not run."""

    def __init__(self, vlm):
        self.vlm, self.name = vlm, f"tower:{vlm.fingerprint()}"

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], truths: Sequence[Any] = ()) -> Tensor:
        # One grid for all pictures: a batch splits evenly. Else the tokens of several pictures run into one another.
        size = len(images) if self.vlm.anatomy.layout.grid == "square" else 1
        return torch.cat([self._batch(images[i : i + size]) for i in range(0, len(images), size)])

    def _batch(self, images: Sequence[Image.Image]) -> Tensor:
        seen: list[Tensor] = []

        def stop(_module, args, kwargs):
            states = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            seen.append(states.float().reshape(len(images), -1, states.shape[-1]).mean(1).cpu())
            raise _Seen

        handle = self.vlm.anatomy.projector.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self.vlm.forward(self.vlm.prepare([[image.convert("RGB")] for image in images], ["?"] * len(images)))
        except _Seen:
            pass
        finally:
            handle.remove()
        if not seen:
            raise UserError(f"the projector of {self.vlm.name} was not reached: give --encoder a model's name")
        return seen[0]


class NamedEncoder:
    """Any Hugging Face vision model: CLIP's and SigLIP's image embedding, of others the pooled output or the mean of the patches.

    Raises UserError, one line, for a model that cannot be loaded or is no vision model.
    """

    def __init__(self, source: str, *, device: str | torch.device | None = None, revision: str | None = None):
        from transformers import AutoImageProcessor, AutoModel

        where = {"revision": revision, "trust_remote_code": False}
        try:
            self.model = AutoModel.from_pretrained(source, dtype=torch.float32, **where).eval().to(device or "cpu")
            self.processor = AutoImageProcessor.from_pretrained(source, **where)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"encoder {source!r} cannot be loaded ({reason}): use 'tower', 'graph' (scenes only), or the folder or hub id "
                "of a CLIP, SigLIP or other vision model"
            ) from error
        if not hasattr(self.model, "get_image_features") and self.model.main_input_name != "pixel_values":
            raise UserError(
                f"encoder {source!r} takes no pictures: give a vision model, such as openai/clip-vit-large-patch14"
            )
        digest = hashlib.sha256(repr(sorted(self.processor.to_dict().items())).encode())
        for key, value in sorted(self.model.state_dict().items()):
            some = value.reshape(-1)[:: max(1, value.numel() // 4096)].cpu().contiguous()
            digest.update(key.encode() + some.view(torch.uint8).numpy().tobytes())
        self.name = f"{source}:{digest.hexdigest()[:16]}"

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], truths: Sequence[Any] = ()) -> Tensor:
        tensors = self.processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
        pixels = tensors["pixel_values"].to(next(self.model.parameters()).device)
        if hasattr(self.model, "get_image_features"):
            out = self.model.get_image_features(pixel_values=pixels)
            out = out if isinstance(out, Tensor) else out.pooler_output
        else:
            found = self.model(pixel_values=pixels)
            pooled = getattr(found, "pooler_output", None)
            out = found.last_hidden_state.flatten(2).mean(-1) if found.last_hidden_state.ndim == 4 else pooled
            out = found.last_hidden_state.mean(1) if out is None else out
        return out.float().reshape(len(images), -1).cpu()


class SceneGraph:
    """No model: a scene's facts, each in a place of its own (hashed), so that near scenes are alike. For rendered scenes only."""

    name = "graph"

    def __call__(self, images: Sequence[Image.Image], truths: Sequence[Any] = ()) -> Tensor:
        rows = torch.zeros(len(images), GRAPH_DIMS)
        for row, truth in zip(rows, truths or [{}] * len(images), strict=True):
            if "scene" not in truth:
                raise UserError("encoder 'graph' needs rendered scenes: use 'tower' or a model's name")
            for fact, count in facts(truth["scene"]).items():
                row[int.from_bytes(hashlib.sha256(repr(fact).encode()).digest()[:4], "little") % GRAPH_DIMS] += count
        return rows


def open_encoder(name: str, vlm=None, *, device=None) -> Encoder:
    """ "tower" (of the VLM), "graph", or a model's folder or hub id. Raises UserError."""
    if name == "graph":
        return SceneGraph()
    if name == "tower":
        if vlm is None:
            raise UserError("encoder 'tower' needs a model: give one, or use 'graph' or the name of an encoder")
        return Tower(vlm)
    return NamedEncoder(name, device=device)
