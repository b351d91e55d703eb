"""POPE's questions built from lists of objects: against lists made by hand, and the rules on many."""

import json
import random
from collections import Counter
from itertools import combinations

import pytest
from chiasm.scenes.errors import UserError
from chiasm.scenes.pope_builder import STRATEGIES, build_pope, scene_objects
from chiasm.scenes.readers import Coco, open_data
from chiasm.scenes.words import with_article
from chiasm.scenes.world import make_scene, split_seeds
from PIL import Image

# Counted by hand. Frequencies over a, b, c, e (d has two objects and does not count, nor does its zebra):
# cup 3, spoon 2, fork 2, and dog, cat, oven, bird, kite, tree 1 each, in the order first seen.
IMAGES = [
    {"image": "a", "objects": ["cup", "spoon", "cup", "fork", "dog"]},
    {"image": "d", "objects": ["zebra", "cup", "zebra"]},
    {"image": "b", "objects": ["cup", "cat", "spoon"]},
    {"image": "c", "objects": ["oven", "fork", "cup"]},
    {"image": "e", "objects": ["bird", "kite", "tree"]},
]


SPARE = [{"image": "s", "objects": ["tin", "jar", "cup"]}]


def asked(records, image, label):
    made = [r for r in records if r["image"] == image and r["label"] == label]
    return [r["text"].removesuffix(" in the image?").split(" ", 3)[3] for r in made]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_positives_order_and_ids(strategy):
    records = build_pope(IMAGES, strategy)
    assert [r["question_id"] for r in records] == list(range(1, 25))
    assert [r["label"] for r in records] == ["yes", "no"] * 12
    assert [r["image"] for r in records] == ["a"] * 6 + ["b"] * 6 + ["c"] * 6 + ["e"] * 6
    assert asked(records, "a", "yes") == ["cup", "spoon", "fork"]
    assert asked(records, "c", "yes") == ["oven", "fork", "cup"]
    assert records[0] == {"question_id": 1, "image": "a", "text": "Is there a cup in the image?", "label": "yes"}
    assert "Is there an oven in the image?" in [r["text"] for r in records]
    assert not [r for r in records if "zebra" in r["text"]]


def test_popular_by_hand():
    records = build_pope(IMAGES, "popular")
    assert asked(records, "b", "no") == ["fork", "dog", "oven"]
    assert asked(records, "a", "no") == ["cat", "oven", "bird"]  # all seen once: first seen, first asked
    assert asked(records, "e", "no") == ["cup", "spoon", "fork"]


def test_adversarial_by_hand():
    records = build_pope(IMAGES, "adversarial", seed=0)
    # b has cup, cat, spoon. With the cup: fork twice, dog and oven once. With the cat: nothing but cup and spoon, so random.
    # With the spoon: fork and dog, of which the fork is asked already.
    near_cup, at_random, near_spoon = asked(records, "b", "no")
    assert near_cup == "fork" and at_random in {"dog", "oven", "bird", "kite", "tree"}
    assert near_spoon == "dog" if at_random != "dog" else near_spoon not in {"cup", "cat", "spoon", "fork", "dog"}
    assert len({asked(build_pope(IMAGES, "adversarial", seed), "b", "no")[1] for seed in range(40)}) == 5
    # a: with the cup cat (seen before the oven), with the spoon only cat, which is asked, so random; with the fork oven.
    first, second, third = asked(records, "a", "no")
    assert first == "cat" and second in {"oven", "bird", "kite", "tree"}
    assert third == "oven" if second != "oven" else third in {"bird", "kite", "tree"}


def test_random_is_uniform_over_what_is_left():
    counts = Counter()
    for seed in range(600):
        counts.update(asked(build_pope(IMAGES[2:4] + IMAGES[:1] + SPARE, "random", seed), "b", "no")[:1])
    assert set(counts) == {"oven", "fork", "dog", "tin", "jar"} and min(counts.values()) > 80


