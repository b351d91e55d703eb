"""The wheel is complete: built, installed into a fresh environment and used outside the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOT_SOURCES = (".*", "*.egg-info", "__pycache__", "build", "dist", "runs", "out")
LIMIT = 30 * 2**20


def run(*command: object, cwd: Path) -> str:
    """The command's output; a failure shows both streams."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COVERAGE"))} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=clean, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that neither old build products nor this checkout's can leak into or out of it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*NOT_SOURCES))
    build = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation")
    run(*build, "-w", folder, source, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def fresh(wheel) -> Path:
    """Commands of a new environment that has the wheel; the heavy dependencies are seen through a path file.

    A path file adds the folder itself and nothing that its own path files would, so an editable install of this checkout
    stays invisible.
    """
    home = wheel.parent / "fresh"
    venv.create(home, with_pip=False, symlinks=os.name != "nt")
    commands = home / ("Scripts" if os.name == "nt" else "bin")
    run(
        *(
            sys.executable,
            "-m",
            "pip",
            "--python",
            commands / "python",
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
        ),
        wheel,
        cwd=wheel.parent,
    )
    site = run(commands / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=wheel.parent)
    Path(site.strip(), "heavy.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return commands


def test_every_file_of_the_packages_is_inside(wheel):
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    packages = [path.parent for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests"]
    files = [path.relative_to(ROOT) for package in packages for path in package.rglob("*") if path.is_file()]
    wanted = {f"chiasm/{path.as_posix()}" for path in files if "__pycache__" not in path.parts}
    assert wanted <= inside, f"not in the wheel: {sorted(wanted - inside)}"
    assert any("/organism/files/" in name for name in inside), "the organism has no files"
    assert not [name for name in inside if name.startswith(("tests/", "chiasm/tests/"))]
    assert any(name.endswith("LICENSE") for name in inside)


def test_the_wheel_is_small(wheel):
    assert wheel.stat().st_size <= LIMIT


def test_it_runs_outside_the_checkout(fresh, wheel, tmp_path):
    where = run(fresh / "python", "-c", "import chiasm.models as m; print(m.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(wheel.parent / "fresh"), "the checkout was used, not the wheel"
    shown = run(fresh / "chiasm", "info", "organism", cwd=tmp_path)
    assert "LlavaForConditionalGeneration" in shown
    assert "decoder blocks" in shown


def test_its_version_is_the_projects(fresh, tmp_path):
    code = "import importlib.metadata as m; print(m.version('chiasm'))"
    assert run(fresh / "python", "-c", code, cwd=tmp_path).strip() in (ROOT / "pyproject.toml").read_text("utf-8")
