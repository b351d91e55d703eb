"""The world's benchmarks: balanced, truthful, and made from the world's own statistics."""

import math
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from chiasm.scenes import benchmarks
from chiasm.scenes.benchmarks import (
    SAMPLINGS,
    caption_set,
    chair,
    description_set,
    pope_questions,
    scene_samples,
    skill_set,
    statistics,
)
from chiasm.scenes.language import KINDS, TASKS, mentions, vocabulary
from chiasm.scenes.render import render
from chiasm.scenes.sample import IMAGE_MARK, Sample
from chiasm.scenes.world import CATEGORIES, HOME, Scene, Thing, World, make_scene, split_seeds


@pytest.fixture(scope="module")
def scenes():
    return [make_scene(seed) for seed in split_seeds("train", 150)]


@pytest.fixture(scope="module")
def pope(scenes):
    return {sampling: pope_questions(scenes, sampling, rng_seed=0) for sampling in SAMPLINGS}


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_pope_is_balanced_in_every_scene_and_tells_the_truth(pope, scenes, sampling):
    labels = {scene.seed: [] for scene in scenes}
    for sample in pope[sampling]:
        scene, truth = sample.truth["scene"], sample.truth
        there = any(thing.category == truth["object"] for thing in scene.things)
        assert truth["label"] == sample.answer == ("yes" if there else "no") and truth["sampling"] == sampling
        assert truth["typical"] == (HOME[truth["object"]] == scene.place)
        article = "an" if truth["object"][0] in "aeiou" else "a"
        assert sample.prompt == f"{IMAGE_MARK} in the image , is there {article} {truth['object']} ?"
        labels[scene.seed].append(truth["label"])
    for scene in scenes:
        half = min(3, len({thing.category for thing in scene.things}))
        assert Counter(labels[scene.seed]) == {"yes": half, "no": half}
    assert len({sample.id for sample in pope[sampling]}) == len(pope[sampling])


def test_pope_samplings_share_their_positives_and_differ_in_their_negatives(pope):
    def objects(sampling, label):
        return [(s.truth["scene"].seed, s.truth["object"]) for s in pope[sampling] if s.answer == label]

    assert objects("random", "yes") == objects("popular", "yes") == objects("adversarial", "yes")
    assert len({tuple(objects(sampling, "no")) for sampling in SAMPLINGS}) == 3


def test_pope_popular_and_adversarial_follow_counts_made_anew(pope, scenes):
    train = [{t.category for t in make_scene(seed).things} for seed in split_seeds("train", statistics(World()).scenes)]
    often = Counter(category for present in train for category in present)
    assert often == statistics(World()).count
    for sampling in ("popular", "adversarial"):
        negatives = {scene.seed: [] for scene in scenes}
        for sample in pope[sampling]:
            if sample.answer == "no":
                negatives[sample.truth["scene"].seed].append(sample.truth["object"])
        for scene in scenes[:40]:
            here = {thing.category for thing in scene.things}
            if sampling == "popular":
                score = often
            else:
                score = Counter({c: sum(c in present and other in present for present in train for other in here)
                                 for c in CATEGORIES})  # fmt: skip
            chosen = negatives[scene.seed]
            others = [score[c] for c in CATEGORIES if c not in here and c not in chosen]
            assert min(score[c] for c in chosen) >= max(others)


def test_adversarial_questions_lure_with_what_the_place_suggests(pope):
    def typical(sampling):
        negatives = [sample for sample in pope[sampling] if sample.answer == "no"]
        return sum(sample.truth["typical"] for sample in negatives) / len(negatives)

    assert typical("adversarial") > 0.5 > 0.25 > typical("random")


def test_pope_repeats_itself_and_options_are_checked(scenes, pope):
    again = pope_questions(scenes, "random", rng_seed=0)
    assert [s.id for s in again] == [s.id for s in pope["random"]]
    assert [s.id for s in pope_questions(scenes, "random", rng_seed=1)] != [s.id for s in again]
    two = pope_questions(scenes[:20], "random", per_scene=2, frame="short", size=32)
    assert len(two) == 40 and all(sample.images[0].size == (32, 32) for sample in two)
    assert not any(sample.prompt.startswith(IMAGE_MARK) for sample in two)
    with pytest.raises(ValueError, match="random, popular, adversarial, got 'hard'"):
        pope_questions(scenes, "hard")


