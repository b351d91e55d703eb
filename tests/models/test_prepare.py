"""Prompts, pictures and answers become tensors and spans, for every family that has a tiny processor here."""

import pytest
import torch
from chiasm.models import Spans, open_vlm
from chiasm.scenes.errors import UserError
from PIL import Image

from .families import build
from .processors import PROCESSORS

FRONT = ("blip2", "instructblip", "paligemma")  # no chat template: the picture stands in front
EVERY = pytest.mark.parametrize("name", PROCESSORS)


def opened(name):
    return open_vlm(model=build(name)[0], processor=PROCESSORS[name]())


def picture(width=96, height=48, blob=None):
    """Grey, with a white square of 6 pixels around the point given."""
    image = Image.new("RGB", (width, height), (90, 90, 90))
    if blob:
        image.paste((255, 255, 255), (blob[0] - 3, blob[1] - 3, blob[0] + 3, blob[1] + 3))
    return image


def words(vlm, inputs, row, *spans):
    ids = inputs.tensors["input_ids"][row][inputs.spans.mask(*spans)[row]]
    return " ".join(vlm.tokenizer.convert_ids_to_tokens(ids))


@EVERY
def test_every_word_is_in_its_span(name):
    vlm = opened(name)
    front = name in FRONT
    prompt = "what is in the picture ?" if front else "look at this <image> what is in the picture ?"
    inputs = vlm.prepare([picture(), picture()], [prompt, "a cat"], ["a red dog .", None])
    assert words(vlm, inputs, 0, "answer") == "a red dog ."
    assert words(vlm, inputs, 1, "answer") == ""
    assert "what is in the picture ?" in words(vlm, inputs, 0, "after")
    assert words(vlm, inputs, 0, "before") == ("" if front else "look at this")
    assert words(vlm, inputs, 1, "after").removeprefix("<bos> ").startswith("a cat")  # PaliGemma: bos after the picture
    image_id = vlm.anatomy.image_token_id
    if vlm.anatomy.image_in_sequence:
        assert torch.equal(inputs.spans.visual, inputs.tensors["input_ids"] == image_id)
    assert torch.equal(inputs.spans.real, inputs.tensors["attention_mask"].bool())
    assert vlm.trace(inputs, ["logits"])["logits"].isfinite().all()
    # without the picture the same words stand in the same spans, and the model reads them
    text = inputs.without_images()
    for span in ("before", "after", "answer"):
        assert words(vlm, text, 0, span) == words(vlm, inputs, 0, span)
    assert not text.spans.mask("image").any() and not any(k.startswith("pixel") for k in text.tensors)
    assert vlm.trace(text, ["logits"])["logits"].isfinite().all()


PLACED = [name for name in PROCESSORS if name not in (*FRONT[:2], "idefics2", "mllama")]


@pytest.mark.parametrize("blob", [(12, 10), (60, 30), (40, 40), (70, 8)])
@pytest.mark.parametrize("name", PLACED)
def test_boxes_are_where_the_model_looks(name, blob):
    """A white square on the picture changes just the tokens whose boxes it touches (towers made blind to neighbours)."""
    vlm = opened(name)
    for block in vlm.anatomy.vision_blocks:  # every token keeps to its own patches
        block.forward = lambda hidden_states, *args, **kwargs: hidden_states
    plain, marked = (vlm.prepare([[p]], ["<image> a cat"]) for p in (picture(), picture(blob=blob)))
    before, after = (vlm.trace(inputs, ["embed"])["embed"][0][inputs.spans.visual[0]] for inputs in (plain, marked))
    change = (after - before).norm(dim=-1)
    boxes = marked.spans.boxes[0][marked.spans.visual[0]]
    placed = ~boxes[:, 0].isnan()
    assert change[~placed].sum() == 0  # newline features
    reach = 3 + 8  # half the square, and how far resampling smears it
    x0, y0, x1, y1 = boxes.T
    near = (x0 < blob[0] + reach) & (x1 > blob[0] - reach) & (y0 < blob[1] + reach) & (y1 > blob[1] - reach)
    inside = (x0 <= blob[0]) & (blob[0] <= x1) & (y0 <= blob[1]) & (blob[1] <= y1)
    if not inside.any():  # CLIP's centre crop never shows the model this part
        assert name == "llava" and change.max() == 0
        return
    assert change[inside].min() > 0.05 * change.max() > 0
    assert change[placed & ~near].max() < 0.05 * change.max()
    assert inside[change.argmax()] or near[change.argmax()]


