"""The large random Llava that the benches of steering and of contrast decoding share."""

from __future__ import annotations

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from ..models import VLM, open_vlm
from .bench import FULL, IMAGE, Size

PICTURE, WORDS = 336, 63
"""Pixels a side (576 patches and CLS), words of the prompt beside the picture."""


def billion_vlm(size: Size, *, layers: int = 16, dtype: torch.dtype = torch.float32) -> VLM:
    """A random Llava with a language model of a billion parameters (16 x 2048, grouped keys), as Llama 3.2 1B.

    Any size but the full one: small layers, two at most. The tower is small (6 x 192), so that time is the language model's, as in
    models of use.
    """
    vision = CLIPVisionConfig(
        hidden_size=192, intermediate_size=768, num_hidden_layers=6, num_attention_heads=6, image_size=PICTURE, patch_size=14
    )  # fmt: skip
    shape = dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=layers, num_attention_heads=32)
    if size is not FULL:
        shape = dict(hidden_size=256, intermediate_size=512, num_hidden_layers=min(layers, 2), num_attention_heads=8)
    text = LlamaConfig(
        **shape, num_key_value_heads=8, vocab_size=32000, max_position_embeddings=1024, tie_word_embeddings=True,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, tie_word_embeddings=True)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model = model.to(dtype).to_empty(device="cpu")
    model.tie_weights()
    torch.manual_seed(0)
    model.apply(_filled)
    return open_vlm(model=model.eval(), device="cpu")


def _filled(module: torch.nn.Module) -> None:
    """Weights spread evenly about 0 (a billion normal numbers would take a minute); buffers as a new module makes them."""
    for name, value in module.named_parameters(recurse=False):
        value.data.uniform_(-0.03, 0.03) if value.dim() > 1 else value.data.fill_(0.0 if name == "bias" else 1.0)
    if hasattr(module, "inv_freq"):
        module.inv_freq.copy_(type(module)(module.config).inv_freq)
        module.original_inv_freq = module.inv_freq.clone()
    if hasattr(module, "position_ids"):
        module.position_ids.copy_(torch.arange(module.position_ids.shape[-1])[None])


def prompt(vlm: VLM):
    """One row: bos, the picture, words."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(4, 32000, (1, WORDS), generator=generator)
    patches = (PICTURE // 14) ** 2
    ids = torch.cat([torch.ones(1, 1, dtype=torch.long), torch.full((1, patches), IMAGE), words], 1)
    pixels = torch.randn(1, 3, PICTURE, PICTURE, generator=generator)
    return vlm.from_tensors(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels)
