"""Tiny random models of the 18 families in the table, built from config classes, and batches that run through them."""

from __future__ import annotations

import torch
import transformers as hf

VOCAB, IMAGE, PAD = 128, 120, 0
TEXT = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=VOCAB, max_position_embeddings=512, pad_token_id=PAD, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
VISION = dict(
    hidden_size=24, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8
)
PINPOINTS = [[32, 32], [64, 32], [32, 64], [64, 64]]
MROPE = dict(rope_type="default", rope_theta=1e4, mrope_section=[1, 1, 2])


def _pixels(*shape: int) -> dict:
    return {"pixel_values": torch.randn(*shape)}


def _siglip(**more):
    return hf.SiglipVisionConfig(**VISION, vision_use_head=False, **more)


def llava():
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**VISION, projection_dim=16),
        text_config=hf.LlamaConfig(**TEXT),
        image_token_id=IMAGE,
    )
    return hf.LlavaForConditionalGeneration(config), 16, _pixels(1, 3, 32, 32)


def llava_next():
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**VISION, projection_dim=16),
        text_config=hf.LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        image_grid_pinpoints=PINPOINTS,
    )
    extra = _pixels(1, 5, 3, 32, 32) | {"image_sizes": torch.tensor([[64, 64]])}
    return hf.LlavaNextForConditionalGeneration(config), 16 + 8 * 9, extra


def llava_onevision():
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**VISION),
        text_config=hf.Qwen2Config(**TEXT),
        image_token_index=IMAGE,
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_9",
    )
    config.image_token_id = IMAGE
    extra = _pixels(1, 5, 3, 32, 32) | {"image_sizes": torch.tensor([[64, 64]])}
    return hf.LlavaOnevisionForConditionalGeneration(config), 16 + 8 * 9, extra


_QFORMER = dict(
    vocab_size=VOCAB, hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    encoder_hidden_size=24, pad_token_id=PAD,
)  # fmt: skip


def instructblip():
    config = hf.InstructBlipConfig(
        vision_config=hf.InstructBlipVisionConfig(**VISION).to_dict(),
        qformer_config=hf.InstructBlipQFormerConfig(**_QFORMER).to_dict(),
        text_config=hf.LlamaConfig(**TEXT).to_dict(),
        num_query_tokens=8,
        image_token_index=IMAGE,
    )
    question = torch.randint(3, 90, (1, 5))
    extra = {"qformer_input_ids": question, "qformer_attention_mask": torch.ones_like(question)}
    return hf.InstructBlipForConditionalGeneration(config), 8, _pixels(1, 3, 32, 32) | extra


def blip2():
    text = {k: v for k, v in TEXT.items() if k not in ("intermediate_size", "num_key_value_heads")}
    config = hf.Blip2Config(
        vision_config=hf.Blip2VisionConfig(**VISION).to_dict(),
        qformer_config=hf.Blip2QFormerConfig(**_QFORMER).to_dict(),
        text_config=hf.OPTConfig(**text, word_embed_proj_dim=32, ffn_dim=64).to_dict(),
        num_query_tokens=8,
        image_token_index=IMAGE,
    )
    return hf.Blip2ForConditionalGeneration(config), 8, _pixels(1, 3, 32, 32)


def _qwen(config_class, model_class, text: dict, vision: dict):
    special = dict(image_token_id=IMAGE, video_token_id=121, vision_start_token_id=122, vision_end_token_id=123)
    vision = dict(depth=3, hidden_size=32, num_heads=4, patch_size=8, temporal_patch_size=2, spatial_merge_size=2,
                  in_channels=3) | vision  # fmt: skip
    config = config_class(text_config=TEXT | text, vision_config=vision, **special)
    return model_class(config), 4, _pixels(16, 3 * 2 * 8 * 8) | {"image_grid_thw": torch.tensor([[1, 4, 4]])}


def qwen2_vl():
    vision = dict(embed_dim=32, mlp_ratio=2)
    return _qwen(hf.Qwen2VLConfig, hf.Qwen2VLForConditionalGeneration, dict(rope_parameters=MROPE), vision)


