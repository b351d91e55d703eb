"""Settings of every test (none asks the hub for anything, none draws on a screen), and the photographs many use."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported by any test
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

PHOTOGRAPHS = {
    "skimage": ("data", ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")),
    "sklearn": ("datasets/images", ("china.jpg", "flower.jpg")),
}
"""Package → folder and files in its wheel. Nothing is downloaded."""


@pytest.fixture(scope="session")
def photo_files() -> dict[str, Path]:
    """Name → file of each photograph."""
    files = {}
    for package, (folder, names) in PHOTOGRAPHS.items():
        root = Path(find_spec(package).origin).parent / folder
        files |= {name: root / name for name in names}
    return files


@pytest.fixture(scope="session")
def photo(photo_files):
    """photo(name, side): a photograph as an RGB picture, made smaller so that its longer side is at most `side` pixels."""

    def load(name: str, side: int = 10_000) -> Image.Image:
        image = Image.open(photo_files[name]).convert("RGB")
        image.thumbnail((side, side))
        return image

    return load


@pytest.fixture(scope="module")
def one_thread():
    """Sums in the order of one thread, as each of several processes on this machine makes them."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