def test_chair_counts_mentions():
    things = (Thing("cup", "red", "small", 0.2, 0.3, 0.2), Thing("car", "red", "small", 0.8, 0.3, 0.4))
    scene = Scene(0, "kitchen", things, 1.0, 0)
    said = "a cup and two bottles . the bottle is left of the fish ."
    assert chair(mentions(said), scene) == {
        "mentioned": 4, "hallucinated": 3, "typical": 2, "objects": 2, "recalled": 1,
    }  # fmt: skip
    assert chair([], scene) == {"mentioned": 0, "hallucinated": 0, "typical": 0, "objects": 2, "recalled": 0}
    with pytest.raises(ValueError, match="not categories of this world: dragon"):
        chair(["cup", "dragon"], scene)


def test_true_captions_and_descriptions_hallucinate_nothing():
    for sample in [*caption_set(30, style="colour"), *description_set(30)]:
        counts = chair(mentions(sample.answer), sample.truth["scene"])
        assert counts["hallucinated"] == 0 and counts["recalled"] == counts["objects"]
        assert sample.truth["scene"].split == "test"


def test_noisy_samples_carry_the_planted_noise():
    world = World(label_noise=0.5, spurious=("lamp", "fish", 0.0))
    noisy = list(scene_samples(200, "train", "description", world=world, noisy=True, size=16))
    able = [s for s in noisy if s.truth["scene"].absent_typical()]
    lies = [chair(mentions(s.answer), s.truth["scene"])["hallucinated"] > 0 for s in able]
    assert abs(sum(lies) / len(lies) - 0.5) < 4 * math.sqrt(0.25 / len(lies))


@pytest.mark.parametrize("kind", (*KINDS, "place"))
def test_skills_with_a_picture_and_the_same_in_words(kind):
    seen = skill_set(kind, 12, "val")
    read = skill_set(kind, 12, "val", described=True)
    assert len(seen) == len(read) == 12
    for picture, words in zip(seen, read, strict=True):
        scene, asked = picture.truth["scene"], picture.truth["question"]
        assert words.truth == picture.truth and words.answer == picture.answer == asked.answer == picture.truth["label"]
        assert picture.prompt == f"{IMAGE_MARK} {asked.text}"
        assert not words.images and words.prompt.endswith(f" {asked.text}") and IMAGE_MARK not in words.prompt
        assert set(mentions(words.prompt.removesuffix(asked.text))) == set(scene.categories())
        assert scene.split == "val" and np.array_equal(np.asarray(picture.images[0]), render(scene).image)


@pytest.mark.parametrize("kind", TASKS)
def test_text_only_skills_have_no_picture_and_differ_by_split(kind):
    samples = skill_set(kind, 50)
    assert len({sample.id for sample in samples}) == 50
    assert all(not s.images and IMAGE_MARK not in s.prompt and len(s.answer.split()) == 1 for s in samples)
    assert skill_set(kind, 50) == samples
    assert [s.prompt for s in skill_set(kind, 50, "train")] != [s.prompt for s in samples]
    with pytest.raises(ValueError, match=r"kind is one of existence, .*, sorting, got 'smell'"):
        skill_set("smell", 1)


def test_the_reader_is_lazy(monkeypatch):
    drawn = []
    monkeypatch.setattr(benchmarks, "render", lambda scene, size: drawn.append(scene.seed) or render(scene, size))
    stream = scene_samples(10**9, "train", "existence")
    assert drawn == []
    first = list(islice(stream, 3))
    assert drawn == [0, 1, 2] and all(isinstance(sample, Sample) for sample in first)


def test_the_reader_slices_repeats_and_checks_its_arguments():
    whole = [s.id for s in scene_samples(12, "test", "description", size=16)]
    assert [s.id for s in scene_samples(5, "test", "description", start=7, size=16)] == whole[7:]
    assert len(list(scene_samples(40, "train", "relation", size=16))) == 40  # passes over scenes without a relation
    for wrong in ({"kind": "poem"}, {"frame": "huge"}, {"split": "dev"}, {"style": "poem", "kind": "caption"}):
        with pytest.raises(ValueError, match="is one of"):
            next(scene_samples(1, **wrong))


@pytest.mark.parametrize(("frame", "least"), [("short", 4), ("long", 32)])
def test_frames_put_text_on_both_sides(frame, least):
    words = set(vocabulary())
    for sample in scene_samples(20, "test", "existence", frame=frame):
        before, after = sample.prompt.split(IMAGE_MARK)
        assert len(before.split()) >= least and len(after.split()) >= least
        assert after.endswith(sample.truth["question"].text) and set(sample.prompt.split()) <= words | {IMAGE_MARK}