def test_clip_crop_cuts_the_borders_of_a_wide_picture():
    spans = opened("llava").prepare([[picture(96, 48)]], ["a cat"]).spans
    boxes = spans.boxes[0][spans.visual[0]]
    assert boxes[0].tolist() == [24, 0, 36, 12] and boxes[-1].tolist() == [60, 36, 72, 48]


def test_newline_features_have_no_place_and_no_box():
    spans = opened("llava_next").prepare([[picture(96, 48)]], ["a cat"]).spans
    visual = spans.visual[0]
    newline = visual & (spans.row[0] < 0)
    assert newline.sum() == 4 and spans.boxes[0][newline].isnan().all()
    assert spans.mask("image")[0][newline].all()


def test_two_pictures_are_told_apart_and_text_between_them_is_after():
    vlm = opened("qwen2_vl")
    inputs = vlm.prepare([[picture(96, 48), picture(48, 48)]], ["a <image> cat <image> dog"])
    spans = inputs.spans
    assert spans.n_images == 2
    sizes = [int((spans.visual[0] & (spans.image_index[0] == k)).sum()) for k in range(2)]
    grid = inputs.tensors["image_grid_thw"].prod(1) // 4
    assert sizes == grid.tolist()
    assert words(vlm, inputs, 0, "before") == "a" and words(vlm, inputs, 0, "after").startswith("cat dog")
    mass = vlm.trace(inputs, ["blocks.*.attn_images", "blocks.*.attn_mass"])
    images, total = mass["blocks.1.attn_images"], mass["blocks.1.attn_mass"]
    assert images.shape[-1] == 4
    image = Spans.names.index("image")
    torch.testing.assert_close(images[..., 0] + images[..., 2], total[..., image])


def test_neighbouring_pictures_without_markers_are_told_apart():
    vlm = opened("llava")
    spans = vlm.prepare([[picture(), picture()]], ["<image> <image> a cat"]).spans
    assert [(spans.image_index[0][spans.visual[0]] == k).sum().item() for k in range(2)] == [16, 16]
    assert torch.equal(spans.row[0][spans.visual[0]], torch.arange(4).repeat_interleave(4).repeat(2))


def test_rows_with_and_without_pictures_share_a_batch():
    vlm = opened("llava")
    inputs = vlm.prepare([[picture()], None], ["a cat", "a dog on the table"])
    assert inputs.spans.visual.sum(1).tolist() == [16, 0]
    alone = vlm.prepare([None], ["a dog on the table"])
    together = vlm.trace(inputs, ["logits"])["logits"][1][inputs.spans.real[1]]
    torch.testing.assert_close(together, vlm.trace(alone, ["logits"])["logits"][0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "images", "prompt", "says"),
    [
        ("llava", 2, "<image> a cat", "2 pictures for 1 <image>"),
        ("llava", 1, "<image> <image> a cat", "1 pictures for 2 <image>"),
        ("llava", 0, "<image> a cat", "0 pictures for 1 <image>"),
        ("qwen2_vl", 1, "<|image_pad|> a cat", "own image token '<|image_pad|>'"),
        ("blip2", 1, "a cat <image>", "takes its picture in front"),
        ("llava", 1, "a cat " * 400, "has 512"),
    ],
)
def test_bad_prompts_are_refused_in_one_line(name, images, prompt, says):
    with pytest.raises(UserError) as error:
        opened(name).prepare([[picture()] * images], [prompt])
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_model_without_a_processor_says_so():
    with pytest.raises(UserError, match="without a processor"):
        open_vlm(model=build("llava")[0]).prepare([[picture()]], ["a cat"])


def test_features_that_do_not_fit_the_tokens_are_refused():
    model, tensors = build("qwen2_vl")
    tensors["image_grid_thw"] = torch.tensor([[1, 4, 8]])
    with pytest.raises(UserError, match="4 image tokens"):
        open_vlm(model=model).from_tensors(**tensors)
