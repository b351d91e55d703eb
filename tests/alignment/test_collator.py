"""Rows of preference pairs: their order, ids, masks and pictures, and what is refused."""

from __future__ import annotations

import pytest
import torch
from chiasm.alignment.collator import VisualPreferenceCollator
from chiasm.models import open_vlm
from chiasm.models.anatomy import find_anatomy
from chiasm.scenes.errors import UserError
from trl import DPOTrainer

from ..models.families import IMAGE
from .pairs import config, dataset, moved, rows, tiny

EOS = 2


@pytest.fixture(scope="module")
def llava():
    return tiny()


@pytest.fixture(scope="module")
def organism():
    return open_vlm("organism")


def collator(made, **options):
    model, processor = made
    return VisualPreferenceCollator(processor, find_anatomy(model), **options)


def test_three_branches_in_order_with_masks_on_completions_and_their_end(llava):
    batch, processor = collator(llava)(rows(2)), llava[1]
    assert batch["input_ids"].shape[0] == 6 and batch["branch"].tolist() == [0, 0, 1, 1, 2, 2]
    words = [
        processor.tokenizer.decode(ids[mask.bool()])
        for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
    ]
    chosen = ["this is a cat on the table <eos>", "this is a dog on the table <eos>"]
    assert words == [*chosen, "this is a dog <eos>", "this is a red table <eos>", *chosen]
    placeholders = batch["input_ids"] == IMAGE
    assert placeholders.sum(1).tolist() == [16] * 6 and not batch["completion_mask"][placeholders].any()
    assert ((batch["labels"] == -100) == (batch["completion_mask"] == 0)).all()
    assert not batch["completion_mask"][batch["attention_mask"] == 0].any()
    assert (batch["attention_mask"].diff(dim=1) <= 0).all()  # padded on the right
    images = batch["pixel_values"]
    assert torch.equal(images[:2], images[2:4]) and not torch.equal(images[:2], images[4:])


def test_distinct_images_are_encoded_once_and_the_ids_are_the_same(llava):
    pairs = rows(2)
    plain, distinct = collator(llava)(pairs), collator(llava, distinct_images=True)(pairs)
    assert torch.equal(distinct["pixel_values"], plain["pixel_values"][2:])
    assert all(torch.equal(plain[k], distinct[k]) for k in plain if k != "pixel_values")


def test_without_the_visual_branch_there_are_two(llava):
    pairs = [{k: v for k, v in pair.items() if k != "rejected_images"} for pair in rows(2)]
    batch = collator(llava, visual=False)(pairs)
    assert batch["branch"].tolist() == [0, 0, 1, 1] and len(batch["pixel_values"]) == 4


def test_plain_strings_give_the_ids_of_prepare_and_the_end_of_turn(organism):
    pairs = rows(3, plain=True, sizes=((64, 64), (64, 64)))
    pairs[0]["prompt"] = "look at <image> and say what it is"
    batch = VisualPreferenceCollator(organism.processor, organism.anatomy)(pairs)
    for branch, answer, picture in (
        (0, "chosen", "images"),
        (1, "rejected", "images"),
        (2, "chosen", "rejected_images"),
    ):
        wanted = organism.prepare([p[picture] for p in pairs], [p["prompt"] for p in pairs], [p[answer] for p in pairs])
        for i in range(3):
            ids = wanted.tensors["input_ids"][i][wanted.tensors["attention_mask"][i].bool()].tolist()
            row = 3 * branch + i
            assert batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist() == [*ids, EOS]
            assert int(batch["completion_mask"][row].sum()) == int(wanted.spans.mask("answer")[i].sum()) + 1


def test_conversations_give_the_ids_of_the_whole_conversation_tokenised_at_once(organism):
    pairs = rows(4, sizes=((64, 64), (64, 64)))
    made = VisualPreferenceCollator(organism.processor, organism.anatomy)
    batch = made(pairs)
    for i, pair in enumerate(pairs):
        user = [{"type": "image"}, {"type": "text", "text": pair["prompt"][0]["content"]}]
        talk = [{"role": "user", "content": user}, {"role": "assistant", "content": pair["chosen"][0]["content"]}]
        text = organism.processor.apply_chat_template(talk, tokenize=False)
        whole = organism.processor(text=[text], images=pair["images"], add_special_tokens=False)["input_ids"][0]
        assert batch["input_ids"][i][batch["attention_mask"][i].bool()].tolist() == list(whole)
        assert whole.count(organism.tokenizer.bos_token_id) == 1
    assert (made.merged, made.completions) == (0, 8)