def qwen2_5_vl():
    vision = dict(out_hidden_size=32, intermediate_size=64, window_size=32, fullatt_block_indexes=[1])
    return _qwen(hf.Qwen2_5_VLConfig, hf.Qwen2_5_VLForConditionalGeneration, dict(rope_parameters=MROPE), vision)


def qwen3_vl():
    text = dict(head_dim=8, rope_parameters=MROPE | dict(mrope_interleaved=True))
    vision = dict(out_hidden_size=32, intermediate_size=64, deepstack_visual_indexes=[0, 1], num_position_embeddings=16)
    return _qwen(hf.Qwen3VLConfig, hf.Qwen3VLForConditionalGeneration, text, vision)


def qwen3_5():
    text = dict(
        num_hidden_layers=4, head_dim=8, linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=8,
        rope_parameters=MROPE | dict(mrope_section=[1, 1, 0], partial_rotary_factor=0.5, mrope_interleaved=True),
    )  # fmt: skip
    vision = dict(out_hidden_size=32, intermediate_size=64, num_position_embeddings=16)
    return _qwen(hf.Qwen3_5Config, hf.Qwen3_5ForConditionalGeneration, text, vision)


def paligemma():
    config = hf.PaliGemmaConfig(
        vision_config=_siglip(projection_dim=32).to_dict(),
        text_config=hf.GemmaConfig(**TEXT | dict(vocab_size=1408), head_dim=8).to_dict(),  # room for <loc…> tokens
        image_token_index=IMAGE,
        projection_dim=32,
        hidden_size=32,
    )
    return hf.PaliGemmaForConditionalGeneration(config), 16, _pixels(1, 3, 32, 32) | {"prefix": None}


def gemma3():
    config = hf.Gemma3Config(
        vision_config=_siglip().to_dict(),
        text_config=hf.Gemma3TextConfig(**TEXT, head_dim=8, sliding_window=64).to_dict(),
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
        boi_token_index=121,
        eoi_token_index=122,
    )
    return hf.Gemma3ForConditionalGeneration(config), 4, _pixels(1, 3, 32, 32) | {"token_type_ids": None}


def _idefics(config_class, model_class, vision_class):
    config = config_class(
        vision_config=vision_class(**VISION).to_dict(),
        text_config=hf.LlamaConfig(**TEXT).to_dict(),
        scale_factor=2,
        image_token_id=IMAGE,
        pad_token_id=PAD,
    )
    return model_class(config), 4, _pixels(1, 1, 3, 32, 32)


def idefics3():
    return _idefics(hf.Idefics3Config, hf.Idefics3ForConditionalGeneration, hf.Idefics3VisionConfig)


def smolvlm():
    return _idefics(hf.SmolVLMConfig, hf.SmolVLMForConditionalGeneration, hf.SmolVLMVisionConfig)


def idefics2():
    perceiver = dict(
        resampler_n_latents=4, resampler_depth=1, resampler_n_heads=4, resampler_head_dim=8, num_key_value_heads=2,
        hidden_size=32,
    )  # fmt: skip
    config = hf.Idefics2Config(
        vision_config=hf.Idefics2VisionConfig(**VISION).to_dict(),
        text_config=hf.MistralConfig(**TEXT).to_dict(),
        perceiver_config=perceiver,
        image_token_id=IMAGE,
    )
    return hf.Idefics2ForConditionalGeneration(config), 4, _pixels(1, 1, 3, 32, 32)


