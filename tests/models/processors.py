"""Tiny processors that belong to the tiny families: a word-level tokenizer with each family's own special tokens."""

from __future__ import annotations

import transformers as hf
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from .families import IMAGE, VOCAB

_WORDS = "user : assistant what is in the picture ? look at this a an cat dog red on table yes no . you are kind"
ORDERED = (
    "{% for m in messages %}{{ m['role'] }} : {% for c in m['content'] %}{% if c['type'] == 'image' %}MARK{% else %}"
    "{{ c['text'] }}{% endif %} {% endfor %}{% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"
)
IMAGES_FIRST = (  # as LLaVA-1.5's own template does
    "you are kind {% for m in messages %}{{ m['role'] }} : {% for c in m['content'] | selectattr('type', 'equalto', 'image') %}"
    "MARK {% endfor %}{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] }} {% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"
)


def tokenizer(image: str = "<image>", specials: dict[int, str] | None = None, **named):
    """Words from id 4 on, special tokens at the ids given, the image token at the families' id."""
    names = {0: "<pad>", 1: "<bos>", 2: "<eos>", 3: "<unk>", IMAGE: image} | (specials or {})
    words = {4 + i: word for i, word in enumerate(_WORDS.split())}
    vocab = {(words | names).get(i, f"w{i}"): i for i in range(VOCAB)}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    extra = [name for name in names.values() if name not in ("<pad>", "<bos>", "<eos>", "<unk>")]
    made = hf.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        extra_special_tokens=named,
    )  # fmt: skip
    extra = [name for name in names.values() if name not in ("<pad>", "<bos>", "<eos>", "<unk>")]
    made.add_tokens([AddedToken(name, special=True, normalized=False) for name in extra], special_tokens=True)
    return made


def _clip():
    return hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def _template(mark: str, base: str = ORDERED) -> str:
    return base.replace("MARK", mark)


def llava():
    return hf.LlavaProcessor(
        _clip(), tokenizer(), patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=_template("<image>", IMAGES_FIRST),
    )  # fmt: skip


def llava_next():
    images = hf.LlavaNextImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32},
        image_grid_pinpoints=[[32, 32], [64, 32], [32, 64], [64, 64]],
    )  # fmt: skip
    return hf.LlavaNextProcessor(
        images, tokenizer(), patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=_template("<image>"),
    )  # fmt: skip


def llava_onevision():
    images = hf.LlavaOnevisionImageProcessor(
        size={"height": 32, "width": 32}, image_grid_pinpoints=[[32, 32], [64, 32], [32, 64], [64, 64]]
    )
    return hf.LlavaOnevisionProcessor(
        images, tokenizer(specials={119: "<video>"}), hf.LlavaOnevisionVideoProcessor(), num_image_tokens=16,
        vision_feature_select_strategy="full", chat_template=_template("<image>"),
    )  # fmt: skip


def _qwen(processor_class):
    tok = tokenizer(
        "<|image_pad|>", {121: "<|video_pad|>", 122: "<|vision_start|>", 123: "<|vision_end|>"},
        image_token="<|image_pad|>", video_token="<|video_pad|>",
        vision_start_token="<|vision_start|>", vision_end_token="<|vision_end|>",
    )  # fmt: skip
    images = hf.Qwen2VLImageProcessor(
        patch_size=8, temporal_patch_size=2, merge_size=2, size={"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
    )
    mark = "<|vision_start|> <|image_pad|> <|vision_end|>"
    return processor_class(images, tok, hf.Qwen2VLVideoProcessor(), chat_template=_template(mark))


def qwen2_vl():
    return _qwen(hf.Qwen2VLProcessor)


def qwen2_5_vl():
    return _qwen(hf.Qwen2_5_VLProcessor)


def qwen3_vl():
    return _qwen(hf.Qwen3VLProcessor)


def qwen3_5():
    return _qwen(hf.Qwen3VLProcessor)


def _idefics_tokens():
    places = [f"<row_{r}_col_{c}>" for r in (1, 2, 3) for c in (1, 2, 3)]
    names = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *places]
    return tokenizer(specials={100 + i: name for i, name in enumerate(names)})


