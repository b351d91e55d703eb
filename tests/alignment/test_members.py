"""The members that learners make: task tokens as words say what they said as task tokens, and what the shipped ones are."""

from __future__ import annotations

import pytest
import torch
from chiasm.alignment.distillation import Distillation, DistillationConfig
from chiasm.alignment.members import token_tables, with_tokens
from chiasm.models import open_vlm
from chiasm.models.organism.ask import answer
from chiasm.models.organism.family import FILES, load_organism
from chiasm.scenes.benchmarks import caption_set, scene_samples, skill_set
from chiasm.scenes.errors import UserError


def distillation_of(vlm, layers=("depth", "segmentation")) -> Distillation:
    torch.manual_seed(0)
    return Distillation(vlm, DistillationConfig(layers=dict.fromkeys(layers, (1,)), tokens=4, grid=4, width=16))


@pytest.fixture(scope="module")
def read():
    """A batch with task tokens, what the model says of it, and the model and batch with the tokens as words."""
    vlm = open_vlm("organism/aligned", device="cpu")
    samples = [*scene_samples(2, "test"), *skill_set("sums", 1)]
    extra = distillation_of(vlm)
    placed = extra.place(vlm, vlm.prepare_samples(samples))
    with extra.reading(vlm, placed), torch.no_grad():
        wanted = vlm.forward(placed.inputs, use_cache=False).logits
    worded = with_tokens(vlm, extra)
    return placed, wanted, worded, worded.prepare_samples(samples)


def test_words_say_what_the_tokens_said(read):
    placed, wanted, worded, inputs = read
    assert torch.equal(inputs.tensors["attention_mask"], placed.inputs.tensors["attention_mask"])
    assert torch.equal(inputs.spans.labels, placed.inputs.spans.labels)  # "image", without a visual token, as there
    assert torch.equal(inputs.spans.visual, placed.inputs.spans.visual)
    with torch.no_grad():
        logits = worded.forward(inputs, use_cache=False).logits
    real = inputs.spans.real
    torch.testing.assert_close(logits[..., : wanted.shape[-1]][real], wanted[real], rtol=1e-4, atol=1e-4)


def test_they_are_never_said_and_a_plain_folder_holds_them(read, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    _, wanted, worded, inputs = read
    with torch.no_grad():
        logits = worded.forward(inputs, use_cache=False).logits
    n = wanted.shape[-1]
    assert logits.shape[-1] == n + 8
    assert torch.equal(logits[..., n:], logits[..., worded.tokenizer.pad_token_id, None].expand_as(logits[..., n:]))
    worded.save(tmp_path)
    again = open_vlm(model=AutoModelForImageTextToText.from_pretrained(tmp_path), processor=AutoProcessor.from_pretrained(tmp_path))  # fmt: skip
    theirs = again.prepare_samples(inputs.samples)
    assert torch.equal(theirs.tensors["input_ids"], inputs.tensors["input_ids"])
    with torch.no_grad():
        torch.testing.assert_close(again.forward(theirs, use_cache=False).logits, logits)


def test_tasks_in_another_order_than_their_names_are_refused():
    vlm = open_vlm("organism/aligned", device="cpu")
    with pytest.raises(UserError, match="in the order of their names"):
        token_tables(distillation_of(vlm, ("segmentation", "depth")))


# -- the shipped members -----------------------------------------------------------------------------------------------------


def right(name: str, kinds, n: int) -> float:
    member, hits = load_organism(name), []
    for kind in kinds:
        samples = skill_set(kind, n, "test")
        hits += [t.split()[:1] == [s.answer] for t, s in zip(answer(member, samples), samples, strict=True)]
    return sum(hits) / len(hits)


def test_wings_keep_the_text_skill_that_tuning_loses_and_see_more_than_aligned():
    text, seeing = ("sums", "facts", "sequences"), ("colour", "number", "position")
    assert right("wings", text, 40) > right("tuned", text, 40) + 0.05
    assert right("wings", seeing, 40) > right("aligned", seeing, 40) + 0.1


def test_ola_is_a_plain_llava_that_reads_its_tokens_behind_the_picture():
    vlm = open_vlm("organism/ola", device="cpu")
    (sample,) = caption_set(1, "test")
    inputs = vlm.prepare([sample.images], [sample.prompt])
    words = vlm.tokenizer.convert_ids_to_tokens(inputs.tensors["input_ids"][0].tolist())
    last = int(torch.nonzero(inputs.spans.visual[0]).max())
    assert words[last + 1] == "<image_depth_0>" and words[last + 16] == "<image_segmentation_7>"
    assert type(vlm.model).__name__ == "LlavaForConditionalGeneration"
    told = vlm.generate(inputs, max_new_tokens=30)[0]
    assert told and "<" not in told


def test_their_files_are_small():
    size = sum(path.stat().st_size for name in ("wings", "ola") for path in (FILES / name).iterdir())
    assert size < 3e6
