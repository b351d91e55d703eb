"""One picture, whatever the file holds: an upright RGB picture or one clear line."""

import io
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
from chiasm.scenes.errors import UserError
from chiasm.scenes.pictures import FORMATS, MAX_PIXELS, MIN_SIDE, as_rgb, open_picture
from PIL import Image, ImageFile, ImageOps

# How a picture is stored for each EXIF orientation, so that turning it upright gives the original.
STORED = {
    1: lambda image: image.copy(),
    2: ImageOps.mirror,
    3: lambda image: image.rotate(180),
    4: ImageOps.flip,
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.rotate(90, expand=True),
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.rotate(-90, expand=True),
}


def encoded(image, format, **options):
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def distance(a, b):
    """Mean absolute difference of two pictures in grey levels."""
    assert a.size == b.size
    return np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).mean()


def png(width, height, *, bits=8, colour=2, rows=b"", extra=b""):
    """A PNG by hand: the header may promise more than there is."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def refusal(source, **options):
    """The message for a picture that must be refused: one line, and nothing printed beside it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError) as caught:
            open_picture(source, **options)
    message = str(caught.value)
    assert "\n" not in message and ": " in message
    return message


@pytest.mark.parametrize("name", ["astronaut.png", "coffee.png", "rocket.jpg", "china.jpg", "flower.jpg"])
def test_photographs_are_opened_as_they_are(photo_files, name):
    opened = open_picture(photo_files[name])
    assert opened.mode == "RGB"
    assert type(opened) is Image.Image  # holds no file
    assert np.array_equal(opened, Image.open(photo_files[name]).convert("RGB"))


def test_path_text_bytes_and_stream_give_the_same(photo_files):
    path = photo_files["coffee.png"]
    expected = np.asarray(open_picture(path))
    content = path.read_bytes()
    for source in (str(path), content, io.BytesIO(content)):
        assert np.array_equal(open_picture(source), expected)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "JPEG", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(photo, format, orientation):
    upright = photo("china.jpg", 96)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(
        STORED[orientation](upright), format, exif=exif, **({"lossless": True} if format == "WEBP" else {})
    )
    opened = open_picture(content)
    assert distance(opened, upright) <= (0 if format in ("PNG", "TIFF", "WEBP") else 8)
    # a reader after us finds no orientation to apply a second time
    assert opened.info == {}
    assert np.array_equal(ImageOps.exif_transpose(opened), opened)


def test_damaged_exif_does_not_lose_the_picture(photo):
    image = photo("china.jpg", 64)
    content = encoded(image, "JPEG", quality=95, exif=b"Exif\0\0II*\0\xff\xff\xff\xff\x12\x34broken")
    assert distance(open_picture(content), image) < 8


def test_cmyk_is_not_inverted(photo):
    image = photo("flower.jpg", 120)
    content = encoded(image.convert("CMYK"), "JPEG", quality=95)
    assert Image.open(io.BytesIO(content)).mode == "CMYK"
    assert distance(open_picture(content), image) < 4


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_16_bits_are_scaled_not_clipped(format):
    ramp = np.linspace(0, 65535, 64 * 32).astype(np.uint16).reshape(32, 64)
    opened = np.asarray(open_picture(encoded(Image.fromarray(ramp), format)))
    assert opened.shape == (32, 64, 3)
    assert np.array_equal(opened[..., 0], np.rint(ramp / 257).astype(np.uint8))
    assert np.array_equal(opened[..., 0], opened[..., 2])


def test_a_dark_16_bit_picture_stays_dark():
    dark = np.full((16, 16), 300, np.uint16)
    assert set(np.asarray(open_picture(encoded(Image.fromarray(dark), "PNG"))).ravel()) == {1}


def test_12_bit_tiff_uses_its_own_range():
    values = np.array([[0, 1365, 2730, 4095]] * 4)
    packed = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in values.reshape(-1, 2).tolist())
    assert np.asarray(open_picture(tiff(4, 4, 12, packed)))[0, :, 0].tolist() == [0, 85, 170, 255]


def test_16_bit_colour_keeps_its_high_byte():
    pixel = struct.pack(">HHH", 0xFFFF, 0x8080, 0x0101)
    content = png(4, 4, bits=16, rows=(b"\0" + pixel * 4) * 4)
    assert open_picture(content).getpixel((2, 2)) == (255, 128, 1)


