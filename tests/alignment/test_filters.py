"""Filters: each reason by hand, judges, and the classifier that sees the texts alone."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from chiasm.alignment.filters import REASONS, Filters, edit_similarity
from chiasm.alignment.giveaway import giveaway
from chiasm.alignment.infill import Fill, Shown
from chiasm.alignment.judges import ModelJudge, SceneJudge
from chiasm.alignment.masking import MaskedText, SceneMasker
from chiasm.alignment.sentences import SentenceSimilarity, mean_states
from chiasm.models import open_vlm
from chiasm.scenes.errors import UserError
from chiasm.scenes.world import Scene, Thing
from PIL import Image
from transformers import BertConfig, BertModel, BertTokenizerFast

from .pairs import tiny

CUP = Thing("cup", "red", "small", 0.2, 0.3, 0.2)
KITCHEN = Scene(0, "kitchen", (CUP,), 1.0, 0)
GREY = Image.new("RGB", (32, 32), "grey")
TEXT = "a red cup in a kitchen ."
MASKED = MaskedText(TEXT, tuple(span for span in SceneMasker().spans(TEXT) if span.slot == "colour"))


def shown(scene=KITCHEN):
    return Shown(GREY, {"scene": scene})


@pytest.mark.parametrize(
    ("fill", "reason"),
    [
        (Fill("a blue cup in a kitchen .", ("blue",)), None),
        (Fill("a red cup in a kitchen .", ("red",)), "unchanged"),
        (Fill("A Red cup in a kitchen", ("Red",)), "unchanged"),
        (Fill(" ", ("x",)), "empty"),
        (Fill("a cup in a kitchen .", (" ",)), "empty"),
        (Fill("a [MASK] cup in a kitchen .", ("[MASK]",)), "mask_left"),
        (Fill("a [ mask ] cup in a kitchen .", ("[ mask ]",)), "mask_left"),
        (Fill("a blue and green and very old cup in a kitchen .", ("blue and green and very old",)), "length"),
        (Fill("a blue and green cup in a kitchen .", ("blue and green",)), None),  # two words more
    ],
)
def test_texts(fill, reason):
    assert Filters(SceneJudge()).text(MASKED, fill) == reason


def test_similarity_and_length_are_as_told():
    fill = Fill("a blue cup in a kitchen .", ("blue",))
    assert Filters(SceneJudge(), similarity=(lambda a, b: 0.96, 0.95)).text(MASKED, fill) == "too_similar"
    assert Filters(SceneJudge(), similarity=(lambda a, b: 0.94, 0.95)).text(MASKED, fill) is None
    assert Filters(SceneJudge(), max_length_difference=0, length=lambda t: len(t)).text(MASKED, fill) == "length"
    assert edit_similarity("a b c d", "a x c d") == 0.75 and edit_similarity("a", "a") == 1


def test_truth_by_the_graph():
    filters = Filters(SceneJudge())
    assert filters.chosen([TEXT, "a blue cup ."], [shown()] * 2) == [(None, 1.0), ("chosen_false", 0.0)]
    assert filters.rejected_texts([1.0] * 3, ["a blue cup .", "a cup .", "a cup of tea"], [shown()] * 3) == [
        (None, 0.0), ("rejected_true", 1.0), ("not_checkable", None),
    ]  # fmt: skip
    other = replace(KITCHEN, place="beach")
    assert filters.rejected_pictures([1.0] * 2, [TEXT] * 2, [shown(), shown(other)]) == [
        ("chosen_true", 1.0),
        (None, 0.0),
    ]
    assert Filters(SceneJudge(), check_picture=False).rejected_pictures([1.0], [TEXT], [shown()]) == [(None, None)]
    assert SceneJudge()(["a cup and a pot . the lamp is above the cup ."], [shown()]) == [None]


class Opinion:
    """A judge that is not exact."""

    name, exact = "opinion", False

    def __init__(self, *values):
        self.values = list(values)

    def __call__(self, texts, shown):
        return [self.values.pop(0) for _ in texts]


def test_a_judge_that_is_not_exact_needs_a_margin():
    filters = Filters(Opinion(0.2, 0.7, 0.61, 0.59), margin=0.1)
    assert filters.chosen(["x"], [shown()]) == [(None, 0.2)]  # it has the last word on nothing
    assert [r for r, _ in filters.rejected_texts([0.7] * 3, ["x"] * 3, [shown()] * 3)] == [
        "rejected_true", "rejected_true", None,
    ]  # fmt: skip


def test_the_models_opinion_is_its_first_token():
    model, processor = tiny("llava", scale=1.0)
    vlm = open_vlm(model=model, processor=processor, device="cpu")
    found = ModelJudge(vlm, question="is {text} ?")(["cat", "dog", "cat"], [Shown(GREY)] * 3)
    assert all(0 <= value <= 1 for value in found) and found[0] == pytest.approx(found[2], abs=1e-5)


def test_the_organism_says_yes_to_what_is_there():
    from chiasm.scenes.benchmarks import pope_questions
    from chiasm.scenes.world import make_scene, split_seeds

    vlm = open_vlm("organism", device="cpu")
    asked = pope_questions([make_scene(seed) for seed in split_seeds("test", 8)], "random")
    judge = ModelJudge(vlm, question="{text}")
    found = judge([s.prompt.replace("<image> ", "") for s in asked], [Shown(s.images[0]) for s in asked])
    yes = [p for p, s in zip(found, asked, strict=True) if s.answer == "yes"]
    no = [p for p, s in zip(found, asked, strict=True) if s.answer == "no"]
    assert sum(yes) / len(yes) > 0.7 > 0.3 > sum(no) / len(no)


def test_a_word_that_gives_the_text_away_is_found_and_a_fair_set_is_not_accused():
    draw = random.Random(0)
    colours = ("red", "blue", "green", "pink")
    pairs = [draw.sample(colours, 2) for _ in range(200)]
    chosen, rejected = ([f"a {pair[i]} cup" for pair in pairs] for i in (0, 1))
    fair = giveaway(chosen, rejected)
    assert fair["n"] == 200 and fair["low"] < 0.5 < fair["high"]
    told = giveaway(chosen, [f"{text} maybe" for text in rejected])
    assert told["mean"] == 1.0
    longer = giveaway(chosen, [text.replace("cup", "cup cup") for text in rejected])
    assert longer["mean"] > 0.95
    assert giveaway(chosen, chosen)["mean"] == 0.5  # ties
    few = giveaway(chosen[:5], rejected[:5])
    assert few["mean"] != few["mean"] and few["n"] == 5
    assert giveaway(chosen, rejected) == fair


def test_sentence_similarity(tmp_path):
    mean = mean_states(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]]))
    assert mean.tolist() == [[2.0]]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "cup"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    small = BertConfig(vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(small).save_pretrained(tmp_path)
    BertTokenizerFast(vocab_file=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    alike = SentenceSimilarity(str(tmp_path))
    assert alike("a red cup", "a red cup") == pytest.approx(1, abs=1e-5)
    assert alike("a red cup", "blue") < 0.999
    with pytest.raises(UserError, match="cannot be loaded"):
        SentenceSimilarity("nowhere/none")


def test_every_reason_is_explained():
    assert all(REASONS.values()) and len(set(REASONS.values())) == len(REASONS)


def test_an_answer_is_judged_by_what_was_asked():
    asked = Shown(GREY, {"scene": KITCHEN}, "what color is the cup ?")
    assert SceneJudge()(["red", "blue"], [asked] * 2) == [1.0, 0.0]
    assert SceneJudge()(["red"], [shown()]) == [None]  # nobody asked


def test_without_filters_truth_is_told_and_nothing_is_refused_for_it():
    filters = Filters(SceneJudge(), enforced=False)
    assert filters.chosen(["a blue cup .", "a cup of tea"], [shown()] * 2) == [(None, 0.0), (None, None)]
    assert filters.rejected_texts([1.0], ["a cup ."], [shown()]) == [(None, 1.0)]
    assert filters.rejected_pictures([1.0], [TEXT], [shown()]) == [(None, 1.0)]
    assert (
        filters.text(MASKED, Fill("a blue and green and very old cup in a kitchen .", ("blue and very old",))) is None
    )
    assert filters.text(MASKED, Fill("a red cup in a kitchen .", ("red",))) == "unchanged"
