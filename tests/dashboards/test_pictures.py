"""Uploads are refused in one line or become an upright RGB picture; scenes and samples of runs are found again."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from chiasm.dashboards import pictures
from chiasm.dashboards.pictures import plain_prompt, read_upload, sample_of, scene_at, shown
from chiasm.experiments.benchmarks import open_benchmark
from chiasm.scenes.benchmarks import scene_samples
from chiasm.scenes.errors import UserError
from chiasm.scenes.sample import Sample
from PIL import Image, ImageFile


def _bytes(image: Image.Image, format: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def _bomb(side: int) -> bytes:
    """A PNG of side x side white pixels in a few kilobytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    row = b"\0" + b"\xff" * (side // 8)
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _refused(data: bytes, name: str) -> str:
    with pytest.raises(UserError) as error:
        read_upload(data, name)
    assert "\n" not in str(error.value) and name in str(error.value)
    return str(error.value)


def test_a_bomb_is_refused_from_its_header(monkeypatch):
    data = _bomb(20_000)
    assert len(data) < 200_000
    Image.init()
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
    assert "400.0 Mpixel" in _refused(data, "bomb.png") and "40" in _refused(data, "bomb.png")


def test_too_many_bytes_are_refused(monkeypatch):
    monkeypatch.setattr(pictures, "MAX_BYTES", 1 << 20)
    assert "2.0 MB, the limit is 1 MB" in _refused(b"\x89PNG" + bytes(2 << 20), "big.png")


def test_broken_files_are_refused():
    jpeg = _bytes(Image.new("RGB", (300, 200), "red").resize((600, 400)), "JPEG")
    assert "truncated" in _refused(jpeg[: len(jpeg) // 2], "half.jpg")
    assert "is not a picture" in _refused(b"just some text, renamed", "note.png")
    assert "is empty" in _refused(b"", "nothing.png")
    assert "is not a picture" in _refused(b"%!PS-Adobe-3.0 EPSF-3.0", "program.png")


def test_every_kind_becomes_upright_rgb():
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    moving = read_upload(_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:]), "moving.gif")
    assert moving.mode == "RGB" and moving.size == (40, 30) and moving.getpixel((5, 5))[0] > 200
    cmyk = read_upload(_bytes(Image.new("CMYK", (40, 30), (0, 255, 255, 0)), "JPEG"), "print.jpg")
    assert cmyk.mode == "RGB" and cmyk.getpixel((5, 5))[0] > 200
    turned = Image.new("RGB", (40, 30))
    exif = turned.getexif()
    exif[0x0112] = 6
    assert read_upload(_bytes(turned, "JPEG", exif=exif), "phone.jpg").size == (30, 40)
    assert read_upload(_bytes(Image.new("L", (3000, 1500)), "PNG"), "wide.png").size == (2048, 1024)
    see_through = read_upload(_bytes(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), "PNG"), "glass.png")
    assert see_through.getpixel((0, 0)) == (255, 255, 255)


def test_scenes_are_those_of_the_test_split():
    for number in (0, 7):
        asked = scene_at(number)
        assert asked[0].id == next(scene_samples(1, "test", start=number)).id
        assert len({sample.truth["scene"].seed for sample in asked}) == 1
        assert {sample.truth["kind"] for sample in asked} >= {"description", "caption", "place"}
    assert scene_at(3, 128)[0].images[0].size == (128, 128)
    assert plain_prompt("<image> what is it ?") == "what is it ?"
    assert plain_prompt("look : <image> what is it ?") == "look : <image> what is it ?"


def test_pictures_are_shown_in_many_pixels():
    sample = scene_at(0)[0]
    assert shown(sample.images[0], sample, 200).size == (200, 200)
    assert shown(Image.new("RGB", (30, 60)), None, 200).size == (100, 200)


def _manifest(**config) -> dict:
    return {"experiment": "any", "config": config}


@pytest.mark.parametrize("benchmark", ["pope-scenes", "chair-scenes"])
def test_samples_of_evaluations_are_found(benchmark):
    wanted = list(open_benchmark(benchmark, limit=8, seed=3).samples)[-1]
    found = sample_of(_manifest(benchmark=benchmark, source=None, limit=8, seed=3, read=None), wanted.id)
    assert (found.id, found.prompt, found.answer) == (wanted.id, wanted.prompt, wanted.answer)
    assert found.images[0].tobytes() == wanted.images[0].tobytes()


def test_samples_of_measurements_and_studies_are_found(tmp_path):
    wanted = list(scene_samples(5, "test", seed=2, frame="long"))[4]
    assert sample_of(_manifest(data="scenes", limit=5, seed=2), wanted.id).prompt == wanted.prompt
    for kind, split, start in (("description", "test", 6), ("colour", "train", 21), ("caption", "val", 2)):
        wanted = next(scene_samples(1, split, kind, 4, start=start))
        found = sample_of(_manifest(model="organism", seed=4), wanted.id)
        assert (found.prompt, found.answer) == (wanted.prompt, wanted.answer)
    for name in ("b.png", "a.png"):
        Image.new("RGB", (20, 20), "red" if name == "a.png" else "blue").save(tmp_path / name)
    found = sample_of(_manifest(data=str(tmp_path), limit=None, seed=0, read=["prompt=what is it ?"]), "b.png")
    assert found.prompt == "what is it ?" and found.images[0].getpixel((0, 0)) == (0, 0, 255)


def test_a_sample_of_a_question_file_is_found_by_its_split(tmp_path):
    for name in ("random", "popular"):
        Image.new("RGB", (20, 20)).save(tmp_path / f"{name}.png")
        line = f'{{"question_id": 1, "image": "{name}.png", "text": "Is there a {name}?", "label": "yes"}}\n'
        (tmp_path / f"pope_{name}.json").write_text(line)
    config = dict(benchmark="pope", source=str(tmp_path), limit=None, seed=0, read=[f"images={tmp_path}"])
    ids = [sample.id for sample in open_benchmark("pope", tmp_path, images=tmp_path).samples]
    for sample_id in ids:
        found = sample_of(_manifest(**config), sample_id)
        assert isinstance(found, Sample) and sample_id.split("/")[0] in found.prompt


@pytest.mark.parametrize("name", ["nothing-like-it", "../../etc/passwd", "description-999999999999999", "place-x"])
def test_a_sample_that_is_not_there_is_refused(name):
    with pytest.raises(UserError, match="is not in the data"):
        sample_of(_manifest(data="scenes", limit=3, seed=0), name)
    with pytest.raises(UserError):
        sample_of(_manifest(), name + "/x")