@pytest.fixture(scope="module")
def many():
    rng = random.Random(5)
    names = [f"thing{i}" for i in range(30)]
    return [
        {"image": f"{i}.jpg", "objects": rng.choices(names, [1 / (k + 1) for k in range(30)], k=rng.randrange(1, 12))}
        for i in range(300)
    ]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_rules_hold_on_many(many, strategy):
    records = build_pope(many, strategy, seed=3)
    there = {entry["image"]: set(entry["objects"]) for entry in many}
    used = [image for image in there if len(there[image]) >= 3]
    often = Counter(name for image in used for name in there[image])
    assert len(records) == 6 * len(used) and Counter(r["label"] for r in records) == {
        "yes": len(records) / 2,
        "no": len(records) / 2,
    }
    assert build_pope(many, strategy, seed=3) == records
    together = Counter(pair for image in used for a, b in combinations(there[image], 2) for pair in ((a, b), (b, a)))
    for image in used:
        yes, no = asked(records, image, "yes"), asked(records, image, "no")
        assert set(yes) <= there[image] and not set(no) & there[image]
        assert len({*yes, *no}) == 6  # no repeats
        if strategy == "popular":
            counts = [often[name] for name in no]
            assert counts == sorted(counts, reverse=True)
            assert counts == sorted((often[n] for n in often if n not in there[image]), reverse=True)[:3]
        if strategy == "adversarial":
            left = set(often) - there[image]
            for positive, negative in zip(yes, no, strict=True):
                assert together[positive, negative] == max(together[positive, name] for name in left)
                left -= {negative}


def test_drawing_pictures_is_the_same_for_every_strategy(many):
    drawn = {strategy: build_pope(many, strategy, seed=1, n=40) for strategy in STRATEGIES}
    images = {strategy: [r["image"] for r in records] for strategy, records in drawn.items()}
    assert images["random"] == images["popular"] == images["adversarial"] and len(images["random"]) == 240
    assert build_pope(many, "random", seed=2, n=40) != drawn["random"]


def test_written_and_read_back(tmp_path):
    images = [entry | {"image": f"{entry['image']}.png"} for entry in IMAGES]
    for entry in images:
        Image.new("RGB", (8, 8)).save(tmp_path / entry["image"])
    records = build_pope(images, "popular")
    (tmp_path / "pope.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    samples = list(open_data(tmp_path / "pope.jsonl"))
    assert [(s.id, s.prompt, s.answer, s.truth["image"]) for s in samples] == [
        (str(r["question_id"]), r["text"], r["label"], r["image"]) for r in records
    ]
    assert [s.truth["object"] for s in samples][:2] == ["cup", "cat"]


def test_from_scenes_and_from_coco(tmp_path):
    scenes = [make_scene(seed) for seed in split_seeds("test", 60)]
    records = build_pope(scene_objects(scenes), "adversarial")
    by_name = {f"scene-{scene.seed}": scene for scene in scenes}
    assert {r["image"] for r in records} == {name for name, s in by_name.items() if len(s.categories()) >= 3}
    for record in records:
        name = record["text"].removesuffix(" in the image?").split()[-1]
        assert (by_name[record["image"]].count(name) > 0) == (record["label"] == "yes")

    names = ["person", "cup", "dog", "cat", "tie", "bed", "car"]
    annotations = [{"image_id": 1, "category_id": k, "bbox": [0, 0, 1, 1]} for k in (2, 1, 2, 3)]
    annotations += [{"image_id": 2, "category_id": k, "bbox": [0, 0, 1, 1]} for k in (4, 5, 6, 2)]
    annotations += [{"image_id": 3, "category_id": k, "bbox": [0, 0, 1, 1]} for k in (7, 5, 6)]
    (tmp_path / "instances.json").write_text(
        json.dumps(
            {
                "images": [
                    {"id": 1, "file_name": "one.jpg"},
                    {"id": 2, "file_name": "two.jpg"},
                    {"id": 3, "file_name": "three.jpg"},
                ],
                "annotations": annotations,
                "categories": [{"id": k, "name": name} for k, name in enumerate(names, 1)],
            }
        )
    )
    lists = list(Coco(tmp_path / "instances.json").object_lists())  # without a picture on the disk
    assert lists[0] == {"image": "one.jpg", "objects": ["cup", "person", "cup", "dog"]}
    assert asked(build_pope(lists, "popular"), "one.jpg", "no") == ["tie", "bed", "cat"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((IMAGES, "hard"), ["strategy 'hard'", "random, popular, adversarial"]),
        ((IMAGES[1:2], "random"), ["no picture has 3"]),
        ((IMAGES[:1], "random"), ["picture 'a' leaves no object"]),
    ],
)
def test_what_cannot_be_built_is_one_line(arguments, words):
    with pytest.raises(UserError) as caught:
        build_pope(*arguments)
    assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words)
    with pytest.raises(UserError, match="give 1 to 4"):
        build_pope(IMAGES, "random", n=5)


@pytest.mark.parametrize(
    "said",
    ["an apple", "an umbrella", "an hourglass", "a unicycle", "a uniform", "a utensil", "an oven", "a one-way sign",
     "a ewe", "a horse", "an Orange", "an orange", "a house", "an unidentified thing", "an unmade bed", "an uncle"],
)  # fmt: skip
def test_articles(said):
    assert with_article(said.split(" ", 1)[1]) == said
