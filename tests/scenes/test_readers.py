"""Folders of pictures and JSON Lines: streamed, one bad item told apart from a bad data set."""

import json
import tracemalloc
from itertools import islice

import numpy as np
import pytest
from chiasm.scenes.errors import UserError
from chiasm.scenes.pictures import open_picture
from chiasm.scenes.readers import DEFAULT_PROMPT, ImageFolder, JsonLines, open_data
from chiasm.scenes.readers.reader import PROBE
from chiasm.scenes.sample import BadSample, Sample


@pytest.fixture
def folder(tmp_path, photo):
    """Three photographs, one of them in a folder within, among files that are no pictures."""
    root = tmp_path / "photos"
    (root / "deep" / ".thumbs").mkdir(parents=True)
    photo("coffee.png", 80).save(root / "b.PNG")
    photo("china.jpg", 80).save(root / "a.jpg")
    photo("rocket.jpg", 80).save(root / "deep" / "c.webp", lossless=True)
    photo("rocket.jpg", 80).save(root / "deep" / ".thumbs" / "d.png")
    photo("rocket.jpg", 80).save(root / ".hidden.png")
    (root / "notes.txt").write_text("not a picture")
    (root / "._a.jpg").write_bytes(b"what a Mac leaves on other disks")
    return root


def write_lines(path, *records):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return path


def message(function, *arguments, **options):
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- folders


def test_folder_of_pictures(folder):
    reader = open_data(folder)
    samples = list(reader)
    assert [sample.id for sample in samples] == ["a.jpg", "b.PNG", "deep/c.webp"]
    assert len(reader) == 3
    assert {sample.prompt for sample in samples} == {DEFAULT_PROMPT}
    for sample in samples:
        assert isinstance(sample, Sample) and sample.answer is None and sample.truth == {}
        assert np.array_equal(sample.images[0], open_picture(folder / sample.id))
    assert [sample.id for sample in reader] == [sample.id for sample in samples]  # again


def test_folder_options(folder):
    assert [s.id for s in ImageFolder(folder, recursive=False)] == ["a.jpg", "b.PNG"]
    assert {s.prompt for s in ImageFolder(folder, prompt="What is it?")} == {"What is it?"}
    assert all(isinstance(s, BadSample) for s in ImageFolder(folder, max_pixels=100))
    assert "prompt is blank" in message(ImageFolder, folder, prompt=" ")


def test_one_picture_is_a_data_set(folder):
    (sample,) = open_data(folder / "a.jpg", prompt="Where?")
    assert (sample.id, sample.prompt) == ("a.jpg", "Where?")


def test_bad_pictures_do_not_end_a_folder(folder):
    (folder / "aa.jpg").write_bytes((folder / "a.jpg").read_bytes()[:700])
    (folder / "ab.png").write_bytes(b"<html>404</html>")
    (folder / "ac.png").touch()
    items = list(open_data(folder))
    assert [type(i).__name__ for i in items] == ["Sample", "BadSample", "BadSample", "BadSample", "Sample", "Sample"]
    assert [i.id for i in items[1:4]] == ["aa.jpg", "ab.png", "ac.png"]
    for item, words in zip(items[1:4], ("truncated", "not a picture", "empty (0 bytes)"), strict=True):
        assert words in item.reason and str(folder / item.id) in item.reason and "\n" not in item.reason


def test_damaged_pictures_alone_are_not_a_wrong_folder(tmp_path):
    """Whatever their number, they are skipped and listed; only the runner can say that nothing was left."""
    for i in range(PROBE + 5):
        (tmp_path / f"{i:02}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert [type(item) for item in open_data(tmp_path)] == [BadSample] * (PROBE + 5)


def test_a_folder_is_listed_but_not_read_ahead(folder, monkeypatch):
    opened = []
    monkeypatch.setattr("chiasm.scenes.readers.reader.open_picture", lambda path, **_: opened.append(path.name))
    items = iter(ImageFolder(folder))
    next(items)
    assert opened == ["a.jpg"]


def test_folder_without_pictures(tmp_path):
    assert str(tmp_path) in (told := message(open_data, tmp_path)) and "holds no pictures" in told
    (tmp_path / "readme.txt").touch()
    told = message(list, ImageFolder(tmp_path, recursive=False))
    assert "1 other files" in told and "recursive=False" in told and ".jpg" in told
    assert "does not exist" in message(ImageFolder, tmp_path / "no")


def test_file_names_that_are_not_utf_8(tmp_path, photo):
    photo("coffee.png", 20).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / "caf\udce9.png")
    (sample,) = ImageFolder(tmp_path)
    assert sample.id == "caf\\xe9.png"
    assert json.loads(json.dumps(sample.id).encode()) == sample.id
    assert len(ImageFolder(tmp_path).fingerprint()) == 64