def internvl():
    config = hf.InternVLConfig(
        vision_config=hf.InternVLVisionConfig(**VISION | dict(image_size=[32, 32], patch_size=[8, 8])).to_dict(),
        text_config=hf.Qwen2Config(**TEXT).to_dict(),
        image_token_id=IMAGE,
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    return hf.InternVLForConditionalGeneration(config), 4, _pixels(1, 3, 32, 32)


def mistral3():
    config = hf.Mistral3Config(
        vision_config=hf.PixtralVisionConfig(**VISION | dict(hidden_size=32)).to_dict(),
        text_config=hf.MistralConfig(**TEXT).to_dict(),
        image_token_index=IMAGE,
        spatial_merge_size=2,
    )
    extra = {"image_sizes": torch.tensor([[32, 32]])}
    return hf.Mistral3ForConditionalGeneration(config), 4, _pixels(1, 3, 32, 32) | extra


def mllama():
    vision = dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_global_layers=1, attention_heads=4,
        image_size=32, patch_size=8, max_num_tiles=1, vision_output_dim=64, intermediate_layers_indices=[1],
        supported_aspect_ratios=[[1, 1]],
    )  # fmt: skip
    config = hf.MllamaConfig(
        vision_config=vision,
        text_config=TEXT | dict(num_hidden_layers=4, cross_attention_layers=[1, 3]),
        image_token_index=IMAGE,
    )
    extra = {"aspect_ratio_ids": torch.ones(1, 1, dtype=torch.long), "aspect_ratio_mask": torch.ones(1, 1, 1).long()}
    return hf.MllamaForConditionalGeneration(config), 1, _pixels(1, 1, 1, 3, 32, 32) | extra | {"cross": None}


def aya_vision():
    config = hf.AyaVisionConfig(
        vision_config=_siglip().to_dict(),
        text_config=hf.Cohere2Config(**TEXT).to_dict(),
        image_token_index=IMAGE,
        downsample_factor=2,
        alignment_intermediate_size=64,
    )
    return hf.AyaVisionForConditionalGeneration(config), 4, _pixels(1, 3, 32, 32)


FAMILIES = {
    f.__name__: f
    for f in (
        llava, llava_next, llava_onevision, instructblip, blip2, qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_5, paligemma,
        gemma3, aya_vision, idefics3, smolvlm, idefics2, internvl, mistral3, mllama,
    )
}  # fmt: skip


def build(name: str):
    """(model, one row of inputs) of a family: bos, two words, the picture, six words."""
    torch.manual_seed(0)
    model, n_visual, extra = FAMILIES[name]()
    for (
        parameter
    ) in model.parameters():  # gates, layer scales, Gemma3's projector start at 0 or 1e-5: give every part a say
        if parameter.abs().max() < 1e-3:
            parameter.data.normal_(0, 0.2)
    return model.eval(), row(n_visual, extra, words=6)


def row(n_visual: int, extra: dict, words: int) -> dict:
    ids = torch.tensor([[1, 5, 6, *[IMAGE] * n_visual, *range(10, 10 + words)]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | extra
    if "token_type_ids" in inputs:
        inputs["token_type_ids"] = (ids == IMAGE).long()
    if "prefix" in inputs:  # PaliGemma: 0 is the prompt, read in both directions, 1 the answer
        del inputs["prefix"]
        inputs["token_type_ids"] = torch.zeros_like(ids)
    if "image_grid_thw" in inputs:
        inputs["mm_token_type_ids"] = (ids == IMAGE).int()
    if "cross" in inputs:
        del inputs["cross"]
        inputs["cross_attention_mask"] = torch.ones(1, ids.shape[1], 1, 1, dtype=torch.long)
    return inputs


def batch(name: str, side: str):
    """(model, a batch of two rows of unequal length padded on `side`, the same rows unpadded)."""
    model, long = build(name)
    n_visual = int((long["input_ids"] == IMAGE).sum())
    marks = {"gemma3": {"token_type_ids": None}, "paligemma": {"prefix": None}, "mllama": {"cross": None}}
    extra = {k: v for k, v in long.items() if k not in _PER_TOKEN} | marks.get(name, {})
    short = row(n_visual, extra, words=3)
    joined = {}
    for key, value in long.items():
        if key in _PER_TOKEN:
            gap = value.shape[1] - short[key].shape[1]
            fill = short[key].new_zeros(1, gap, *value.shape[2:])
            padded = torch.cat([fill, short[key]] if side == "left" else [short[key], fill], 1)
            joined[key] = torch.cat([value, padded])
        else:
            joined[key] = torch.cat([value, short[key]])
    return model, joined, (long, short)


_PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "cross_attention_mask")