def idefics3():
    images = hf.Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    return hf.Idefics3Processor(images, _idefics_tokens(), image_seq_len=4, chat_template=_template("<image>"))


def smolvlm():
    images = hf.SmolVLMImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    videos = hf.SmolVLMVideoProcessor()
    template = _template("<image>")
    return hf.SmolVLMProcessor(images, _idefics_tokens(), videos, image_seq_len=4, chat_template=template)


def idefics2():
    images = hf.Idefics2ImageProcessor(size={"shortest_edge": 32, "longest_edge": 32})
    return hf.Idefics2Processor(images, _idefics_tokens(), image_seq_len=4, chat_template=_template("<image>"))


def internvl():
    images = hf.GotOcr2ImageProcessor(size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=4)
    tok = tokenizer(
        "<IMG_CONTEXT>", {121: "<img>", 122: "</img>", 119: "<video>"},
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>",
    )  # fmt: skip
    return hf.InternVLProcessor(
        images, tok, hf.InternVLVideoProcessor(), image_seq_length=4, chat_template=_template("<IMG_CONTEXT>")
    )


def mistral3():
    images = hf.PixtralImageProcessor(size={"longest_edge": 64}, patch_size={"height": 16, "width": 16})
    tok = tokenizer("[IMG]", {121: "[IMG_BREAK]", 122: "[IMG_END]"})
    return hf.PixtralProcessor(images, tok, patch_size=8, spatial_merge_size=2, chat_template=_template("[IMG]"))


def aya_vision():
    images = hf.GotOcr2ImageProcessor(size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=4)
    names = ["<|START_OF_IMG|>", "<|END_OF_IMG|>", "TILE_GLOBAL", *[f"TILE_{i}" for i in range(1, 7)], "<image>"]
    tok = tokenizer("<|IMG_PATCH|>", {100 + i: name for i, name in enumerate(names)})
    return hf.AyaVisionProcessor(
        images, tok, patch_size=8, img_size=32, downsample_factor=2, chat_template=_template("<image>")
    )


def blip2():
    images = hf.BlipImageProcessor(size={"height": 32, "width": 32})
    return hf.Blip2Processor(images, tokenizer(), num_query_tokens=8)


def instructblip():
    images = hf.BlipImageProcessor(size={"height": 32, "width": 32})
    return hf.InstructBlipProcessor(images, tokenizer(), tokenizer(), num_query_tokens=8)


def gemma3():
    tok = tokenizer(
        "<image_soft_token>", {121: "<start_of_image>", 122: "<end_of_image>"},
        image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>",
    )  # fmt: skip
    images = hf.Gemma3ImageProcessor(size={"height": 32, "width": 32})
    return hf.Gemma3Processor(images, tok, image_seq_length=4, chat_template=_template("<start_of_image>"))


def paligemma():
    images = hf.SiglipImageProcessor(size={"height": 32, "width": 32})
    images.image_seq_length = 16
    return hf.PaliGemmaProcessor(images, tokenizer(image_token="<image>"))


def mllama():
    images = hf.MllamaImageProcessor(size={"height": 32, "width": 32}, max_image_tiles=1)
    tok = tokenizer("<|image|>", {121: "<|python_tag|>"}, image_token="<|image|>")
    return hf.MllamaProcessor(images, tok, chat_template=_template("<|image|>"))


PROCESSORS = {
    f.__name__: f
    for f in (
        llava, llava_next, llava_onevision, qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_5, idefics3, smolvlm,
        idefics2, internvl, mistral3, aya_vision,
        blip2, instructblip, gemma3, paligemma, mllama,
    )
}  # fmt: skip
