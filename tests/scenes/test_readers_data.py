"""Recognising what a user names, and telling data sets apart."""

import json
import os
import shutil

import pytest
from chiasm.scenes.errors import UserError
from chiasm.scenes.readers import FORMATS, ImageFolder, SceneData, fingerprint, open_data, recognise
from chiasm.scenes.sample import BadSample, Sample


def message(function, *arguments, **options):
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path, photo):
    root = tmp_path / "photos"
    root.mkdir()
    photo("coffee.png", 40).save(root / "a.png")
    photo("china.jpg", 40).save(root / "b.png")
    (root / "data.jsonl").write_text('{"image": "a.png", "prompt": "What?"}\n')
    return root


FILES = {
    "a.JPG": (b"", "folder"),
    "a.parquet": (b"", "hf"),
    "a.jsonl": (b'{"image": 1}', "jsonl"),
    "b.jsonl": (b"what is this", "jsonl"),
    "c.jsonl": (b'{"question_id": 1, "label": "yes"}', "pope"),
    "d.jsonl": (b'{"question_id": 1, "prompt": "a"}', "jsonl"),
    "e.json": (b'\n\n{"question_id": 1}\n', "pope"),
    "f.json": (b'\xef\xbb\xbf{"question_id": 1}\n', "pope"),
    "g.json": (b'{"images": [], "annotations": []}', "coco"),
    "h.json": (b'{\n "images": [], "annotations": []}', "coco"),
    "i.json": (b'{"info": "' + b"x" * 100_000 + b'", "images": []}', "coco"),
    "j.json": (b'{"image": "a", "prompt": "b"}\n{"image": "a", "prompt": "b"}\n', "jsonl"),
    "k.txt": (b'{"image": "a", "prompt": "b"}\n', "jsonl"),
    "l.json": (b'[{"image": "a"}]', "jsonl"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_are_recognised(tmp_path, name):
    content, expected = FILES[name]
    (tmp_path / name).write_bytes(content)
    assert recognise(str(tmp_path / name)) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["a.jpg"], "folder"),
        (["x/y/z/w/a.PNG", "notes.md"], "folder"),
        (["a.jpg", "state.json"], "hf"),
        (["dataset_dict.json"], "hf"),
        (["data/train-0.parquet", "cover.png"], "hf"),
        (["a.jpg", "metadata.csv"], "hf"),
        (["a.jpg", "x/y/z/far.parquet"], "folder"),
        ([".cache/x.parquet", "a.jpg"], "folder"),
        ([".x.parquet", "a.jpg"], "folder"),
    ],
)
def test_folders_are_recognised(tmp_path, files, expected):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert recognise(str(tmp_path)) == expected


def test_ids_and_scenes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scenes").mkdir()
    (tmp_path / "scenes" / "a.png").touch()
    assert recognise("scenes") == recognise("scenes:pope_random") == "scenes"
    assert recognise("./scenes") == "folder"
    assert recognise("lmms-lab/POPE") == recognise("beans") == "hf"


@pytest.mark.parametrize(
    "spec", ["./no", "no.jsonl", "a/b.json", "photos/x.png", "/no/such/place", "a/b/c", "..", "a b"]
)
def test_what_is_not_there(tmp_path, monkeypatch, spec):
    (tmp_path / "within").mkdir()
    monkeypatch.chdir(tmp_path / "within")
    told = message(open_data, spec)
    assert repr(spec) in told
    if spec == "..":
        assert "holds no pictures and no data set" in told
    else:
        assert "does not exist" in told
    for kind in ("folder of pictures", "JSON Lines", "POPE", "COCO", "Hugging Face", "scenes:KIND"):
        assert kind in told


def test_files_that_are_not_recognised(tmp_path):
    (tmp_path / "notes.md").write_text("# Notes\n")
    told = message(open_data, tmp_path / "notes.md")
    assert "notes.md' is not recognised (it starts with b'# Notes')" in told and "format=" in told
    (tmp_path / "list.json").write_text(json.dumps([{"image": "a"}], indent=1))
    assert "is a JSON list, must be JSON Lines" in message(open_data, tmp_path / "list.json")
    (tmp_path / "empty.json").touch()
    assert "is empty" in message(open_data, tmp_path / "empty.json")
    (tmp_path / "empty").mkdir()
    assert "looked for" in message(open_data, tmp_path / "empty")


def test_options_that_do_not_apply(folder):
    told = message(open_data, folder, split="test", prompt="a")
    assert (
        "option 'split' does not go with" in told
        and "read as folder: allowed are max_pixels, prompt, recursive" in told
    )
    assert len(open_data(folder, split=None, prompt=None)) == 2  # None is "not given"
    told = message(open_data, folder, format="zip")
    assert "format='zip'" in told and all(name in told for name in FORMATS)


