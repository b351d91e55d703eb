"""A question read back has the answer it was asked with, and in another scene the answer that is right there."""

import random

import pytest
from chiasm.scenes.answers import answer_to
from chiasm.scenes.benchmarks import scene_samples
from chiasm.scenes.questions import KINDS, question, short_query
from chiasm.scenes.world import make_scene, split_seeds


@pytest.mark.parametrize("kind", [*KINDS, "place"])
@pytest.mark.parametrize("ask", [question, short_query])
def test_every_question_is_answered_as_it_was_asked(kind, ask):
    asked = 0
    for seed in split_seeds("train", 150):
        scene = make_scene(seed)
        one = ask(scene, kind, random.Random(seed))
        if one is not None:
            asked += 1
            assert answer_to(one.text, scene) == one.answer, one.text
    assert asked > 40


@pytest.mark.parametrize("frame", ["short", "long"])
def test_text_in_front_is_passed_over(frame):
    for sample in scene_samples(40, "train", "existence", frame=frame):
        assert answer_to(sample.prompt, sample.truth["scene"]) == sample.answer


def test_what_has_no_one_answer_has_none():
    scene = next(s for s in map(make_scene, split_seeds("train", 200)) if any(s.count(c) > 1 for c in s.categories()))
    several = next(c for c in scene.categories() if scene.count(c) > 1)
    absent = next(c for c in ("cup", "dog", "car", "boat", "bed", "tree") if not scene.count(c))
    assert answer_to(f"what color is the {several} ?", scene) is None
    assert answer_to(f"what color is the {absent} ?", scene) is None
    assert answer_to(f"is the {absent} left of the {scene.categories()[0]} ?", scene) is None
    assert answer_to(f"is there a {absent} ?", scene) == "no"
    assert answer_to("describe the image in detail .", scene) is None
    assert answer_to("what color is the truth ?", scene) is None
