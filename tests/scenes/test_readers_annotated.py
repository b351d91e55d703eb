"""COCO's annotation files and POPE's question files."""

import json

import numpy as np
import pytest
from chiasm.scenes.errors import UserError
from chiasm.scenes.pictures import open_picture
from chiasm.scenes.readers import Coco, PopeQuestions, open_data
from chiasm.scenes.sample import BadSample, Sample


def message(function, *arguments, **options):
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def coco(tmp_path, photo):
    """The layout as downloaded: annotations/instances_val2017.json beside val2017/."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    images = []
    for number, name in ((42, "coffee"), (7, "china"), (139, "flower")):
        image = photo(f"{name}.{'png' if name == 'coffee' else 'jpg'}", 100)
        file_name = f"{number:012}.jpg"
        image.save(tmp_path / "val2017" / file_name)
        images.append({"id": number, "file_name": file_name, "width": image.width, "height": image.height})
    instances = {
        "info": {"year": 2017},
        "images": images,
        "annotations": [
            {"id": 1, "image_id": 42, "category_id": 47, "bbox": [10.5, 5, 30, 20.25], "area": 300.0, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 1, "bbox": [0, 0, 8, 9], "iscrowd": 1},
            {"id": 3, "image_id": 42, "category_id": 50, "bbox": [40, 40, 10, 10], "iscrowd": 0},
            {"id": 4, "image_id": 42, "category_id": 47, "bbox": [50, 30, 20, 20], "iscrowd": 0},
            {"id": 5, "image_id": 999, "category_id": 1, "bbox": [0, 0, 1, 1], "iscrowd": 0},
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 47, "name": "cup"}, {"id": 50, "name": "spoon"}],
    }
    captions = {
        "images": images,
        "annotations": [
            {"image_id": 7, "id": 11, "caption": "A temple by a lake. "},
            {"image_id": 42, "id": 12, "caption": "A cup of coffee."},
            {"image_id": 42, "id": 13, "caption": "Coffee with a spoon."},
        ],
    }
    for kind, content in (("instances", instances), ("captions", captions)):
        (tmp_path / "annotations" / f"{kind}_val2017.json").write_text(json.dumps(content))
    return tmp_path


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("indent", [None, 1])
def test_instances(coco, indent):
    path = coco / "annotations" / "instances_val2017.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=indent))
    reader = open_data(path)
    assert isinstance(reader, Coco) and len(reader) == 3
    coffee, china, flower = reader
    assert [sample.id for sample in (coffee, china, flower)] == ["42", "7", "139"]
    assert coffee.prompt == "Describe the image." and coffee.answer is None
    assert coffee.truth == {
        "image_id": 42,
        "objects": (
            {"category": "cup", "box": (10.5, 5.0, 40.5, 25.25), "crowd": False},
            {"category": "spoon", "box": (40.0, 40.0, 50.0, 50.0), "crowd": False},
            {"category": "cup", "box": (50.0, 30.0, 70.0, 50.0), "crowd": False},
        ),
        "categories": ("cup", "spoon"),
    }
    assert china.truth["objects"] == ({"category": "person", "box": (0.0, 0.0, 8.0, 9.0), "crowd": True},)
    assert flower.truth["objects"] == flower.truth["categories"] == ()
    assert np.array_equal(china.images[0], open_picture(coco / "val2017" / "000000000007.jpg"))


def test_captions(coco):
    coffee, china, flower = open_data(coco / "annotations" / "captions_val2017.json", prompt="Caption?")
    assert (coffee.prompt, coffee.answer) == ("Caption?", "A cup of coffee.")
    assert coffee.truth == {"image_id": 42, "captions": ("A cup of coffee.", "Coffee with a spoon.")}
    assert china.answer == "A temple by a lake."
    assert flower.answer is None and flower.truth["captions"] == ()


@pytest.mark.parametrize("place", ["here", "images", "beside", "option"])
def test_where_the_pictures_are_looked_for(coco, tmp_path_factory, place):
    path = coco / "annotations" / "instances_val2017.json"
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "x"
    goal = {"here": path.parent, "images": path.parent / "images", "beside": coco / "images", "option": elsewhere}[
        place
    ]
    if place == "here":
        for picture in (coco / "val2017").iterdir():
            picture.rename(goal / picture.name)
    else:
        (coco / "val2017").rename(goal)
    samples = list(open_data(path, **({"images": goal} if place == "option" else {})))
    assert [type(sample) for sample in samples] == [Sample] * 3


def test_missing_pictures(coco):
    path = coco / "annotations" / "instances_val2017.json"
    (coco / "val2017" / "000000000007.jpg").unlink()
    bad = list(open_data(path))[1]
    assert isinstance(bad, BadSample) and bad.id == "7"
    assert bad.reason.startswith("'instances_val2017.json' image 7: picture ")
    assert "000000000007.jpg' does not exist" in bad.reason and "images=" in bad.reason
    (coco / "val2017").rename(coco / "elsewhere")
    assert "no item of" in (told := message(open_data, path)) and "000000000042.jpg' does not exist" in told
    assert "is not a folder" in message(open_data, path, images=coco / "no")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["annotations"][1].update(category_id=5), ["category_id 5 is not among the file's 3 categories"]),
        (lambda c: c["annotations"][1].update(category_id=[5]), ["category_id [5]"]),
        (lambda c: c["annotations"][1].update(bbox=[1, 2, 3]), ["'bbox' is [1, 2, 3], must be [x, y, width, height]"]),
        (lambda c: c["annotations"][1].update(bbox=[1, 2, 3, float("nan")]), ["'bbox' is [1, 2, 3, nan]"]),
        (lambda c: c["annotations"][1].pop("bbox"), ["'bbox' is None"]),
        (lambda c: c["images"][1].pop("file_name"), ["no 'file_name', it has 'id', 'width', 'height'"]),
        (lambda c: c["images"][1].update(width=50), ["100 × 67 pixels but listed as 50 × 67", "boxes"]),
    ],
)
def test_a_bad_entry_is_one_bad_sample(coco, change, words):
    items = list(open_data(edit(coco / "annotations" / "instances_val2017.json", change)))
    assert [type(item) for item in items] == [Sample, BadSample, Sample]
    assert items[1].id == "7"
    for word in words:
        assert word in items[1].reason


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"images": [], "annotations": []}', ["is empty"]),
        ('{"images": [', ["is not JSON"]),
        ('{\n"licenses": []}', ["no lists 'images' and 'annotations', it has 'licenses'", "instances or captions"]),
        ('{"images": {}, "annotations": []}', ["no lists 'images' and 'annotations'"]),
        ('{"images": [1], "annotations": [{"id": 3}]}', ["annotations[0] has no 'image_id': {'id': 3}"]),
        (
            '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "keypoints": []}]}',
            ["neither 'caption' nor 'category_id', they have 'image_id', 'keypoints'"],
        ),
        ('{"images": [{"name": "a.jpg"}, 3], "annotations": []}', ["no item of", "must be an object with 'id'"]),
    ],
)
def test_a_file_that_is_no_coco_file(tmp_path, content, words):
    path = tmp_path / "instances.json"
    path.write_text(content)
    told = message(open_data, path)
    for word in ("instances.json", *words):
        assert word in told


# --- POPE


QUESTIONS = [
    ("000000310196.jpg", "Is there a snowboard in the image?", "yes", "snowboard"),
    ("000000310196.jpg", "Is there a dining table in the image?", "no", "dining table"),
    ("000000210789.jpg", "Is there an umbrella in the imange?", "no", "umbrella"),  # spelt so in a published file
    ("000000210789.jpg", "Does the picture show a dog?", "Yes", None),
]


@pytest.fixture
def pope(tmp_path, photo):
    (tmp_path / "val2014").mkdir()
    for name, number in (("coffee.png", 310196), ("china.jpg", 210789)):
        photo(name, 60).save(tmp_path / "val2014" / f"COCO_val2014_{number:012}.jpg")
    path = tmp_path / "coco_pope_popular.json"
    with path.open("w") as stream:
        for number, (image, text, label, _) in enumerate(QUESTIONS, 1):
            record = {"question_id": number, "image": f"COCO_val2014_{image}", "text": text, "label": label}
            stream.write(json.dumps(record) + "\n")
    return path


@pytest.mark.parametrize("name", ["coco_pope_popular.json", "popular.jsonl", "popular.txt"])
def test_pope(pope, name):
    reader = open_data(pope.rename(pope.with_name(name)))
    assert isinstance(reader, PopeQuestions)
    samples = list(reader)
    for number, (sample, (image, text, label, thing)) in enumerate(zip(samples, QUESTIONS, strict=True), 1):
        assert (sample.id, sample.prompt, sample.answer) == (str(number), text, label.lower())
        assert sample.truth == {"label": label.lower(), "object": thing, "image": f"COCO_val2014_{image}"}
        assert np.array_equal(sample.images[0], open_picture(pope.parent / "val2014" / f"COCO_val2014_{image}"))


def test_pope_pictures_elsewhere(pope, tmp_path):
    (tmp_path / "val2014").rename(tmp_path / "pictures")
    told = message(open_data, pope)
    assert "COCO_val2014_000000310196.jpg' does not exist" in told and "images=" in told
    assert len(list(open_data(pope, images=tmp_path / "pictures"))) == 4
    assert len(list(open_data(pope, images=str(tmp_path / "pictures")))) == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda r: r.pop("label"),
            ["no 'label', it has 'question_id', 'image', 'text'", "question_id, image, text, label"],
        ),
        (lambda r: r.update(label="maybe"), ["'label' is 'maybe', must be yes or no"]),
        (lambda r: r.update(label=1), ["'label' is 1, must be text"]),
        (lambda r: r.update(text=""), ["'text' is blank"]),
        (lambda r: r.update(image="gone.jpg"), ["gone.jpg' does not exist"]),
        (lambda r: r.update(question_id={}), ["'question_id' is {}"]),
    ],
)
def test_a_bad_question_is_one_bad_sample(pope, change, words):
    records = [json.loads(line) for line in pope.read_text().splitlines()]
    change(records[1])
    pope.write_text("\n".join(map(json.dumps, records)))
    items = list(open_data(pope))
    assert [type(item) for item in items] == [Sample, BadSample, Sample, Sample]
    assert items[1].reason.startswith("'coco_pope_popular.json' line 2: ")
    for word in words:
        assert word in items[1].reason


def test_questions_with_other_columns(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps({"question_id": 1, "image": "a.jpg", "question": "Is it?", "gt": "yes"}) + "\n")
    told = message(open_data, path)
    assert "line 1" in told and "no 'text', 'label', it has 'question_id', 'image', 'question', 'gt'" in told
