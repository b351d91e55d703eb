"""Both answers behind one prefix, and shared picture features, give the log-probabilities and gradients of separate rows."""

from __future__ import annotations

import copy

import pytest
import torch
from chiasm.alignment.branches import forward_rows, plain_logits, why_no_features
from chiasm.alignment.collator import VisualPreferenceCollator
from chiasm.alignment.losses import sequence_logps
from chiasm.alignment.shared_prefix import pack, pays, why_not
from chiasm.models.anatomy import find_anatomy
from trl.trainer.utils import add_fused_lm_head

from ..models.families import FAMILIES
from .pairs import rows, tiny

NO_FUSED_HEAD = {"blip2", "instructblip"}  # TRL's head asks the base model for a hidden state that these do not name so
SHARED = {"llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "idefics3", "smolvlm", "idefics2",
          "internvl", "mistral3"}  # fmt: skip
FEATURES = {
    "llava",
    "llava_next",
    "llava_onevision",
    "qwen2_vl",
    "qwen2_5_vl",
    "mistral3",
    "idefics3",
    "smolvlm",
    "idefics2",
}


def batches(family: str):
    model, processor = tiny(family)
    anatomy = find_anatomy(model)
    pairs = rows(3, plain=not getattr(processor, "chat_template", None), sizes=((32, 32), (64, 32)))
    made = VisualPreferenceCollator(processor, anatomy)
    plain, made.distinct_images = made(pairs), True
    return model, anatomy, plain, made(pairs)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - NO_FUSED_HEAD - {"aya_vision"}))
def test_log_probabilities_of_every_layout_are_those_of_the_models_own_logits(family, one_thread):
    model, anatomy, plain, distinct = batches(family)
    assert (why_not(anatomy) is None) == (family in SHARED)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    with torch.no_grad():
        own = sequence_logps(plain_logits(model, plain), plain["labels"])
        separate = forward_rows(model, anatomy, plain, "rows")
        torch.testing.assert_close(separate.log_probs.sum(1), own, rtol=0, atol=1e-4)
        if family in SHARED:
            together = forward_rows(model, anatomy, distinct, "prefix")
            torch.testing.assert_close(together.log_probs, separate.log_probs, rtol=0, atol=1e-5)
            torch.testing.assert_close(together.entropy, separate.entropy, rtol=0, atol=1e-5)
            assert torch.equal(together.is_top1, separate.is_top1)
        if family in FEATURES:
            assert why_no_features(anatomy) is None
            together = forward_rows(model, anatomy, distinct, "features")
            torch.testing.assert_close(together.log_probs, separate.log_probs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", ["prefix", "features"])
@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_gradients_are_those_of_separate_rows(family, layout, one_thread):
    model, _, plain, distinct = batches(family)
    weights = torch.linspace(-1, 1, len(plain["branch"]))
    gradients = []
    for name, batch in (("rows", plain), (layout, distinct)):
        copied = copy.deepcopy(model)
        add_fused_lm_head(copied)
        logps = forward_rows(copied, find_anatomy(copied), batch, name).log_probs.sum(1)
        (logps * weights).sum().backward()
        gradients.append({k: p.grad for k, p in copied.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and any("vision" in k or "visual" in k for k in gradients[0])
    largest = max(g.abs().max() for g in gradients[0].values())
    assert max((gradients[0][k] - gradients[1][k]).abs().max() for k in gradients[0]) < 1e-4 * largest


def test_eager_attention_takes_the_mask_too(one_thread):
    model, _, plain, distinct = batches("llava")
    model.set_attn_implementation("eager")
    anatomy = find_anatomy(model)
    add_fused_lm_head(model)
    with torch.no_grad():
        found = [forward_rows(model, anatomy, b, name).log_probs for name, b in (("rows", plain), ("prefix", distinct))]
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)


def hand_batch():
    """prompt 7 8, chosen 1 2 3, rejected 1 5; the visual row has a prompt of its own."""
    ids = torch.tensor([[7, 8, 1, 2, 3], [7, 8, 1, 5, 0], [9, 8, 1, 2, 3]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    scored = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]])
    labels = ids.masked_fill(scored == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "branch": torch.arange(3)}


def test_a_packed_row_by_hand():
    packed = pack(hand_batch(), torch.arange(5).repeat(2, 1), torch.float32)
    ids = packed.tensors["input_ids"]
    assert ids.tolist() == [[7, 8, 1, 2, 3, 1, 5], [9, 8, 1, 2, 3, 0, 0]]  # the shared 1 stands twice
    assert packed.tensors["labels"].tolist()[0] == [-100, -100, 1, 2, 3, -100, 5]
    assert packed.tensors["position_ids"].tolist()[0] == [0, 1, 2, 3, 4, 2, 3]
    seen = (packed.tensors["attention_mask"][0, 0] == 0).int().tolist()
    assert seen[4] == [1, 1, 1, 1, 1, 0, 0]
    assert seen[5] == [1, 1, 0, 0, 0, 1, 0]  # the prompt and itself, nothing of the chosen answer
    assert seen[6] == [1, 1, 0, 0, 0, 1, 1]
    outputs = torch.tensor([[0.0, 10, 11, 12, 0, 13], [0, 20, 21, 22, 0, 0]])  # of the next token
    assert packed.unpack(outputs).tolist() == [[0, 10, 11, 12], [0, 10, 13, 0], [0, 20, 21, 22]]


def test_equal_answers_and_an_answer_that_begins_another():
    batch = hand_batch()
    batch["input_ids"][1] = batch["input_ids"][0]
    batch["labels"][1] = batch["labels"][0]
    batch["attention_mask"][1] = 1
    packed = pack(batch, torch.arange(5).repeat(2, 1), torch.float32)
    assert packed.unpack(torch.arange(1.0, 13).view(2, 6))[:2].tolist() == [[0, 2, 3, 4]] * 2 or packed.source[0].equal(
        packed.source[1]
    )
    batch["attention_mask"][1, 4:] = 0
    batch["labels"][1, 4:] = -100
    packed = pack(batch, torch.arange(5).repeat(2, 1), torch.float32)
    values = packed.unpack(torch.arange(1.0, 1 + packed.tensors["input_ids"].numel() - 2).view(2, -1))
    assert torch.equal(values[0, :3], values[1, :3]) and values[1, 3] == 0


def test_sharing_pays_unless_answers_are_as_long_as_what_they_share():
    def batch(shared: int, answer: int):
        ids = torch.arange(shared + answer).repeat(3, 1)
        ids[1, shared:] += 1000
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "branch": torch.arange(3)}

    assert pays(batch(600, 60), 256) and pays(batch(30, 10), 32)
    assert not pays(batch(20, 60), 256) and not pays(batch(60, 60), 256)