# --- JSON Lines


def test_json_lines(folder):
    (folder / "sub").mkdir()
    path = write_lines(
        folder / "sub" / "data.jsonl",
        {"image": "../a.jpg", "prompt": "What?", "answer": "A temple.", "id": "temple"},
        "",
        {"image": ["../b.PNG", str(folder / "a.jpg")], "prompt": "<image> or <image>?", "id": 7, "extra": [1]},
        {"image": None, "prompt": "2 + 2 =", "answer": "4", "truth": {"task": "sum"}},
    )
    first, second, third = open_data(path)
    assert (first.id, first.prompt, first.answer) == ("temple", "What?", "A temple.")
    assert np.array_equal(first.images[0], open_picture(folder / "a.jpg"))
    assert (second.id, second.answer, len(second.images)) == ("7", None, 2)
    assert np.array_equal(second.images[0], open_picture(folder / "b.PNG"))
    assert (third.id, third.images, third.truth) == ("data.jsonl:4", (), {"task": "sum"})  # empty lines count
    with pytest.raises(TypeError):
        len(open_data(path))
    assert open_data(path)  # and is true all the same


def test_json_lines_options(folder, tmp_path):
    path = write_lines(tmp_path / "data.jsonl", {"image": "a.jpg"}, {"image": "b.PNG", "prompt": "mine"})
    assert "images=" in (told := message(open_data, path, images=tmp_path / "no")) and "is not a folder" in told
    assert [s.prompt for s in open_data(path, images=folder, prompt="yours")] == ["yours", "yours"]
    first, second = open_data(path, images=folder)
    assert isinstance(first, BadSample) and "no 'prompt', it has 'image'" in first.reason
    assert second.prompt == "mine"


BAD_LINES = {
    "not json": ("{'image': 'a.jpg'}", ["is not JSON", "column 2", "one object in braces"]),
    "half": ('{"image": "a.jpg", "prom', ["is not JSON"]),
    "list": ("[1, 2]", ["is [1, 2], must be an object"]),
    "number": ("17", ["is 17, must be an object"]),
    "no image": ('{"prompt": "a", "img": "b"}', ["no 'image'", "'prompt', 'img'", "null for an item without picture"]),
    "no prompt": ('{"image": "a.jpg", "question": "b"}', ["no 'prompt'", "'image', 'question'"]),
    "null prompt": ('{"image": "a.jpg", "prompt": null}', ["'prompt' is null, must be text"]),
    "blank prompt": ('{"image": "a.jpg", "prompt": "  "}', ["'prompt' is blank"]),
    "prompt number": ('{"image": "a.jpg", "prompt": 3}', ["'prompt' is 3, must be text"]),
    "answer list": ('{"image": "a.jpg", "prompt": "a", "answer": ["x"]}', ["'answer' is ['x'], must be text"]),
    "id list": ('{"image": "a.jpg", "prompt": "a", "id": [1]}', ["'id' is [1], must be text or a whole number"]),
    "truth text": ('{"image": null, "prompt": "a", "truth": "x"}', ["'truth' is 'x', must be an object"]),
    "image number": ('{"image": 3, "prompt": "a"}', ["'image' is 3, must be a path or a list of paths"]),
    "image blank": ('{"image": ["a.jpg", ""], "prompt": "a"}', ["'image' is ['a.jpg', '']"]),
    "image missing": ('{"image": "no/such.jpg", "prompt": "a"}', ["no/such.jpg' does not exist", "images="]),
    "image folder": ('{"image": "deep", "prompt": "a"}', ["deep' is a folder"]),
    "image not one": ('{"image": "notes.txt", "prompt": "a"}', ["notes.txt' is not a picture"]),
    "image address": ('{"image": "https://x.org/a.jpg", "prompt": "a"}', ["https://x.org/a.jpg", "download it"]),
    "image data": ('{"image": "data:image/png;base64,AA", "prompt": "a"}', ["read from files only"]),
    "NUL byte": ('{"image": "a.jpg", \0"prompt": "a"}', ["holds a NUL byte (at byte 20)", "remove it"]),
    "NUL escape": ('{"image": "a.jpg", "prompt": "a\\u0000"}', ["'prompt' holds a NUL byte"]),
    "NUL path": ('{"image": "a\\u0000.jpg", "prompt": "a"}', ["'image' is ['a\\x00.jpg'], which holds a NUL byte"]),
    "deep": ("[" * 100_000, ["is not JSON"]),
    "long number": ('{"image": ' + "9" * 5000 + ', "prompt": "a"}', ["is not JSON"]),
}


