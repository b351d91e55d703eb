"""Opening one picture safely: whatever the file holds, an upright RGB picture or one clear line."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from .errors import UserError

MAX_PIXELS = 64_000_000
"""Pictures with more pixels are refused from their header, before anything is decoded (64 Mpixel are 192 MB as RGB)."""

MIN_SIDE = 4
"""Shorter sides are refused: image processors tell channels from rows by a length of 1 or 3, so a picture 1 or 3 pixels
high is refused by some of them and read sideways, without a word, by others."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI")
"""Pillow's names of what is read. A closed list, since Pillow also knows formats that start other programs (EPS) or that
have no signature and claim any file (TGA)."""

SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".apng",
        ".webp",
        ".gif",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".avif",
        ".jp2",
        ".j2k",
        ".jpx",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".qoi",
        ".mpo",
    }
)
"""File name endings, in lower case, by which a folder's pictures are told from its other files."""


def open_picture(
    source: str | Path | bytes | BinaryIO, *, name: str | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """The picture in a file (a path), in memory (bytes) or in a seekable stream, as `as_rgb` makes it.

    Of an animation or a file of several pages the first frame. name: what to call it in an error (default: its path).
    Raises UserError, one line with the picture's name, what was found and the remedy, for a file that is missing,
    unreadable, empty, truncated or no picture, and for a picture with a side under `MIN_SIDE` or more than `max_pixels`
    pixels; the last two are told from the header, so a 40,000 × 40,000 picture costs no memory.
    """
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), _called(name), max_pixels)
    if not isinstance(source, (str, Path)):
        return _decode(source, _called(name), max_pixels)
    called = _called(name or str(source))
    try:
        with open(source, "rb") as stream:
            return _decode(stream, called, max_pixels)
    except UserError:  # a ValueError too
        raise
    except FileNotFoundError:
        raise UserError(f"{called} does not exist: correct the path") from None
    except IsADirectoryError:
        raise UserError(f"{called} is a folder: give the path of one picture file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        reason = getattr(error, "strerror", None) or _short(error)
        raise UserError(f"{called} cannot be read ({reason}): correct the path or the file's permissions") from None


def as_rgb(image: Image.Image, *, name: str | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A new RGB picture: upright (EXIF orientation applied), transparency on white, 16 bits scaled to 8, no metadata.

    Greyscale, palette, CMYK and the other modes are converted by Pillow (CMYK without its colour profile); 16-bit values
    are scaled (65535 → 255), not clipped; floating-point pixels are taken to lie in 0..1. The result carries no metadata,
    so nothing after it can rotate it twice. Raises UserError as `open_picture` does, and for pixels that have no meaning
    as a picture (floats outside 0..1, integers outside 16 bits).
    """
    return _convert(image, _called(name), max_pixels)


def _called(name: str | None) -> str:
    return "the picture" if name is None else f"picture {name!r}"


def _decode(stream: BinaryIO, called: str, max_pixels: int) -> Image.Image:
    return _convert(_identify(stream, called), called, max_pixels)


def _convert(image: Image.Image, called: str, max_pixels: int) -> Image.Image:
    _check_size(image.size, called, max_pixels)
    try:
        image.load()
    # Decoders raise a dozen kinds of exception on damaged data, and each means the same to a user.
    except Exception as error:
        raise UserError(
            f"{called} is truncated or damaged ({_short(error)}): download or export it again, or remove it"
        ) from error
    try:
        if image.mode.startswith("I") or image.mode == "F":
            rgb = Image.fromarray(_to_8_bits(image, called)).convert("RGB")
        elif image.has_transparency_data:
            layer = image.convert("RGBA")
            rgb = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
        else:
            rgb = image.convert("RGB")
    except UserError:  # a ValueError too
        raise
    except (ValueError, OSError, TypeError, OverflowError) as error:
        raise UserError(
            f"{called} has mode {image.mode}, which cannot be turned into RGB ({_short(error)}): "
            "save it as an RGB PNG or JPEG"
        ) from error
    rgb.info = dict(image.info)  # where EXIF and XMP say which way is up
    rgb = _upright(rgb)
    rgb.info = {}
    return rgb


def _identify(stream: BinaryIO, called: str) -> Image.Image:
    """The picture with its header read and nothing decoded.

    Pillow's own `Image.open` does the same, but names no size when it refuses a large picture, and prints a warning on
    stderr for sizes in between; its limit can only be changed for the whole process.
    """
    Image.init()
    prefix = stream.read(16)
    if not prefix:
        raise UserError(f"{called} is empty (0 bytes): download or export it again, or remove it")
    for format_name in FORMATS:
        # A format is missing, or answers with a text, where Pillow was built without the format's library.
        factory, accepts = Image.OPEN.get(format_name, (None, None))
        if accepts is None or not (accepted := accepts(prefix)) or isinstance(accepted, str):
            continue
        stream.seek(0)
        try:
            return factory(stream, "")
        except Image.DecompressionBombError as error:  # some formats' readers check by themselves
            raise UserError(f"{called} is too large ({_short(error)}): scale it down") from error
        except Exception as error:  # as for decoding: the signature says this format, and the rest of it is broken
            raise UserError(
                f"{called} starts as {format_name} but its header is truncated or damaged ({_short(error)}): "
                "download or export it again, or remove it"
            ) from error
    raise UserError(
        f"{called} is not a picture that can be read (it starts with {prefix[:8]!r}; formats are {', '.join(FORMATS)}): "
        "convert it to PNG or JPEG"
    )


def _check_size(size: tuple[int, int], called: str, max_pixels: int) -> None:
    width, height = size
    if min(size) < MIN_SIDE:
        raise UserError(
            f"{called} is {width} × {height} pixels, each side must be at least {MIN_SIDE}: remove it or scale it up"
        )
    if width * height > max_pixels:
        raise UserError(
            f"{called} is {width} × {height} pixels = {width * height / 1e6:.1f} Mpixel, the limit is "
            f"{max_pixels / 1e6:g} Mpixel: scale it down, or raise max_pixels"
        )


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
        # Damaged metadata is no reason to lose a picture whose pixels are whole: shown as stored, as viewers do.
        return image


def _to_8_bits(image: Image.Image, called: str) -> np.ndarray:
    """Greyscale pixels of 16 bits or of floating point as (height, width) uint8, scaled over the whole range."""
    pixels = np.asarray(image)
    low, high = pixels.min().item(), pixels.max().item()
    full = 1.0 if image.mode == "F" else 65535
    if not 0 <= low <= high <= full:  # NaN fails too
        raise UserError(
            f"{called} has pixel values from {low:g} to {high:g}, allowed is 0..{full:g}: scale them and save it again"
        )
    # Only TIFF says how many of the 16 bits it uses (often 12); 258 is the tag BitsPerSample.
    bits = getattr(image, "tag_v2", {}).get(258, (16,))[0]
    if 8 < bits < 16 and high < 2**bits:
        full = 2**bits - 1
    scaled = np.rint(pixels.astype(np.float32) * (255.0 / full)).astype(np.uint8)
    if isinstance(transparent := image.info.get("transparency"), int):
        scaled[pixels == transparent] = 255
    return scaled


def _short(error: BaseException) -> str:
    """An exception as part of a one-line message."""
    return " ".join(str(error).split())[:200] or type(error).__name__