def test_an_image_mark_in_a_conversation_says_where_the_picture_goes(organism):
    pairs = rows(1, sizes=((64, 64), (64, 64)))
    plain = [{**pairs[0], "prompt": "look at <image> now", "chosen": "a cat", "rejected": "a dog"}]
    asked = [{"role": "user", "content": "look at <image> now"}]
    said = {k: [{"role": "assistant", "content": plain[0][k]}] for k in ("chosen", "rejected")}
    made = VisualPreferenceCollator(organism.processor, organism.anatomy)
    assert torch.equal(made(plain)["input_ids"], made([{**pairs[0], "prompt": asked, **said}])["input_ids"])
    with pytest.raises(UserError, match="1 pictures for 2 <image>"):
        made([{**pairs[0], "prompt": [{"role": "user", "content": "<image> <image>"}], **said}])


def test_tokens_that_merge_across_the_boundary_belong_to_the_completion(llava):
    class Merging:
        """Tokenises "assistant : this" as one token of its own, as byte-pair tokenizers do with spaces."""

        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def __call__(self, texts, **options):
            found = self.inner(texts, **options)
            colon, this = self.inner.convert_tokens_to_ids([":", "this"])
            for ids in found["input_ids"]:
                for k in range(len(ids) - 1, 0, -1):
                    if ids[k - 1 : k + 1] == [colon, this]:
                        ids[k - 1 : k + 1] = [99]
            return found

    plain, made = collator(llava)(rows(1)), collator(llava)
    made.tokenizer = Merging(made.tokenizer)
    batch = made(rows(1))
    assert made.merged == 2 and batch["input_ids"].shape[1] == plain["input_ids"].shape[1] - 1
    first = batch["completion_mask"][0].argmax()
    assert batch["input_ids"][0, first] == 99 and batch["completion_mask"][0].sum() == plain["completion_mask"][0].sum()


@pytest.mark.parametrize("family", ["llava_next", "qwen2_vl"])
def test_pictures_of_different_sizes_within_a_pair(family):
    made = collator(tiny(family))
    batch = made(rows(2, sizes=((32, 32), (64, 64))))
    counts = (batch["input_ids"] == IMAGE).sum(1)
    assert (counts[4:] > counts[:2]).all() and torch.equal(counts[:2], counts[2:4])


def test_examples_are_left_as_they_are(llava):
    pairs = rows(2)
    before = [dict(pair) for pair in pairs]
    collator(llava)(pairs)
    assert pairs == before


BAD = {
    "empty completion": (dict(chosen=[{"role": "assistant", "content": " "}]), "has an empty completion"),
    "no chosen": (dict(chosen=None), "has no chosen: it needs prompt, chosen, rejected"),
    "no rejected images": (dict(rejected_images=None), "has no rejected_images: add the column"),
    "no image": (dict(images=[], rejected_images=[]), "has no image"),
    "unequal": (dict(rejected_images=[]), "has 1 images and 0 rejected_images"),
    "no picture": (dict(images=["cat.png"]), "is a str: give PIL images"),
    "image token": (dict(chosen=[{"role": "assistant", "content": "a <image> cat"}]), "holds the image token"),
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
def test_bad_pairs_are_one_clear_line(llava, change):
    made, (broken, message) = collator(llava), change
    with pytest.raises(UserError, match=message) as told:
        made([{**rows(1)[0], **broken}])
    assert "\n" not in str(told.value)


def test_a_prompt_that_is_not_the_beginning_is_refused(llava):
    model, processor = llava
    made = collator((model, processor))
    template, made.processor.chat_template = (
        processor.chat_template,
        processor.chat_template.replace("assistant : {% endif", "model : {% endif"),
    )
    try:
        with pytest.raises(UserError, match="is not the beginning of the conversation"):
            made(rows(1))
    finally:
        made.processor.chat_template = template


def test_cuts_that_spoil_a_row_are_refused_and_others_are_made(llava):
    whole = collator(llava)(rows(1))["input_ids"].shape[1]
    start = int(collator(llava)(rows(1))["completion_mask"][0].argmax())
    with pytest.raises(UserError, match="cuts a whole completion"):
        collator(llava, max_length=start)(rows(1))
    with pytest.raises(UserError, match="cuts image tokens"):
        collator(llava, max_length=5)(rows(1))
    cut = collator(llava, max_length=whole - 2)(rows(1))
    assert cut["input_ids"].shape[1] == whole - 2 and cut["completion_mask"].any(1).all()


def test_a_stock_trainer_refuses_the_rows_of_three_branches(llava, tmp_path):
    model, processor = llava
    stock = DPOTrainer(
        moved(model), ref_model=moved(model), args=config(tmp_path, remove_unused_columns=False), train_dataset=dataset(),
        processing_class=processor, data_collator=collator(llava),
    )  # fmt: skip
    with pytest.raises(TypeError, match="labels"):
        stock.train()
    stock.args.remove_unused_columns = True
    with pytest.raises(UserError, match="a stock DPOTrainer drops the column"):
        stock.train()
