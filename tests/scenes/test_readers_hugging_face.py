"""Data sets of the `datasets` library: saved, in the Hub's layout, in its cache, and out of reach."""

import io
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from chiasm.scenes.errors import UserError
from chiasm.scenes.readers import HuggingFaceData, hub, open_data
from chiasm.scenes.sample import BadSample, Sample
from PIL import Image

datasets = pytest.importorskip("datasets")

README = """---
configs:
- config_name: default
  data_files:
  - split: test
    path: data/test-*
---
"""


def message(function, *arguments, **options):
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def encoded(image):
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def pictures(photo):
    return [photo(name, 50) for name in ("coffee.png", "china.jpg", "flower.jpg", "rocket.jpg")]


@pytest.fixture(scope="module")
def data(pictures):
    """Four rows; the picture of the second is damaged, the third has none."""
    contents = [encoded(picture) for picture in pictures]
    contents[1] = contents[1][: len(contents[1]) // 2]
    stored = [{"bytes": content, "path": f"{i}.png"} for i, content in enumerate(contents)]
    stored[2] = None
    return datasets.Dataset.from_dict(
        {
            "image": stored,
            "both": [[{"bytes": contents[0], "path": None}, {"bytes": contents[3], "path": None}]] * 4,
            "question": [f"What is {i}?" for i in range(4)],
            "reply": ["zero", "one", None, "three"],
            "label": [0, 1, 1, -1],
            "id": [100, 101, 102, 103],
        },
        features=datasets.Features(
            {
                "image": datasets.Image(),
                "both": datasets.List(datasets.Image()),
                "question": datasets.Value("string"),
                "reply": datasets.Value("string"),
                "label": datasets.ClassLabel(names=["no", "yes"]),
                "id": datasets.Value("int64"),
            }
        ),
    )


@pytest.fixture(scope="module")
def sources(tmp_path_factory, data):
    """The same rows saved, saved as one of two splits, in the Hub's layout, and as one parquet file."""
    root = tmp_path_factory.mktemp("hf")
    data.save_to_disk(root / "saved")
    datasets.DatasetDict({"train": data.select([0]), "test": data}).save_to_disk(root / "splits")
    (root / "hub" / "data").mkdir(parents=True)
    data.to_parquet(root / "hub" / "data" / "test-00000-of-00001.parquet")
    (root / "hub" / "README.md").write_text(README)
    shutil.copy(root / "hub" / "data" / "test-00000-of-00001.parquet", root / "rows.parquet")
    return root


SOURCES = [("saved", {}), ("splits", {"split": "test"}), ("hub", {}), ("hub", {"split": "test"}), ("rows.parquet", {})]


@pytest.mark.parametrize(("name", "options"), SOURCES)
def test_every_source_gives_the_same_samples(sources, pictures, name, options):
    reader = open_data(sources / name, answer_column="reply", **options)
    assert isinstance(reader, HuggingFaceData)
    for _ in range(2):  # again and again
        items = list(reader)
        assert [type(item) for item in items] == [Sample, BadSample, Sample, Sample]
        assert [item.id for item in items] == ["100", "101", "102", "103"]
        assert [items[i].prompt for i in (0, 2, 3)] == ["What is 0?", "What is 2?", "What is 3?"]
        assert [items[i].answer for i in (0, 2, 3)] == ["zero", None, "three"]
        assert np.array_equal(items[0].images[0], pictures[0]) and np.array_equal(items[3].images[0], pictures[3])
        assert items[2].images == ()
        assert "row 1: picture '1.png' is truncated or damaged" in items[1].reason


def test_length_only_where_it_is_known(sources):
    assert len(open_data(sources / "saved")) == 4
    with pytest.raises(TypeError, match="streamed"):
        len(open_data(sources / "hub"))


def test_columns_by_option(sources, pictures):
    items = list(
        open_data(
            sources / "hub", image_column="both", prompt_column="reply", answer_column="label", id_column="question"
        )
    )
    assert [len(items[i].images) for i in (0, 1, 3)] == [2, 2, 2]
    assert np.array_equal(items[0].images[1], pictures[3])
    assert [items[i].prompt for i in (0, 1, 3)] == ["zero", "one", "three"]
    assert [items[i].answer for i in (0, 1, 3)] == ["no", "yes", None]  # -1 is a row without label
    assert items[0].id == "What is 0?"
    assert "row 2: 'reply' is null, must be text" in items[2].reason
    assert {item.prompt for item in open_data(sources / "hub", image_column="both", prompt="Why?")} == {"Why?"}


@pytest.mark.parametrize("name", ["saved", "hub"])
def test_missing_columns_are_listed(sources, name):
    told = message(open_data, sources / name, image_column="img")
    assert "no column 'img', it has 'image', 'both', 'question', 'reply', 'label', 'id'" in told
    assert "image_column=" in told
    assert "prompt_column=" in message(open_data, sources / name, prompt_column="text")
    assert "answer_column=" in message(open_data, sources / name, answer_column="text")
    told = message(open_data, sources / name, prompt="a", prompt_column="question")
    assert "exclude each other" in told


def test_no_usual_columns(tmp_path):
    datasets.Dataset.from_dict({"text": ["a"], "n": [1]}).save_to_disk(tmp_path / "texts")
    assert "no column 'image' or 'images', it has 'text', 'n'" in message(open_data, tmp_path / "texts")
    datasets.Dataset.from_dict({"image": ["a.png"], "n": [1]}).save_to_disk(tmp_path / "untold")
    told = message(open_data, tmp_path / "untold")
    assert "no column 'prompt' or 'question'" in told and "prompt_column=, or one prompt for all with prompt=" in told


def test_a_column_that_holds_no_pictures(sources):
    told = message(open_data, sources / "hub", image_column="id")
    assert "no item" in told and "row 0: its picture is 100, must be a picture or a path" in told


def test_splits(sources):
    told = message(open_data, sources / "splits")
    assert "several splits, 'train', 'test': choose one with split=" in told
    told = message(open_data, sources / "splits", split="val")
    assert "no split 'val', it has 'train', 'test'" in told
    assert len(open_data(sources / "splits", split="train")) == 1
    assert "no split 'val', it has 'test'" in message(open_data, sources / "hub", split="val")
    assert "Available: ['default']" in message(open_data, sources / "hub", config="other")


def test_paths_in_a_column(tmp_path, pictures):
    pictures[0].save(tmp_path / "a.png")
    (tmp_path / "deep").mkdir()
    pictures[3].save(tmp_path / "deep" / "b.png")
    paths = ["a.png", str(tmp_path / "deep" / "b.png"), "https://example.org/c.png", "gone.png"]
    rows = datasets.Dataset.from_dict({"image": paths, "prompt": ["p"] * 4})
    rows.save_to_disk(tmp_path / "saved")
    items = list(open_data(tmp_path / "saved", images=tmp_path))
    assert np.array_equal(items[0].images[0], pictures[0]) and np.array_equal(items[1].images[0], pictures[3])
    assert "row 2: its picture is 'https://example.org/c.png'" in items[2].reason and "download" in items[2].reason
    assert "gone.png' does not exist" in items[3].reason
    assert "a.png' does not exist" in next(iter(open_data(tmp_path / "saved"))).reason


def test_a_folder_of_pictures_with_metadata(tmp_path, pictures):
    """The library's own layout: pictures and metadata.jsonl, without parquet."""
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
    lines = [f'{{"file_name": "{i}.png", "prompt": "What is {i}?"}}' for i in range(4)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    items = list(open_data(tmp_path))
    assert [item.prompt for item in items] == [f"What is {i}?" for i in range(4)]
    assert np.array_equal(items[2].images[0], pictures[2])
    assert [item.prompt for item in open_data(tmp_path, format="folder")] == ["Describe the image."] * 4


def test_pictures_inside_an_archive(tmp_path, pictures):
    """What streaming gives for pictures that lie in an archive on the Hub: an address, not bytes."""
    (tmp_path / "inner").mkdir()
    pictures[0].save(tmp_path / "inner" / "a.png")
    shutil.make_archive(tmp_path / "pack", "zip", tmp_path / "inner")
    address = f"zip://a.png::{tmp_path / 'pack.zip'}"
    reader = HuggingFaceData("unused", prompt="p")
    assert np.array_equal(reader._picture({"path": address, "bytes": None}, "x"), pictures[0])
    assert "cannot be fetched" in message(reader._picture, {"path": address + "x", "bytes": None}, "x")


def test_rows_are_streamed(sources, monkeypatch):
    opened = []
    monkeypatch.setattr(
        "chiasm.scenes.readers.hugging_face.open_picture", lambda content, name, **_: opened.append(name)
    )
    for name in ("saved", "hub"):
        opened.clear()
        next(iter(HuggingFaceData(sources / name)))
        assert opened == ["0.png"]


def test_a_table_that_breaks_off(sources, tmp_path):
    shutil.copytree(sources / "hub", tmp_path / "hub")
    path = tmp_path / "hub" / "data" / "test-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-40])
    told = message(open_data, tmp_path / "hub")
    assert str(tmp_path / "hub") in told and "cannot be" in told
    path.write_bytes(b"")
    assert str(tmp_path / "hub") in message(open_data, tmp_path / "hub")


def test_no_rows(tmp_path):
    empty = datasets.Dataset.from_dict({"image": [], "prompt": []})
    empty.save_to_disk(tmp_path / "empty")
    assert "is empty" in message(open_data, tmp_path / "empty")


# --- the Hub


@pytest.fixture
def online(monkeypatch):
    """As if HF_HUB_OFFLINE were not set; nothing may be asked but what a test allows."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    hub.commit.cache_clear()

    def forbidden(*_, **__):
        raise AssertionError("the data set was loaded without asking first whether it can be")

    monkeypatch.setattr(datasets, "load_dataset", forbidden)
    yield lambda answer: monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", answer)
    hub.commit.cache_clear()


def test_an_id_without_network_by_choice():
    told = message(open_data, "nobody/nothing-here")
    assert told.startswith("'nobody/nothing-here' is no file or folder here, and no data set that can be reached")
    assert "HF_HUB_OFFLINE is set" in told and "unset it" in told


def test_an_id_without_network(online):
    def unreachable(*_, **__):
        raise OSError("[Errno -2] Name or service not known")

    online(unreachable)
    told = message(open_data, "nobody/nothing-here")
    assert "Name or service not known" in told and "connect to the network, or set HF_HUB_OFFLINE=1" in told


def test_an_id_that_does_not_exist_or_is_private(online):
    from huggingface_hub.errors import RepositoryNotFoundError

    def unknown(*_, **__):
        response = SimpleNamespace(headers={}, status_code=404, request=None)
        raise RepositoryNotFoundError("404 Client Error.\n\nRepository Not Found", response=response)

    online(unknown)
    told = message(open_data, "nobody/nothing-here")
    assert (
        "'nobody/nothing-here'" in told and "404 Client Error. Repository Not Found" in told and "hf auth login" in told
    )


def test_the_commit_is_pinned_and_in_the_fingerprint(online, monkeypatch, data):
    asked, commits = [], {None: "a" * 40, "v2": "b" * 40}
    online(lambda self, name, revision=None, timeout=None: SimpleNamespace(sha=commits[revision]))

    def load(name, config, *, revision, streaming):
        asked.append((name, config, revision, streaming))
        return {"test": data.to_iterable_dataset()}

    monkeypatch.setattr(datasets, "load_dataset", load)
    latest, second = open_data("owner/name"), open_data("owner/name", revision="v2")
    assert asked == [("owner/name", None, "a" * 40, True), ("owner/name", None, "b" * 40, True)]
    assert latest.fingerprint() != second.fingerprint()
    assert latest.fingerprint() == open_data("owner/name").fingerprint()
    assert next(iter(latest)).prompt == "What is 0?"


def test_the_cache_serves_without_network(sources, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    datasets.load_dataset(str(sources / "hub"), cache_dir=str(cache))
    (prepared,) = cache.glob("hub/default/0.0.0/*/hub-test.arrow")
    goal = cache / "owner___name" / "default" / "0.0.0" / ("a" * 40)
    shutil.copytree(prepared.parent, goal)
    (goal / "hub-test.arrow").rename(goal / "name-test.arrow")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    items = list(open_data("owner/name"))
    assert [type(item) for item in items] == [Sample, BadSample, Sample, Sample]


def test_a_picture_object_in_a_row_is_checked_too(sources):
    reader = HuggingFaceData(str(sources / "saved"))
    assert reader._picture(Image.new("L", (9, 9), 7), "x").getpixel((0, 0)) == (7, 7, 7)
    with pytest.raises(UserError, match="1 × 1"):
        reader._picture(Image.new("L", (1, 1)), "x")