@pytest.mark.parametrize(("line", "words"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_named_and_passed_over(folder, line, words):
    good = {"image": "a.jpg", "prompt": "ok"}
    path = write_lines(folder / "data.jsonl", good, good, line, good)
    items = list(open_data(path))
    assert [type(item) for item in items] == [Sample, Sample, BadSample, Sample]
    bad = items[2]
    assert bad.id == "data.jsonl:3"
    assert bad.reason.startswith("'data.jsonl' line 3: ") and "\n" not in bad.reason and "\0" not in bad.reason
    assert len(bad.reason) < 600
    for word in words:
        assert word in bad.reason


def test_a_line_in_another_encoding(folder):
    good = b'{"image": "a.jpg", "prompt": "ok"}\n'
    path = folder / "data.jsonl"
    path.write_bytes(good + '{"image": "a.jpg", "prompt": "café?"}\n'.encode("latin-1") + good)
    first, bad, last = open_data(path)
    assert isinstance(first, Sample) and isinstance(last, Sample)
    assert bad.reason == "'data.jsonl' line 2: is not UTF-8 (byte 0xE9 at byte 34): save the file as UTF-8"


def test_a_bad_first_line_is_no_bad_file(folder):
    good = {"image": "a.jpg", "prompt": "ok"}
    path = write_lines(folder / "data.jsonl", "oops", "oops", good)
    items = list(open_data(path))
    assert [item.id for item in items] == ["data.jsonl:1", "data.jsonl:2", "data.jsonl:3"]
    assert isinstance(items[2], Sample)


def test_utf_8_with_a_mark_windows_line_ends_and_no_last_newline(folder):
    path = folder / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"image": "a.jpg", "prompt": "eins"}\r\n{"image": "a.jpg", "prompt": "zwei"}')
    assert [s.prompt for s in open_data(path)] == ["eins", "zwei"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"hello\nworld\n", ["no item of", "line 1", "is not JSON"]),
        (b"junk\n" * 1000, [f"none of the first {PROBE} items", "line 1: is not JSON"]),
        (b'{"a": 1, "b": 2}\n' * 30, [f"none of the first {PROBE}", "'a', 'b'", "'prompt'"]),
        (b'{"image": "x.jpg", "prompt": "a"}\n' * 30, ["x.jpg' does not exist", "images="]),
        ('{"image": "a.jpg", "prompt": "a"}\n'.encode("utf-16"), ["is UTF-16, must be UTF-8"]),
        ('{"image": "a.jpg", "prompt": "a"}\n'.encode("utf-16-le"), ["NUL byte"]),
        (b"\x1f\x8b\x08\0abc", ["compressed", "unpack"]),
        (b"", ["is empty", "at least one item"]),
        (b"\n \n\n", ["is empty"]),
        (b'{"image": "' + b"x" * (1 << 24) + b'"}', ["line 1 is longer than 16 MB"]),
        (
            b'[\n{"image": "a.jpg", "prompt": "a"},\n{"image": "a.jpg", "prompt": "a"}\n]',
            ["is a JSON list, must be JSON Lines", "one object"],
        ),
    ],
    ids=[
        "text",
        "long text",
        "fields",
        "pictures",
        "utf-16",
        "utf-16 unmarked",
        "gzip",
        "empty",
        "blank",
        "line",
        "list",
    ],
)
def test_a_file_that_is_bad_as_a_whole(folder, content, words):
    path = folder / "data.jsonl"
    path.write_bytes(content)
    told = message(open_data, path)
    for word in ("data.jsonl", *words):
        assert word in told
    assert message(lambda: list(JsonLines(path))) == told  # the same without open_data


