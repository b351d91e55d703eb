"""What reading the CLS token's attention costs, beside the plain tower and beside materialised attention."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from ..models import VLM, open_vlm
from ..models.patch_scores import score_site
from .bench import IMAGE, Row, Size
from .timing import Ratio, allocation_peak, interleave

PICTURE = 336
"""Pixels a side: 24 x 24 patches of 14 pixels and CLS make 577 positions."""


def tower_vlm() -> VLM:
    """A random Llava with a tower of 12 x 384, as in a small ViT, and a decoder as small as can be."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=384, intermediate_size=1536, num_hidden_layers=12, num_attention_heads=6, image_size=PICTURE, patch_size=14
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=32, max_position_embeddings=640, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE)
    return open_vlm(model=LlavaForConditionalGeneration(config).eval(), device="cpu")


def rows(size: Size) -> Iterator[Row]:
    """CLS scores of the feature layer by its queries and keys against the plain sdpa tower; eager + attentions beside."""
    vlm = tower_vlm()
    pixels = torch.randn(1, 3, PICTURE, PICTURE, generator=torch.Generator().manual_seed(0))
    patches = (PICTURE // 14) ** 2
    ids = torch.tensor([[1, *[IMAGE] * patches, 4]])
    inputs = vlm.from_tensors(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels)
    tower, site = vlm.model.model.vision_tower, score_site(vlm.anatomy, "cls")
    eager = copy.deepcopy(tower)
    eager.set_attn_implementation("eager")

    def plain(model, **options):
        with torch.no_grad():
            return model(pixels, **options)

    def scores():
        with vlm.recording(inputs, [site]) as recorder:
            plain(tower)
        return recorder.trace()[site]

    steps = {"sdpa": lambda: plain(tower), "cls": scores, "eager": lambda: plain(eager, output_attentions=True)}
    found = interleave(steps, size.rounds, warm=1)
    peaks = {name: allocation_peak(step) for name, step in steps.items()}
    extra = {name: max(peaks[name] - peaks["sdpa"], 0) for name in ("cls", "eager")}
    what, base = f"CLS scores, {patches + 1} tokens", "plain sdpa tower"
    yield Row(f"{what}: time", base, found.ratio("cls", "sdpa"), f"{found.milliseconds('cls'):.1f} ms", 1.05)
    yield Row(
        "eager + output_attentions: time", base, found.ratio("eager", "sdpa"), f"{found.milliseconds('eager'):.1f} ms"
    )
    detail = f"{extra['cls'] / 2**20:.2f} of {extra['eager'] / 2**20:.1f} MiB above plain (allocator's count)"
    yield Row(
        f"{what}: extra memory", "eager + output_attentions", Ratio.of([extra["cls"] / extra["eager"]]), detail, 0.1
    )
