"""Do a concept's words say what is in pictures it was not learnt from? Against what was written of them, and by CLIP.

Source: CoX-LMM (arXiv 2406.08074), section 4. Its BERTScore is left out: it needs a text encoder with a table of baselines for each
language. The share of the words in a reference caption stands in its place, and for rendered scenes the share that is true of the scene.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from ..scenes.errors import UserError
from ..scenes.sample import Sample
from ..scenes.words import PLURALS

PREFIX = "A photo is described by the words "


def active_concepts(codes: Tensor, top: int = 1) -> list[list[int]]:
    """For each sample its `top` most active concepts; codes (M, K). Concepts with code 0 are not active."""
    order = codes.abs().argsort(dim=1, descending=True, stable=True)[:, :top].tolist()
    return [[k for k in row if codes[m, k] != 0] for m, row in enumerate(order)]


def true_words(sample: Sample) -> frozenset[str]:
    """What may be said of a sample: for a rendered scene its place and the things in it with colour and size; else the
    words of its answer. Lower case."""
    scene = sample.truth.get("scene")
    if scene is None:
        return frozenset(re.findall(r"\w+", (sample.answer or "").lower()))
    told = {scene.place}
    for thing in scene.things:
        told |= {thing.category, PLURALS[thing.category], thing.colour, thing.size}
    return frozenset(told)


def word_scores(
    words: Sequence[Sequence[str]], codes: Tensor, truths: Sequence[frozenset[str]], *, top: int = 1
) -> Tensor:
    """(M,) for each sample the share of the words of its active concepts that are true of it; the mean over `top` concepts.

    words: of each concept. codes: (M, K) of test samples. NaN where no active concept has words.
    """
    scores = torch.full((len(codes),), torch.nan, dtype=torch.float64)
    for m, concepts in enumerate(active_concepts(codes, top)):
        shares = [sum(word in truths[m] for word in words[k]) / len(words[k]) for k in concepts if words[k]]
        if shares:
            scores[m] = sum(shares) / len(shares)
    return scores


def clip_scores(
    words: Sequence[Sequence[str]], codes: Tensor, images: Sequence[Image.Image], clip: str, *, top: int = 1, device=None
) -> Tensor:  # fmt: skip
    """(M,) CLIPScore 2.5 * max(cos, 0) of each test picture and the words of its active concepts, the mean over `top` concepts.

    clip: folder or hub id of a CLIP model with its processor (the paper: ViT-B/32). Source of the score: Hessel et al. 2021.
    NaN where no active concept has words. Raises UserError when the model cannot be loaded.
    """
    from transformers import AutoProcessor, CLIPModel

    try:
        model, processor = CLIPModel.from_pretrained(clip).eval(), AutoProcessor.from_pretrained(clip)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"CLIP model {clip!r} cannot be loaded ({' '.join(str(error).split())[:160]}): name a CLIP folder or hub id"
        ) from error
    model = model.to(device or "cpu")
    scores = torch.full((len(codes),), torch.nan, dtype=torch.float64)
    for m, concepts in enumerate(active_concepts(codes, top)):
        texts = [PREFIX + " ".join(words[k]) for k in concepts if words[k]]
        if not texts:
            continue
        inputs = processor(text=texts, images=images[m], return_tensors="pt", padding=True, truncation=True).to(
            model.device
        )
        with torch.no_grad():
            found = model(**inputs)
        cosine = torch.nn.functional.cosine_similarity(found.image_embeds, found.text_embeds)
        scores[m] = 2.5 * cosine.clamp(min=0).double().mean().cpu()
    return scores
