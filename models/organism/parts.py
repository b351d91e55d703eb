"""The organism's parts before they have learnt anything: tower, decoder, and the Llava model that joins them."""

from __future__ import annotations

import torch

from .processor import BOS, EOS, IMAGE, PAD, SPECIALS
from .recipe import Recipe

_IDS = {token: i for i, token in enumerate(SPECIALS)}
BACK = (1, 2, 4, 5)
"""Where a thing's colour, size, column and row stand before it: "at the top left a small red cup"."""
FEATURE_LAYER = -2
"""The tower layer the projector reads, counted from the end as Llava counts: the last but one."""


def tower_config(recipe: Recipe):
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=recipe.vision_width,
        intermediate_size=3 * recipe.vision_width,
        num_hidden_layers=recipe.vision_layers,
        num_attention_heads=recipe.vision_heads,
        image_size=recipe.image_size,
        patch_size=recipe.patch_size,
        projection_dim=recipe.vision_width,
    )


def decoder_config(recipe: Recipe, vocabulary: int):
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=recipe.width,
        intermediate_size=recipe.mlp_width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=_IDS[PAD],
        bos_token_id=_IDS[BOS],
        eos_token_id=_IDS[EOS],
    )


def llava_config(recipe: Recipe, vocabulary: int):
    from transformers import LlavaConfig

    return LlavaConfig(
        vision_config=tower_config(recipe),
        text_config=decoder_config(recipe, vocabulary),
        image_token_id=_IDS[IMAGE],
        vision_feature_layer=FEATURE_LAYER,
        vision_feature_select_strategy="default",
        image_seq_length=(recipe.image_size // recipe.patch_size) ** 2,
        tie_word_embeddings=True,
    )


def make_tower(recipe: Recipe):
    """An untrained `CLIPVisionModel`."""
    from transformers import CLIPVisionModel

    torch.manual_seed(recipe.seed)
    return CLIPVisionModel(tower_config(recipe))


def make_decoder(recipe: Recipe, vocabulary: int):
    """An untrained `LlamaForCausalLM` whose attention starts out as recall needs it."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(recipe.seed + 1)
    decoder = LlamaForCausalLM(decoder_config(recipe, vocabulary))
    prepare_for_recall(decoder, recipe)
    return decoder


def make_llava(recipe: Recipe, vocabulary: int):
    """An untrained `LlavaForConditionalGeneration`; its projector is the one every family member starts from."""
    from transformers import LlavaForConditionalGeneration

    torch.manual_seed(recipe.seed + 2)
    return LlavaForConditionalGeneration(llava_config(recipe, vocabulary))


@torch.no_grad()
def prepare_for_recall(decoder, recipe: Recipe, sharpness: float = 5.0, gain: float = 1.5) -> None:
    """Start the first layer on the words `BACK` before, and later layers on words like their own.

    Finding in the context the word that was asked for takes two heads in a row (one that tells each word its neighbour,
    one that matches words) and a small decoder finds that pair late or never. This only sets where learning starts, in
    the spirit of mimetic initialisation (arXiv 2305.09828): with equal query and key matrices a head attends to what
    is like it; with a constant part in every embedding, and keys turned by the rotation of d positions, it attends d back.
    """
    generator = torch.Generator().manual_seed(recipe.seed + 3)
    size, width = recipe.width // recipe.heads, recipe.width
    half, fast = size // 2, size * 3 // 16  # the fastest turning dimensions tell neighbours apart
    turns = recipe.rope_theta ** (-torch.arange(half) / half)
    embedding = decoder.get_input_embeddings().weight
    constant = torch.randn(width, generator=generator) * embedding.std()
    embedding += constant
    constant /= constant.norm()
    for index, layer in enumerate(decoder.model.layers):
        attention = layer.self_attn
        back_heads = recipe.heads if index == 0 else recipe.heads // 2
        for head in range(recipe.heads):
            rows = slice(head * size, (head + 1) * size)
            if head < back_heads:
                back = BACK[head % len(BACK)] * turns[:fast]
                query, key = torch.zeros(size), torch.zeros(size)
                query[:fast] = 1
                key[:fast], key[half : half + fast] = back.cos(), back.sin()
                scale = sharpness / (width / 2) ** 0.5  # the constant is half of a normalised embedding's variance
                attention.q_proj.weight[rows] = scale * torch.outer(query, constant)
                attention.k_proj.weight[rows] = scale * torch.outer(key, constant)
            else:
                like = torch.nn.init.orthogonal_(torch.empty(size, width), generator=generator) * gain
                like[:fast] *= 0.2  # matching should not depend on distance
                like[half : half + fast] *= 0.2
                attention.q_proj.weight[rows] = like
                attention.k_proj.weight[rows] = like
        torch.nn.init.orthogonal_(attention.v_proj.weight, generator=generator)
        torch.nn.init.orthogonal_(attention.o_proj.weight, gain=0.2, generator=generator)