def test_missing_and_unreadable_files(tmp_path, monkeypatch):
    assert "does not exist" in message(open_data, tmp_path / "no.jsonl")
    assert "does not exist" in message(JsonLines, tmp_path / "no.jsonl")
    assert "is a folder, must be a file" in message(open_data, tmp_path, format="jsonl")
    reader = JsonLines(write_lines(tmp_path / "data.jsonl", {"image": None, "prompt": "a"}))

    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)  # a real file without permissions can be read by root
    assert "data.jsonl' cannot be read (Permission denied)" in message(list, reader)


@pytest.fixture(scope="module")
def long_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("long") / "long.jsonl"
    with path.open("w") as stream:
        for i in range(100_000):
            stream.write(json.dumps({"image": None, "prompt": f"{i} " + "x" * 200}) + "\n")
    return path  # 23 MB


def peak_memory(function):
    tracemalloc.start()
    result = function()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return result, peak


def test_the_first_of_100_000_lines_comes_without_the_others(long_file, monkeypatch):
    parsed = []
    parse = json.loads
    monkeypatch.setattr(json, "loads", lambda text: parsed.append(text) or parse(text))
    first, peak = peak_memory(lambda: next(iter(JsonLines(long_file))))
    assert first.prompt.startswith("0 ")
    assert len(parsed) == 1
    assert peak < 300_000


def test_memory_does_not_grow_with_the_number_of_lines(long_file):
    reader = open_data(long_file)
    count, peak = peak_memory(lambda: sum(1 for _ in islice(reader, 20_000)))
    assert count == 20_000
    assert peak < 1_000_000


def test_a_file_without_line_ends_is_not_read_as_one_line(tmp_path):
    path = tmp_path / "disk.jsonl"
    with path.open("wb") as stream:
        stream.truncate(400 << 20)  # a hole: takes no room on the disk
    told, peak = peak_memory(lambda: message(list, JsonLines(path)))
    assert "line 1 is longer than 16 MB" in told
    assert peak < 100 << 20


# --- parts, for resuming and sharing


@pytest.mark.parametrize(("processes", "block"), [(1, 1), (2, 1), (3, 4), (2, 7)])
def test_parts_join_to_the_whole(long_file, folder, processes, block):
    lines = [{"image": None, "prompt": f"p{i}"} if i % 5 else "bad" for i in range(40)]
    reader = open_data(write_lines(folder / "data.jsonl", *lines))
    whole = list(reader)
    for start in (0, 3, 39):
        parts = [list(reader.iterate(start + rank * block, processes, block)) for rank in range(processes)]
        joined = []
        while any(parts):
            joined += [item for part in parts for item in part[:block]]
            # the blocks of the processes follow one another
            parts = [part[block:] for part in parts]
        assert joined == whole[start:]


def test_items_outside_a_part_are_not_read(folder, monkeypatch):
    opened = []
    monkeypatch.setattr("chiasm.scenes.readers.reader.open_picture", lambda path, **_: opened.append(path.name))
    assert len(list(ImageFolder(folder).iterate(1, 2))) == 1
    assert opened == ["b.PNG"]
    with pytest.raises(ValueError, match="step=0"):
        list(ImageFolder(folder).iterate(0, 0))


def test_a_malformed_rest_does_not_refuse_a_resumed_run(folder):
    """Uninterrupted, these lines are skipped; so they are when a run resumes right before them."""
    reader = open_data(write_lines(folder / "data.jsonl", {"image": None, "prompt": "a"}, *["bad"] * 30))
    assert list(reader.iterate(1)) == list(reader)[1:]
    assert len(list(reader.iterate(1))) == 30