def test_a_format_that_is_said_is_not_guessed(folder):
    lines = folder / "data.jsonl"
    lines.rename(folder / "data.weird")
    (sample,) = open_data(folder / "data.weird", format="jsonl")
    assert sample.prompt == "What?"


def test_home_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert len(open_data("~/photos")) == 2


# --- fingerprints


def test_a_fingerprint_is_of_content_not_of_place_or_time(folder, tmp_path):
    before = fingerprint(folder)
    assert len(before) == 64 and int(before, 16) >= 0
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy)
    os.utime(copy / "a.png", (1, 1))
    (copy / "notes.txt").write_text("no picture, no matter")
    assert fingerprint(copy) == fingerprint(str(copy)) == fingerprint(open_data(copy)) == before
    lines, moved = open_data(folder / "data.jsonl"), open_data(copy / "data.jsonl", images=str(folder))
    assert lines.fingerprint() == moved.fingerprint() != before


def test_a_fingerprint_changes_with_what_is_read(folder):
    seen = {fingerprint(folder), open_data(folder, prompt="Why?").fingerprint()}
    (folder / "b.png").rename(folder / "c.png")
    seen.add(fingerprint(folder))
    (folder / "c.png").write_bytes((folder / "c.png").read_bytes() + b"\0")
    seen.add(fingerprint(folder))
    (folder / "c.png").unlink()
    seen.add(fingerprint(folder))
    seen.add(fingerprint(folder / "data.jsonl"))
    (folder / "data.jsonl").write_text('{"image": "a.png", "prompt": "When"}\n')  # of the same size
    seen.add(fingerprint(folder / "data.jsonl"))
    assert len(seen) == 7


def test_names_and_sizes_do_not_run_into_each_other(tmp_path):
    """1.png of 1 byte and 12.png of 5, against 1.png of 11 bytes and 2.png of 5."""
    for name, sizes in (("one", {"1.png": 1, "12.png": 5}), ("two", {"1.png": 11, "2.png": 5})):
        (tmp_path / name).mkdir()
        for file, size in sizes.items():
            (tmp_path / name / file).write_bytes(b"x" * size)
    assert ImageFolder(tmp_path / "one").fingerprint() != ImageFolder(tmp_path / "two").fingerprint()


def test_a_saved_data_set_of_the_same_size_is_another(tmp_path):
    datasets = pytest.importorskip("datasets")
    for name, prompt in (("a", "one"), ("b", "two"), ("c", "one")):
        datasets.Dataset.from_dict({"image": [None], "prompt": [prompt]}).save_to_disk(tmp_path / name)
    a, b, c = (fingerprint(tmp_path / name) for name in "abc")
    assert a != b and a == c


def test_fingerprints_of_samples_in_memory(photo):
    samples = [Sample("1", "What?", (photo("coffee.png", 30),)), BadSample("2", "broken")]
    same = [Sample("1", "What?", (photo("coffee.png", 30),)), BadSample("2", "broken")]
    other = [Sample("1", "What?", (photo("china.jpg", 30),)), BadSample("2", "broken")]
    assert fingerprint(samples) == fingerprint(same) != fingerprint(other)
    assert fingerprint(iter(samples)) is None


# --- the rendered world


def test_scenes():
    reader = open_data("scenes", n=6, seed=3)
    assert isinstance(reader, SceneData) and len(reader) == 6
    samples = list(reader)
    assert len(samples) == len({sample.id for sample in samples}) == 6
    assert all(isinstance(sample, Sample) and sample.images and sample.prompt for sample in samples)
    assert [s.prompt for s in reader] == [s.prompt for s in samples]
    assert [s.images[0].tobytes() for s in reader] == [s.images[0].tobytes() for s in samples]
    assert list(reader.iterate(4)) == samples[4:]
    assert reader.fingerprint() == open_data("scenes", n=6, seed=3).fingerprint()
    assert reader.fingerprint() != open_data("scenes", n=6, seed=4).fingerprint()


def test_scenes_that_cannot_be():
    assert "n=0, must be at least 1" in message(open_data, "scenes", n=0)
    assert "'nonsense'" in message(open_data, "scenes:nonsense")
    assert "contradict each other" in message(open_data, "scenes:caption", kind="place")
    assert open_data("scenes:caption", n=2).kind == open_data("scenes", kind="caption", n=2).kind == "caption"
    assert "'moon'" in message(open_data, "scenes", split="moon")
    assert "allowed are max_pixels, kind, n, split, seed" in message(open_data, "scenes", images="x")


def test_scenes_from_a_place_on():
    every = list(open_data("scenes:caption", n=4))
    assert [one.id for one in open_data("scenes:caption", n=2, start=2)] == [one.id for one in every[2:]]
    assert "start=-1" in message(open_data, "scenes", start=-1)
