"""The organism's processor: a word-level tokenizer and CLIP's image processor in a real LlavaProcessor."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

PAD, BOS, EOS, UNK, IMAGE, ASSISTANT = "<pad>", "<bos>", "<eos>", "<unk>", "<image>", "<assistant>"
SPECIALS = (PAD, BOS, EOS, UNK, IMAGE, ASSISTANT)
"""Their ids are 0..5, in this order."""

# A turn is `question <assistant> answer <eos>`. The parts of a message are written in the order they come in, so that
# text may stand before a picture, after it, or on both sides.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ ' <assistant> ' }}{% else %}{{ ' ' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ ' <image> ' }}{% else %}{{ ' ' + part['text'] + ' ' }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ ' <assistant>' }}{% endif %}"
)


def make_tokenizer(words: Iterable[str]):
    """A `PreTrainedTokenizerFast` with one token for every word; case and punctuation of what is typed do not matter."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate((*SPECIALS, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        extra_special_tokens=[IMAGE, ASSISTANT],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def make_processor(words: Iterable[str], image_size: int, patch_size: int):
    """The `LlavaProcessor` of a family that knows `words` and sees `image_size` pixels in patches of `patch_size`."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    images = CLIPImageProcessor(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=make_tokenizer(words),
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the CLS token, which the strategy "default" drops
        image_token=IMAGE,
        chat_template=CHAT_TEMPLATE,
    )


def save_processor(processor, folder: Path) -> None:
    """Write the processor as plain transformers files."""
    processor.save_pretrained(folder)
