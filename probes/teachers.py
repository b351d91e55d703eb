"""A vision model as teacher: its depth, classes or features of a picture, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..scenes.errors import UserError
from ..scenes.sample import Sample
from .boxes import box_means, scaled
from .files import write_whole

DIMS = 64
"""Principal components of a teacher's features that are to be predicted."""


class Teacher:
    """Any Hugging Face vision model as a target: a depth estimator gives depth, a segmenter shares of its classes, any other
    model the features of its patches (of CLIP and its kind the vision tower's).

    The whole picture is shown, squashed to the size the model was made for and not cropped, so that places agree; pictures
    are RGB. Features are many: `fit` reduces them to principal components. What the model says of a picture is kept in
    `cache`, one file a picture in fp16, named by the picture's content, the weights and the preprocessing.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        cache: str | Path | None = None,
        device: str | torch.device | None = None,
        revision: str | None = None,
        name: str | None = None,
    ):
        """source: a folder or a hub id. cache: a folder, or None to compute everything anew. Raises UserError, one line,
        for a model that cannot be loaded or is no vision model."""
        self.source, self.name = str(source), name or Path(str(source)).name
        self._model, self._processor, self.kind = _load(self.source, revision)
        self._model = self._model.eval().to(device or "cpu")
        self._settings = whole_picture(self._processor)
        self.told = self._identity()
        self.cache = None if cache is None else Path(cache) / self.told
        self.classes = self.kind == "classes"
        self._basis: tuple[Tensor, Tensor] | None = None
        self.retained = 1.0
        """Share of the features' variance that the outputs hold."""
        try:
            self.labels = self._labels(len(self._compute(Image.new("RGB", (64, 64), "grey"))))
        except (ValueError, TypeError, RuntimeError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"teacher {self.source!r} cannot look at a picture ({reason}): give another model"
            ) from error

    def at(self, sample: Sample, picture: int, boxes: Tensor) -> Tensor | None:
        image = sample.images[picture]
        maps = self.maps(image)
        found = box_means(maps, scaled(boxes.to(maps.device), image.size, maps))
        if self._basis is not None:
            mean, basis = self._basis
            found = (found - mean) @ basis
        return found

    def fit(self, samples: Iterable[Sample], dims: int = DIMS) -> Teacher:
        """Reduces features to their first principal components over these samples' pictures (a few dozen are enough).

        Does nothing for depth, classes, and teachers with no more features than that. Raises UserError without a picture.
        """
        if self.kind != "features" or len(self.labels) <= dims:
            return self
        rows = [self.maps(image).flatten(1).T.double() for sample in samples for image in sample.images]
        if not rows:
            raise UserError(f"teacher {self.source!r} cannot be fitted: none of the samples has a picture")
        values = torch.cat(rows)
        mean = values.mean(0)
        spread, vectors = torch.linalg.eigh((values - mean).T @ (values - mean))
        self._basis = mean.float(), vectors[:, -dims:].flip(1).float()
        self.retained = float(spread[-dims:].sum() / spread.sum().clamp(min=1e-30))
        self.labels = self._labels(dims)
        self.told = f"{self.told}, {dims} components"
        return self

    def maps(self, image: Image.Image) -> Tensor:
        """(M, h, w) fp32 over the whole picture, from the cache where it is there."""
        image = image.convert("RGB")
        if self.cache is None:
            return self._compute(image).half().float()  # as it would come back from the cache
        content = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()[:32]
        path = self.cache / f"{content}.safetensors"
        if path.exists():
            try:
                with safe_open(path, framework="pt") as file:
                    return file.get_tensor("maps").float()
            except (SafetensorError, OSError):  # damaged from outside: made again below
                pass
        maps = self._compute(image).half()
        write_whole(path, save({"maps": maps.contiguous()}))
        return maps.float()

    @torch.no_grad()
    def _compute(self, image: Image.Image) -> Tensor:
        tensors = self._processor(images=image, return_tensors="pt", **self._settings)
        parameter = next(self._model.parameters())
        out = self._model(pixel_values=tensors["pixel_values"].to(parameter.device, parameter.dtype))
        if self.kind == "depth":
            maps = out.predicted_depth[0].float()
            maps = maps.reshape(1, *maps.shape[-2:])
        elif self.kind == "classes":
            maps = _class_shares(out)
        else:
            maps = self._grid(out.last_hidden_state[0].float(), tensors["pixel_values"].shape)
        if not torch.isfinite(maps).all():
            raise UserError(
                f"teacher {self.source!r} gives values that are not finite: check its weights, or use another"
            )
        return maps.cpu()

    def _grid(self, states: Tensor, shape: torch.Size) -> Tensor:
        """Features (C, h, w) from states (N, C) with CLS and register tokens in front, or from (C, h, w)."""
        if states.ndim == 3:
            return states
        config, (height, width) = self._model.config, shape[-2:]
        patch = getattr(config, "patch_size", None)
        if isinstance(patch, int) and len(states) >= (n := (height // patch) * (width // patch)):
            return states[len(states) - n :].T.reshape(-1, height // patch, width // patch)
        side = math.isqrt(len(states))
        if side * side != len(states):
            raise UserError(
                f"teacher {self.source!r} gives {len(states)} tokens that lie on no known grid: use a model with square patches"
            )
        return states.T.reshape(-1, side, side)

    def _labels(self, n: int) -> tuple[str, ...]:
        if self.kind == "depth":
            return ("depth",)
        names = getattr(self._model.config, "id2label", {}) if self.kind == "classes" else {}
        return tuple(str(names.get(i, i)) for i in range(n))

    def _identity(self) -> str:
        digest = hashlib.sha256()
        for name, value in sorted(self._model.state_dict().items()):
            flat = value.detach().reshape(-1)
            some = flat[:: max(1, flat.numel() // 4096)].cpu().contiguous()
            digest.update(
                f"{name}{tuple(value.shape)}{value.dtype}".encode() + some.view(torch.uint8).numpy().tobytes()
            )
        settings = json.dumps(self._processor.to_dict() | self._settings, sort_keys=True, default=str)
        return f"{self.kind}-{hashlib.sha256(digest.digest() + settings.encode()).hexdigest()[:16]}"


def whole_picture(processor) -> dict:
    """What to ask of an image processor so that it shows the whole picture: no crop, but its size as the size."""
    crop = getattr(processor, "crop_size", None)
    if not getattr(processor, "do_center_crop", False) or not crop:
        return {}
    crop = dict(crop)
    return {"do_center_crop": False, "do_resize": True, "size": {"height": crop["height"], "width": crop["width"]}}


def _class_shares(out) -> Tensor:
    """(classes, h, w) probabilities, from logits by pixel or from masks that are classified (MaskFormer and its kin)."""
    if hasattr(out, "logits"):
        return out.logits[0].float().softmax(0)
    classes = out.class_queries_logits[0].float().softmax(-1)[:, :-1]
    maps = torch.einsum("qc,qhw->chw", classes, out.masks_queries_logits[0].float().sigmoid())
    return maps / maps.sum(0).clamp(min=1e-12)


def _load(source: str, revision: str | None):
    """(model, image processor, kind): the head a checkpoint was saved with decides what it teaches."""
    import transformers as hf
    from transformers.models.auto import modeling_auto as known

    heads = (
        ("depth", "AutoModelForDepthEstimation", known.MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES),
        ("classes", "AutoModelForSemanticSegmentation", known.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES),
        ("classes", "AutoModelForUniversalSegmentation", known.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES),
    )
    where = {"revision": revision, "trust_remote_code": False}
    try:
        config = hf.AutoConfig.from_pretrained(source, **where)
        saved = set(getattr(config, "architectures", None) or ())
        kind, loader = "features", "AutoModel"
        for one, auto, names in heads:
            if saved & {names.get(config.model_type)}:
                kind, loader = one, auto
                break
        model = getattr(hf, loader).from_pretrained(source, config=config, dtype=torch.float32, **where)
        processor = hf.AutoImageProcessor.from_pretrained(source, **where)
    except (
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        ImportError,
        TypeError,
        AttributeError,
        SafetensorError,
    ) as error:
        if isinstance(error, UserError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"teacher {source!r} cannot be loaded ({reason}): give a Hugging Face vision model's folder or hub id, with its image processor"
        ) from error
    model = getattr(model, "vision_model", model) if kind == "features" else model
    if getattr(model, "main_input_name", "pixel_values") != "pixel_values":
        raise UserError(f"teacher {source!r} ({config.model_type}) takes no pictures: give a vision model")
    return model, processor, kind