def test_transparency_becomes_white(photo):
    image = photo("coffee.png", 64)
    layer = image.copy()
    alpha = np.zeros((image.height, image.width), np.uint8)
    alpha[:, image.width // 2 :] = 255
    layer.putalpha(Image.fromarray(alpha))
    opened = np.asarray(open_picture(encoded(layer, "PNG")))
    assert (opened[:, : image.width // 2] == 255).all()
    assert np.array_equal(opened[:, image.width // 2 :], np.asarray(image)[:, image.width // 2 :])


@pytest.mark.parametrize(
    ("mode", "pixel", "expected"),
    [("RGBA", (0, 0, 0, 128), 127), ("LA", (0, 128), 127), ("RGBA", (200, 200, 200, 0), 255), ("LA", (9, 255), 9)],
)
def test_half_transparent_pixels_are_blended(mode, pixel, expected):
    assert as_rgb(Image.new(mode, (5, 5), pixel)).getpixel((1, 1)) == (expected,) * 3


def test_palette_with_and_without_a_transparent_colour(photo):
    image = photo("coffee.png", 64).quantize(16)
    assert np.array_equal(open_picture(encoded(image, "PNG")), image.convert("RGB"))
    most = np.bincount(np.asarray(image).ravel()).argmax()
    opened = np.asarray(open_picture(encoded(image, "PNG", transparency=int(most))))
    assert (opened[np.asarray(image) == most] == 255).all()
    assert np.array_equal(
        opened[np.asarray(image) != most], np.asarray(image.convert("RGB"))[np.asarray(image) != most]
    )


def test_16_bit_grey_with_a_transparent_value():
    values = np.full((8, 8), 1000, np.uint16)
    values[0] = 40000
    content = encoded(Image.fromarray(values), "PNG", transparency=1000)
    opened = np.asarray(open_picture(content))
    assert (opened[1:] == 255).all() and (opened[0] == round(40000 / 257)).all()


@pytest.mark.parametrize("mode", ["1", "L", "YCbCr", "HSV"])
def test_other_modes(photo, mode):
    image = photo("coffee.png", 48).convert(mode)
    assert np.array_equal(as_rgb(image), image.convert("RGB"))


def test_floating_point_is_0_to_1_and_nothing_else():
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    opened = np.asarray(open_picture(encoded(Image.fromarray(ramp), "TIFF")))
    assert np.array_equal(opened[..., 1], np.rint(ramp * 255).astype(np.uint8))
    message = refusal(encoded(Image.fromarray(ramp * 900 - 3), "TIFF"), name="scan.tif")
    assert "'scan.tif'" in message and "-3 to 897" in message and "0..1" in message and "scale" in message
    ramp[3, 3] = np.nan
    assert "nan" in refusal(encoded(Image.fromarray(ramp), "TIFF"))


def test_integers_beyond_16_bits_are_refused():
    values = np.full((8, 8), 70000, np.int32)
    assert "70000" in refusal(encoded(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_of_an_animation_the_first_frame(format):
    frames = [Image.new("RGB", (32, 24), colour) for colour in ("red", "lime", "blue")]
    content = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(content)).n_frames == 3
    assert distance(open_picture(content), frames[0]) < 3


def tiff(width, height, bits, pixels):
    """A little-endian greyscale TIFF by hand."""
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, height)]
    tags.append((279, len(pixels)))
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory + b"\0\0\0\0"


def huge(format, side=40000):
    """The header of a square picture with a few bytes behind it."""
    small = encoded(Image.new("RGB", (64, 64), "red"), format, **({"lossless": True} if format == "WEBP" else {}))
    if format == "PNG":
        return png(side, side, rows=b"\0" * 100)
    if format == "JPEG":
        at = small.index(b"\xff\xc0")
        return small[: at + 5] + struct.pack(">HH", side, side) + small[at + 9 :]
    if format == "GIF":
        return small[:6] + struct.pack("<HH", side, side) + small[10:]
    if format == "BMP":
        return small[:18] + struct.pack("<ii", side, side) + small[26:]
    if format == "PPM":
        return f"P6 {side} {side} 255\n".encode() + b"\0" * 100
    if format == "QOI":
        return small[:4] + struct.pack(">II", side, side) + small[12:]
    if format == "TIFF":
        return tiff(side, side, 8, b"\0" * 100)
    if format == "WEBP":
        at = small.index(b"\x2f")  # the mark of the lossless stream; 14 bits each of width - 1 and height - 1 follow
        return small[: at + 1] + struct.pack("<I", (side - 1) | (side - 1) << 14) + small[at + 5 :]
    raise AssertionError(format)


SIDES = dict.fromkeys(["PNG", "JPEG", "GIF", "BMP", "PPM", "QOI", "TIFF"], 40000) | {"WEBP": 9000}  # its end is 16384


@pytest.mark.parametrize(("format", "side"), SIDES.items())
def test_a_bomb_is_refused_from_its_header(tmp_path, monkeypatch, format, side):
    def decoded(self):
        raise AssertionError("a picture that must be refused from its header was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded)
    path = tmp_path / "bomb.bin"
    path.write_bytes(huge(format, side))
    message = refusal(path)
    for part in (str(path), f"{side} × {side}", f"{side * side / 1e6:.1f} Mpixel", "64 Mpixel", "max_pixels"):
        assert part in message


def test_a_frame_larger_than_its_animation_is_refused():
    small = encoded(Image.new("RGB", (64, 64), "red"), "GIF")
    at = small.index(b"\x2c\0\0\0\0")  # the first frame's place, then its width and height
    for side in (9000, 60000):  # within and beyond Pillow's own limit
        message = refusal(small[: at + 5] + struct.pack("<HH", side, side) + small[at + 9 :], name="frame.gif")
        assert "'frame.gif'" in message and str(side if side == 9000 else side * side) in message
        assert "scale it down" in message


def test_a_bomb_that_pillow_refuses_first():
    message = refusal(huge("WEBP", 16384), name="big.webp")
    assert "'big.webp' is too large" in message and str(16384**2) in message and "scale it down" in message


def test_the_limit_is_an_option_and_pillows_own_does_not_stand_in_its_way():
    message = refusal(huge("PNG"), max_pixels=2_000_000_000)
    assert "truncated or damaged" in message and "Mpixel" not in message
    content = encoded(Image.new("RGB", (20, 10)), "PNG")
    assert open_picture(content, max_pixels=200).size == (20, 10)
    assert "20 × 10" in refusal(content, max_pixels=199)
    # between our limit and the one where Pillow prints a warning, and between that and the one where it refuses
    for side in (8001, 10000):
        assert f"{side} × {side}" in refusal(png(side, side))
    assert MAX_PIXELS == 8000 * 8000


def test_a_picture_in_memory_has_the_same_limits():
    with pytest.raises(UserError, match=r"'mine' is 1 × 9 pixels"):
        as_rgb(Image.new("RGB", (1, 9)), name="mine")
    with pytest.raises(UserError, match="Mpixel"):
        as_rgb(Image.new("1", (9000, 8000)))


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 3), (0, 5)])
def test_too_small(size):
    content = png(*size, rows=b"\0" * 400)
    message = refusal(content, name="dot.png")
    assert "'dot.png'" in message
    # Pillow itself refuses a width of 0 in the header
    assert (
        ("header" in message) if 0 in size else f"{size[0]} × {size[1]} pixels, each side must be at least 4" in message
    )


def test_the_smallest_side():
    assert open_picture(encoded(Image.new("RGB", (MIN_SIDE, MIN_SIDE), "red"), "PNG")).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("format", FORMATS)
def test_truncated(tmp_path, photo, format):
    whole = encoded(photo("rocket.jpg", 200), format)
    path = tmp_path / "half.img"
    for share in (0.02, 0.3, 0.6):
        path.write_bytes(whole[: int(len(whole) * share)])
        message = refusal(path)
        assert str(path) in message and "truncated or damaged" in message and "download" in message


def test_empty_file(tmp_path):
    path = tmp_path / "empty.jpg"
    path.touch()
    assert refusal(path) == f"picture {str(path)!r} is empty (0 bytes): download or export it again, or remove it"


@pytest.mark.parametrize(
    "content",
    [
        b"hello, this is not a picture",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\0" * 500,
        b"x",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    ],
    ids=["text", "svg", "zeros", "one byte", "eps", "heic"],
)
def test_not_a_picture(tmp_path, content):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    message = refusal(path)
    assert str(path) in message and repr(content[:8]) in message and "convert it to PNG or JPEG" in message
    assert all(format in message for format in FORMATS)


def test_missing_folder_and_impossible_names(tmp_path):
    assert "does not exist: correct the path" in refusal(tmp_path / "no.png")
    assert "is a folder" in refusal(tmp_path)
    for name in (f"{tmp_path}/{'x' * 5000}.png", f"{tmp_path}/nul\0.png"):
        message = refusal(name)
        assert "cannot be read" in message and "\0" not in message


def test_no_permission(tmp_path, monkeypatch):
    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)  # a real file without permissions can be read by root
    assert "'a.png' cannot be read (Permission denied)" in refusal("a.png")


@pytest.mark.parametrize("format", FORMATS)
def test_random_damage_gives_a_picture_or_one_line(photo, format):
    whole = encoded(photo("china.jpg", 60), format)
    rng = random.Random(format)
    outcomes = set()
    for _ in range(60):
        damaged = bytearray(whole)
        reach = rng.choice([32, 300, len(whole)])
        for _ in range(rng.choice([1, 3, 20])):
            damaged[rng.randrange(min(reach, len(whole)))] = rng.randrange(256)
        try:
            opened = open_picture(bytes(damaged))
            assert opened.mode == "RGB" and opened.width * opened.height <= MAX_PIXELS
            outcomes.add("picture")
        except UserError as error:
            assert "\n" not in str(error)
            outcomes.add("refused")
    assert "refused" in outcomes
