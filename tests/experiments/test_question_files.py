"""The benchmarks of published files, from their layout on the disk to the scores of answers made by hand."""

import json

import pytest
from chiasm.experiments.benchmarks import BENCHMARKS, open_benchmark
from chiasm.experiments.evaluation import evaluate_answers
from chiasm.scenes.errors import UserError
from chiasm.scenes.sample import Sample
from PIL import Image


def message(function, *arguments, **options):
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(path, content, *, lines=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = (
        "".join(json.dumps(one) + "\n" for one in content)
        if lines
        else content
        if isinstance(content, str)
        else json.dumps(content)
    )
    path.write_text(text)
    return path


def picture(path, size=(9, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


def scored(benchmark, tmp_path, **said):
    """The table of answers by id, as {(split, metric): row} of one method."""
    files = [
        write(tmp_path / f"{name}.jsonl", [{"id": i, "answer": a} for i, a in answers.items()], lines=True)
        for name, answers in said.items()
    ]
    table = evaluate_answers(benchmark, files).table
    return table.set_index(["split", "method", "metric"])


@pytest.fixture
def pope(tmp_path):
    """The three files of a release, each with questions numbered from 1."""
    root = tmp_path / "coco"
    for split, absent in (("random", "kite"), ("popular", "chair"), ("adversarial", "fork")):
        questions = [
            {
                "question_id": 2 * i + k + 1,
                "image": f"{i}.jpg",
                "text": f"Is there a {name} in the image?",
                "label": label,
            }
            for i in range(2)
            for k, (name, label) in enumerate((("cup", "yes"), (absent, "no")))
        ]
        write(root / f"coco_pope_{split}.json", questions, lines=True)
    return root


def test_pope_file_and_folder(pope, tmp_path):
    one = open_benchmark("pope", pope / "coco_pope_popular.json", look=False)
    assert [s.id for s in one.samples] == ["1", "2", "3", "4"] and one.facts(next(iter(one.samples)))[
        "split"
    ] == "popular"
    table = scored(one, tmp_path, mine={"1": "Yes.", "2": "No", "3": "no, there is not", "4": "I see a cup"})
    assert table.loc["popular", "mine", "accuracy"]["mean"] == 0.5
    assert table.loc["popular", "mine", "unparsed_rate"]["mean"] == 0.25
    assert table.loc["popular", "mine", "yes_ratio"]["mean"] == 0.25

    three = open_benchmark("pope", pope, look=False)
    ids = [s.id for s in three.samples]
    assert ids == [f"{split}/{i}" for split in ("random", "popular", "adversarial") for i in range(1, 5)]
    table = scored(three, tmp_path, mine={i: "yes" if i < "p" else "no" for i in ids})  # yes to the adversarial ones
    assert (
        table.loc["adversarial", "mine", "recall"]["mean"] == 1 and table.loc["random", "mine", "recall"]["mean"] == 0
    )
    assert table.loc["mean", "mine", "recall"]["mean"] == pytest.approx(1 / 3)
    assert table.loc["mean", "mine", "accuracy"]["n"] == 12
    limited = open_benchmark("pope", pope, limit=3, look=False)
    assert [s.id for s in limited.samples] == [f"{i[:-1]}{k}" for i in ids[::4] for k in (1, 2, 3)]
    for start in range(10):  # what a resumed run asks
        assert [s.id for s in limited.samples.iterate(start)] == [s.id for s in limited.samples][start:]
    assert len(limited.samples) == 9 and len(three.samples) == 12
    assert limited.samples.fingerprint() != three.samples.fingerprint()
    assert "images" in message(open_benchmark, "pope", pope)  # the pictures are not there


def test_pope_with_pictures(pope, tmp_path):
    for i in range(2):
        picture(tmp_path / "pictures" / f"{i}.jpg")
    samples = list(open_benchmark("pope", pope, images=tmp_path / "pictures").samples)
    assert all(isinstance(s, Sample) and len(s.images) == 1 for s in samples) and len(samples) == 12


@pytest.fixture
def coco(tmp_path):
    names = ["person", "cup", "dog", "cat", "tie", "bed", "skis"]
    has = {1: [2, 1, 2, 3], 2: [4, 5, 6, 2], 3: [7, 5, 6]}
    annotations = [{"image_id": i, "category_id": k, "bbox": [0, 0, 1, 1]} for i, ks in has.items() for k in ks]
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 9, "height": 6} for i in has]
    root = tmp_path / "coco"
    write(root / "annotations" / "instances_val2014.json", {
        "images": images, "annotations": annotations,
        "categories": [{"id": k, "name": name} for k, name in enumerate(names, 1)],
    })  # fmt: skip
    write(root / "annotations" / "captions_val2014.json", {
        "images": images,
        "annotations": [{"id": 1, "image_id": 1, "caption": "Two men and a bicycle."}, {"id": 2, "image_id": 2, "caption": "A cat."}],
    })  # fmt: skip
    for i in has:
        picture(root / "val2014" / f"{i}.jpg")
    return root


def test_pope_built_from_coco(coco):
    file = coco / "annotations" / "instances_val2014.json"
    assert "give 1 to 3" in message(open_benchmark, "pope", file)  # the published number of pictures is 500
    built = open_benchmark("pope", file, n=2, seed=1)
    samples = list(built.samples)
    assert len(samples) == 36 and all(isinstance(s, Sample) and s.images[0].size == (9, 6) for s in samples)
    assert samples[0].id == "random/1" and [s.answer for s in samples] == ["yes", "no"] * 18
    assert {built.facts(s)["image"] for s in samples} < {"1.jpg", "2.jpg", "3.jpg"}
    again = open_benchmark("pope", file, n=2, seed=2)
    assert again.samples.fingerprint() != built.samples.fingerprint()


def test_chair_of_coco(coco, tmp_path):
    chair = open_benchmark("chair", coco)
    facts = [chair.facts(s) for s in chair.samples]
    assert facts[0]["truth"] == ["bicycle", "cup", "dog", "person"]  # annotated, or in a reference caption
    assert facts[2]["truth"] == ["bed", "skis", "tie"]
    assert next(iter(chair.samples)).prompt == "Please describe this image in detail."
    said = {"1": "Two people and their dogs on a motorcycle.", "2": "A cat on a bed.", "3": "Nothing to see."}
    table = scored(chair, tmp_path, mine=said)
    assert table.loc["all", "mine", "chair_i"]["mean"] == pytest.approx(1 / 5)
    assert table.loc["all", "mine", "chair_s"]["mean"] == pytest.approx(1 / 3)
    assert table.loc["all", "mine", "recall"]["mean"] == pytest.approx(4 / 11)
    assert open_benchmark("chair", coco, prompt="What?", look=False).samples.readers["all"].prompt == "What?"
    write(coco / "annotations" / "instances_b.json", "{}")
    write(coco / "annotations" / "captions_b.json", "{}")
    assert "instances_b.json, instances_val2014.json" in message(open_benchmark, "chair", coco)
    assert open_benchmark("chair", coco / "annotations" / "instances_val2014.json")
    assert "has none" in message(open_benchmark, "chair", tmp_path)


def test_amber(tmp_path):
    root = tmp_path / "AMBER"
    write(root / "data" / "query" / "query_all.json", [
        {"id": 1, "image": "AMBER_1.jpg", "query": "Describe this image."},
        {"id": 2, "image": "AMBER_1.jpg", "query": "Is the sky sunny in this image?"},
        {"id": 3, "image": "AMBER_2.jpg", "query": "Is there a cat in this image?"},
    ])  # fmt: skip
    write(root / "data" / "annotations.json", [
        {"id": 1, "type": "generative", "truth": ["sky", "ship"], "hallu": ["cloud"]},
        {"id": 2, "type": "discriminative-attribute-state", "truth": "yes"},
        {"id": 3, "type": "discriminative-hallucination", "truth": "no"},
    ])  # fmt: skip
    write(root / "data" / "relation.json", {"sky": [], "ship": ["boat"], "cloud": [], "dog": []})
    write(root / "data" / "safe_words.txt", "image\n")
    amber = open_benchmark("amber", root, look=False)
    table = scored(amber, tmp_path, mine={"1": "A boat, a dog and a cloud.", "2": "No.", "3": "No."})
    assert table.loc["all", "mine", "chair"]["mean"] == pytest.approx(2 / 3)
    assert table.loc["all", "mine", "cover"]["mean"] == 0.5 and table.loc["all", "mine", "cog"]["mean"] == 1
    assert (
        table.loc["state", "mine", "accuracy"]["mean"] == 0 and table.loc["existence", "mine", "accuracy"]["mean"] == 1
    )
    assert table.loc["discriminative", "mine", "precision"]["mean"] == 0.5
    asked = open_benchmark("amber", root, look=False, limit=1)
    assert [s.id for s in asked.samples] == ["1"]
    two = scored(amber, tmp_path, a={"1": "", "2": "no", "3": "no"}, b={"1": "a dog", "2": "yes", "3": "no"})
    assert two.loc["all", "b", "hal"]["difference"] == 1 and two.loc["state", "b", "accuracy"]["difference"] == 1


def test_mme(tmp_path):
    for task in ("count", "color"):
        for name in ("a", "b"):
            write(tmp_path / "mme" / task / f"{name}.txt", f"Is it {name}?\tYes\nIs it not?\tNo\n")
    mme = open_benchmark("mme", tmp_path / "mme", look=False)
    said = {s.id: "Yes" for s in mme.samples} | {"count/a/2": "no", "color/a/2": "No", "color/b/2": "not sure"}
    table = scored(mme, tmp_path, mine=said)
    assert table.loc["count", "mine", "accuracy"]["mean"] == 0.75 and table.loc["count", "mine", "score"]["mean"] == 125
    assert table.loc["color", "mine", "score"]["mean"] == 200 and table.loc["mean", "mine", "score"]["mean"] == 162.5
    assert "rule 'official' is of pope and hallusion" in message(
        evaluate_answers, mme, [tmp_path / "mine.jsonl"], rule="official"
    )


def test_hallusion(tmp_path):
    def entry(figure, question, answer, seen="1"):
        return {
            "category": "VS", "subcategory": "map", "visual_input": seen, "set_id": "0", "figure_id": figure,
            "question_id": question, "question": "Is it?", "gt_answer": answer, "filename": "x.png",
        }  # fmt: skip

    entries = [entry("1", "0", "1"), entry("1", "1", "0"), entry("2", "0", "0", "2"), entry("0", "0", "1", "0")]
    file = write(tmp_path / "HallusionBench.json", entries)
    hallusion = open_benchmark("hallusion", file, look=False)
    said = {"VS_map_0_1_0": "Yes", "VS_map_0_1_1": "No", "VS_map_0_2_0": "Yes", "VS_map_0_0_0": "maybe"}
    table = scored(hallusion, tmp_path, mine=said)
    assert table.loc["all", "mine", "accuracy"]["mean"] == 0.5
    assert table.loc["all", "mine", "figure_accuracy"]["mean"] == 0.5  # of two figures; without one there is none
    assert table.loc["all", "mine", "figure_accuracy"]["n"] == 2
    assert table.loc["all", "mine", "pair_accuracy"]["mean"] == 0.5
    assert table.loc["all", "mine", "unparsed_rate"]["mean"] == 0.25
    picture(tmp_path / "x.png")
    assert [len(s.images) for s in open_benchmark("hallusion", file).samples] == [1, 1, 1, 0]


def test_scenes_are_whole_up_to_the_limit():
    for limit in (6, 17, 40):
        samples = open_benchmark("pope-scenes", limit=limit).samples
        labels = [s.answer for s in samples]
        assert labels.count("yes") == labels.count("no") and len(samples) <= 3 * limit
        assert len(samples) > 3 * (limit - 6) and len({s.id for s in samples}) == len(samples)
    assert "less than the questions about one scene" in message(open_benchmark, "pope-scenes", limit=1)
    assert [s.id for s in open_benchmark("pope-scenes", limit=40, seed=1).samples] != [
        s.id for s in open_benchmark("pope-scenes", limit=40).samples
    ]
    assert len(open_benchmark("chair-scenes", limit=5).samples) == 5


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("popes",), {}, ["'popes' is not known", "pope-scenes"]),
        (("pope",), {}, ["'pope' needs a path"]),
        (("pope-scenes", "x.json"), {}, ["takes no path", "x.json"]),
        (("chair-scenes",), {"images": "x"}, ["takes no path and no options", "'images'"]),
        (("pope", "x.json"), {}, ["x.json", "does not exist"]),
        (("mme", "."), {}, ["none of the folders existence"]),
        (("mme", "."), {"images": "x"}, ["option 'images' does not go with"]),
        (("amber", "."), {}, ["no 'annotations.json'"]),
        (("hallusion", "x.json"), {}, ["x.json", "does not exist"]),
        (("pope-scenes",), {"limit": 0}, ["limit 0"]),
    ],
)
def test_what_cannot_be_opened_is_one_line(tmp_path, monkeypatch, arguments, options, words):
    monkeypatch.chdir(tmp_path)
    told = message(open_benchmark, *arguments, **options)
    assert all(word in told for word in words), told
    assert arguments[0] in BENCHMARKS or "not known" in told
