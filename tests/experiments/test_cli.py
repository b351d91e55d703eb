"""The command line: what it does when all is well, and one line on stderr with exit code 2 when the user can help it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from chiasm.experiments import cli
from chiasm.experiments.run import Run, list_runs, load_run
from chiasm.models import open_vlm
from chiasm.probes.measure import measure
from chiasm.scenes.readers import JsonLines
from PIL import Image

from ..probes import measuring
from ..probes.measuring import tiny_vlm

PROBE = f"{measuring.__file__}:Norms"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A tiny model as an ordinary Hugging Face folder."""
    return str(tiny_vlm().save(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def altered(model, tmp_path):
    """altered(name=text): a copy of the model's folder with files replaced, or left out (None)."""

    def copy(**files) -> str:
        folder = tmp_path / "altered"
        shutil.copytree(model, folder)
        for name, text in files.items():
            path = folder / name.replace("__", ".")
            path.unlink() if text is None else path.write_text(text if isinstance(text, str) else json.dumps(text))
        return str(folder)

    return copy


@pytest.fixture
def photos(tmp_path) -> Path:
    """Six pictures of which two cannot be used."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(4):
        Image.new("RGB", (40, 32), (60 * i, 30, 30)).save(folder / f"{i}.png")
    (folder / "4.png").write_bytes((folder / "0.png").read_bytes()[:50])
    (folder / "5.jpg").write_bytes(b"")
    return folder


@pytest.fixture
def chiasm(capsys, monkeypatch, tmp_path):
    """chiasm(*arguments) -> (exit code, stdout, stderr), called in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "warnoptions", ["default"])  # or main would silence warnings for the tests after it

    def call(*arguments) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            cli.main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return caught.value.code or 0, shown.out, shown.err

    return call


@pytest.fixture
def refused(chiasm):
    """refused(*arguments) -> the one line on stderr; nothing may be on stdout."""

    def call(*arguments) -> str:
        code, out, err = chiasm(*arguments)
        assert code == 2, err
        assert out == ""
        assert err.startswith("chiasm: ") and err.endswith("\n") and err.count("\n") == 1, err
        return err

    return call


# -- when all is well --------------------------------------------------------------------------------------------------


def test_measure_writes_a_run_and_prints_its_path(chiasm, model, photos, tmp_path):
    code, out, err = chiasm("measure", "--model", model, "--data", photos, "--probe", PROBE, "--read", "prompt=w1 w2")
    assert code == 0, err
    run = load_run(Path(out.splitlines()[-1]))
    assert run.finished and run.path.parent == Path("runs/measure")
    assert run.manifest["n"] == 4 and run.manifest["skipped"] == 2
    skipped = run.read_table("skipped")
    assert list(skipped.id) == ["4.png", "5.jpg"] and "empty" in skipped.reason[1]
    assert run.manifest["config"]["read"] == ["prompt=w1 w2"] and run.manifest["model"]["name"] == model
    assert "4 samples, 2 skipped" in err and "norms: 3 rows" in out
    direct = open_vlm(model)
    picture = Image.open(photos / "0.png").convert("RGB")
    trace = direct.trace(direct.prepare([[picture]], ["w1 w2"]), ["blocks.0.resid_post"])
    norm = trace["blocks.0.resid_post"][0].double().norm(dim=-1).max().item()
    assert norm == pytest.approx(run.read_table("norms")["max"][0], rel=0.2)


def test_resume_goes_on_as_it_was_begun(chiasm, model, tmp_path, monkeypatch):
    lines = [json.dumps({"image": "a.png", "prompt": f"w{i} w{i + 1}"}) for i in range(20)]
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    asked = [
        "measure",
        "-m",
        model,
        "-d",
        "data.jsonl",
        "-p",
        PROBE,
        "-b",
        "2",
        "--checkpoint-every",
        "2",
        "--limit",
        "18",
    ]
    code, out, _ = chiasm(*asked, "--out", "whole")
    assert code == 0
    whole = load_run(out.splitlines()[-1]).read_table("norms")

    sample, seen = JsonLines.sample, []

    def interrupted(self, name, record):
        seen.append(name)
        if len(seen) > 12:
            raise KeyboardInterrupt
        return sample(self, name, record)

    monkeypatch.setattr(JsonLines, "sample", interrupted)
    code, out, err = chiasm(*asked)
    assert code == 130 and "--resume" in err
    monkeypatch.undo()
    os.chdir(tmp_path)
    assert "incomplete" in chiasm("runs")[1]
    code, out, err = chiasm("measure", "--resume", "latest")
    assert code == 0, err
    path = out.splitlines()[-1]
    pd.testing.assert_frame_equal(load_run(path).read_table("norms"), whole, check_exact=True)
    assert "complete" in chiasm("runs")[1] and load_run(path).manifest["n"] == 18
    assert "resumed at item" in (Path(path) / "log.txt").read_text()

    code, out, err = chiasm("measure", "--resume", path)
    assert code == 0 and "nothing was measured again" in err and out.splitlines()[-1] == path


def test_generate_answers_about_pictures(chiasm, model, photos, tmp_path):
    asked = ["generate", "-m", model, "--max-new-tokens", "4", "--out", "answers.jsonl"]
    code, out, err = chiasm(*asked, photos / "1.png", "--prompt", "w3 <image> w4")
    assert code == 0, err
    (answer,) = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    direct = open_vlm(model)
    picture = Image.open(photos / "1.png").convert("RGB")
    inputs = direct.prepare([[picture]], ["w3 <image> w4"])
    assert answer["answer"] == direct.generate(inputs, max_new_tokens=4)[0] and answer["answer"] in out

    code, out, err = chiasm(*asked, "--data", photos, "--limit", "6")
    assert code == 0
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 4
    assert "4.png: skipped" in err and "5.jpg: skipped" in err


def test_info_works_on_a_bare_config(chiasm, model, tmp_path):
    shutil.copy(Path(model) / "config.json", tmp_path / "config.json")
    code, out, err = chiasm("info", "config.json", "--json")
    assert code == 0, err
    assert json.loads(out)["family"] == "llava"
    code, out, _ = chiasm("info", model)
    assert code == 0 and "model.language_model.layers" in out


def test_no_runs_is_no_error(chiasm):
    code, out, err = chiasm("runs")
    assert (code, out) == (0, "") and "no runs in 'runs'" in err


def test_a_probe_of_ones_own_by_module_name_from_here(chiasm, model, photos, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "probe_of_mine.py").write_text(
        "import pandas as pd, torch\n"
        "from chiasm.probes.probe import Probe\n"
        "class Count(Probe):\n"
        "    name, sites = 'count', ('embed',)\n"
        "    def attach(self, anatomy): self.add_sum('rows')\n"
        "    def update(self, trace, inputs): self.rows += len(inputs)\n"
        "    def compute(self): return pd.DataFrame({'rows': [int(self.rows)]})\n"
    )
    code, out, err = chiasm("measure", "-m", model, "-d", photos, "-p", "mine.probe_of_mine:Count", "-p", PROBE)
    assert code == 0, err
    assert load_run(out.splitlines()[-1]).read_table("count")["rows"].tolist() == [4]


def test_help_is_there_at_once_and_whole():
    environment = os.environ | {"COLUMNS": "120"}
    times = []
    for _ in range(3):
        start = time.perf_counter()
        code = "import sys, chiasm.experiments.cli as c\ntry: c.main(['--help'])\nfinally: print([m for m in ('torch', 'transformers', 'pandas') if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        times.append(time.perf_counter() - start)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.splitlines()[-1] == "[]"  # nothing heavy was imported, which is what makes it fast
    for command in ("report", "run", "measure", "generate", "info", "runs", "organism"):
        assert f" {command} " in done.stdout
    assert min(times) < 3  # generous: the machine may be busy


@pytest.mark.parametrize("command", ["report", "run", "measure"])
def test_every_command_takes_the_shared_options(chiasm, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    code, out, _ = chiasm(command, "--help")
    assert code == 0
    for option in ("--model", "--data", "--device", "--dtype", "--limit", "--seed", "--out"):
        assert option in out


# -- one line and exit code 2 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nope"], ["'nope'"]),
        (["measure", "--nope"], ["--nope", "measure --help"]),
        (["measure", "--limit", "many"], ["--limit", "integer"]),
        (["measure", "--limit", "0"], ["0", "at least 1"]),
        (["measure", "--limit", "-3"], ["-3"]),
        (["run", "nope"], ["'nope'", "alignment", "forgetting"]),
        (["run", "alignment", "--limit", "0"], ["--limit 0"]),
        (["organism", "verify", "--folder", "nope"], ["nope"]),
        (["organism", "grow", "--recipe", "nope.json"], ["nope.json"]),
        (["generate", "--max-new-tokens", "0"], ["--max-new-tokens", "0"]),
        (["generate", "nope.png"], ["nope.png"]),
        (["measure", "--resume", "nope"], ["'nope'", "chiasm runs"]),
        (["measure", "--resume", "latest"], ["no incomplete measurement"]),
        (["info", "nope/"], ["nope"]),
    ],
)
def test_arguments(refused, arguments, words, model):
    line = refused(
        *arguments, *(["-m", model, "-p", PROBE] if "--limit" in arguments and "measure" in arguments else [])
    )
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./no-such-folder", ["./no-such-folder", "not a folder"]),
        ("chiasm-test/no-such-model", ["chiasm-test/no-such-model", "no network"]),
        ("organism/nope", ["nope"]),
    ],
)
def test_a_model_that_is_not_there(refused, photos, name, words):
    for command in (["measure", "-p", PROBE, "-d", photos], ["generate", photos / "0.png"]):
        line = refused(*command, "--model", name)
        assert all(word in line for word in words), line


def test_a_model_folder_that_is_no_model(refused, altered, photos, model, tmp_path):
    ask = ["measure", "-p", PROBE, "-d", photos, "--model"]
    assert "no config.json" in refused(*ask, altered(config__json=None))
    shutil.rmtree(tmp_path / "altered")
    assert "not JSON" in refused(*ask, altered(config__json="{"))
    shutil.rmtree(tmp_path / "altered")
    assert "bert" in refused(*ask, altered(config__json={"model_type": "bert", "architectures": ["BertModel"]}))
    shutil.rmtree(tmp_path / "altered")
    assert "altered" in refused(*ask, altered(**{"model__safetensors": "not weights"}))


def test_a_processor_that_does_not_match(refused, altered, photos, model):
    processor = json.loads((Path(model) / "processor_config.json").read_text())
    folder = altered(processor_config__json=processor | {"patch_size": 16})
    line = refused("measure", "-p", PROBE, "-d", photos, "--model", folder)
    assert "16" in line and "8" in line and "processor" in line


def test_weights_that_are_not_finite(refused, photos, tmp_path):
    vlm = tiny_vlm()
    with torch.no_grad():
        vlm.anatomy.blocks[2].self_attn.o_proj.weight[0, 0] = float("nan")
    vlm.save(tmp_path / "nan")
    line = refused("measure", "-p", PROBE, "-d", photos, "--model", tmp_path / "nan")
    assert "'blocks.2.resid_post'" in line and "not finite" in line
    (run,) = list_runs(tmp_path / "runs")
    assert run.state == "incomplete" and "not finite" in run.detail


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what must be missing")
def test_a_device_that_is_not_there(refused, model, photos):
    ask = ["measure", "-p", PROBE, "-d", photos, "-m", model, "--device"]
    assert "'cuda'" in refused(*ask, "cuda") and "--device cpu" in refused(*ask, "cuda:3")
    assert "'nope'" in refused(*ask, "nope")
    assert "'cuda'" in refused("generate", photos / "0.png", "-m", model, "--device", "cuda")


def test_a_dtype_that_is_not_known(refused, model, photos):
    assert "'int8'" in refused("measure", "-p", PROBE, "-d", photos, "-m", model, "--dtype", "int8")


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        ("nope", ["'nope'", "implicit_alignment", "package.module:Class"]),
        ("no_such_module_at_all:X", ["no_such_module_at_all"]),
        ("chiasm.probes.nope:X", ["chiasm.probes.nope"]),
        ("nope.py:X", ["nope.py"]),
        ("mine.py:Nope", ["'Nope'", "Good"]),
        ("mine.py:VALUE", ["must be a class"]),
        ("mine.py:Plain", ["Plain is not a probe"]),
        ("mine.py:Needy", ["without arguments", "'k'"]),
        ("mine.py:Lost", ["'blocks.*.nope'", "resid_post"]),
        ("broken.py:X", ["SyntaxError", "line 2"]),
        ("failing.py:X", ["ZeroDivisionError", "line 1"]),
        (":X", ["':X'"]),
    ],
)
def test_a_probe_that_is_none(refused, model, photos, tmp_path, probe, words):
    (tmp_path / "mine.py").write_text(
        "from chiasm.probes.probe import Probe\n"
        "VALUE = 3\n"
        "class Plain: pass\n"
        "class Good(Probe):\n"
        "    name, sites = 'good', ('embed',)\n"
        "    def attach(self, anatomy): self.add_sum('x')\n"
        "    def compute(self): return None\n"
        "class Needy(Good):\n"
        "    def __init__(self, k): super().__init__()\n"
        "class Lost(Good):\n"
        "    sites = ('blocks.*.nope',)\n"
    )
    (tmp_path / "broken.py").write_text("x = 1\nclass X(:\n")
    (tmp_path / "failing.py").write_text("1 / 0\n")
    line = refused("measure", "-m", model, "-d", photos, "-p", probe)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(("option", "value"), [("--batch-size", "0"), ("--checkpoint-every", "0")])
def test_numbers_out_of_range(refused, model, photos, option, value):
    assert "from 1 up" in refused("measure", "-m", model, "-d", photos, "-p", PROBE, option, value)


# -- data --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    """data(*lines) -> a JSON Lines file of a good line and these (bytes, or objects); the picture beside it."""
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")

    def write(*lines, good=True) -> Path:
        lines = [json.dumps(line).encode() if isinstance(line, dict) else line for line in lines]
        first = [b'{"image": "a.png", "prompt": "w1"}'] if good else []
        path = tmp_path / "data.jsonl"
        path.write_bytes(b"\n".join([*first, *lines]) + b"\n")
        return path

    return write


BAD_LINES = {
    "not JSON": (b'{"image": "a.png", "prompt": ', ["line 2"]),
    "a missing field": ({"image": "a.png"}, ["line 2", "prompt"]),
    "a NUL byte": (b'{"image": "a.png", "prompt": "w\\u0000"}', ["line 2", "NUL"]),
    "a raw NUL byte": (b'{"image": "a.png", "prompt": "w\x00"}', ["line 2"]),
    "a wrong encoding": ('{"image": "a.png", "prompt": "wé"}'.encode("latin-1"), ["line 2"]),
    "a missing picture": ({"image": "nope.png", "prompt": "w1"}, ["line 2", "nope.png"]),
    "more placeholders than pictures": ({"image": "a.png", "prompt": "<image> w1 <image>"}, ["1 pictures for 2"]),
    "more pictures than placeholders": ({"image": ["a.png", "a.png"], "prompt": "<image> w1"}, ["2 pictures for 1"]),
    "too long a sequence": ({"image": "a.png", "prompt": "w1 " * 60}, ["positions", "64"]),
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_is_skipped_and_listed_and_strict_stops(chiasm, refused, model, data, kind):
    line, words = BAD_LINES[kind]
    ask = ["measure", "-m", model, "-p", PROBE, "-d", data(line)]
    code, out, err = chiasm(*ask)
    assert code == 0, err
    skipped = load_run(out.splitlines()[-1]).read_table("skipped")
    assert len(skipped) == 1 and all(word in skipped.reason[0] for word in words), skipped.reason[0]
    said = refused(*ask, "--strict")
    assert all(word in said for word in words), said


@pytest.mark.parametrize("kind", BAD_LINES)
def test_data_with_nothing_but_bad_lines(refused, model, data, kind):
    line, words = BAD_LINES[kind]
    said = refused("measure", "-m", model, "-p", PROBE, "-d", data(line, line, good=False))
    assert all(word.replace("line 2", "line 1") in said for word in words), said


def test_data_that_are_not_there_or_empty(refused, model, tmp_path):
    ask = ["measure", "-m", model, "-p", PROBE, "-d"]
    assert "'nope'" in refused(*ask, "nope") and "'./nope'" in refused(*ask, "./nope")
    (tmp_path / "none").mkdir()
    assert "no pictures" in refused(*ask, "none")
    (tmp_path / "none.jsonl").write_text("")
    assert "empty" in refused(*ask, "none.jsonl")
    assert "'nope'" in refused(*ask, "scenes:nope")
    assert "chiasm-test/none" in refused(*ask, "chiasm-test/none")


@pytest.mark.parametrize(
    ("read", "words"), [("nope", ["NAME=VALUE"]), ("nope=1", ["'nope'", "prompt"]), ("format=x", ["'x'"])]
)
def test_reading_options(refused, model, photos, read, words):
    line = refused("measure", "-m", model, "-p", PROBE, "-d", photos, "--read", read)
    assert all(word in line for word in words), line


PICTURES = {
    "unreadable": (b"this is no picture", "refused"),
    "truncated": (None, "refused"),
    "empty": (b"", "refused"),
    "1x1": (lambda p: Image.new("RGB", (1, 1)).save(p), None),
    "CMYK": (lambda p: Image.new("CMYK", (40, 40)).save(p, "TIFF"), "used"),
    "16 bit": (lambda p: Image.new("I;16", (40, 40), 40000).save(p), "used"),
    "grey with alpha": (lambda p: Image.new("LA", (40, 40)).save(p), "used"),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_odd_pictures_are_used_or_refused_in_one_line(chiasm, model, tmp_path, kind):
    made, expected = PICTURES[kind]
    path = tmp_path / "odd.png"
    if made is None:
        Image.effect_noise((64, 64), 50).save(path)
        path.write_bytes(path.read_bytes()[:600])
    elif isinstance(made, bytes):
        path.write_bytes(made)
    else:
        made(path)
    code, out, err = chiasm("generate", "-m", model, path, "--max-new-tokens", "2")
    assert code in (0, 2) and (expected is None or code == {"used": 0, "refused": 2}[expected]), err
    if code == 2:
        assert "odd.png" in err and err.count("\n") == 1 and out == ""


# -- runs and the disk -------------------------------------------------------------------------------------------------


@pytest.fixture
def begun(chiasm, model, photos, monkeypatch) -> Path:
    """The folder of an incomplete run."""
    module = sys.modules["chiasm.probes.measure"]  # the package's attribute of this name is the function
    monkeypatch.setattr(module, "check_finite", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert chiasm("measure", "-m", model, "-d", photos, "-p", PROBE)[0] == 130
    monkeypatch.undo()
    (run,) = list_runs(photos.parent / "runs")
    os.chdir(photos.parent)
    return run.path


def test_a_run_of_an_older_version_or_damaged(refused, chiasm, begun):
    manifest = begun / "manifest.json"
    kept = manifest.read_text()
    manifest.write_text(json.dumps(json.loads(kept) | {"format": 0}))
    assert "format 0, of an older version" in refused("measure", "--resume", begun)
    assert "other version" in chiasm("runs")[1]
    manifest.write_text(kept[:40])
    assert "damaged" in refused("measure", "--resume", begun)
    code, out, _ = chiasm("runs")
    assert code == 0 and "broken" in out


def test_resuming_with_other_options_is_refused(refused, chiasm, begun, model):
    with Run.create("measure", load_run(begun).manifest["config"], begun.parents[1]) as run:
        path = run.path
        measure(open_vlm(model), [measuring.sample(i) for i in range(3)], [measuring.Norms()], run=run)
    assert "another data" in refused("measure", "--resume", path.with_name(path.name.removesuffix(".partial")))


def test_an_out_folder_that_cannot_be_used(refused, model, photos, tmp_path):
    (tmp_path / "file").write_text("x")
    line = refused("measure", "-m", model, "-d", photos, "-p", PROBE, "--out", "file")
    assert "file" in line and "--out" in line


def test_a_full_disk(refused, chiasm, model, photos, monkeypatch, tmp_path):
    write = Path.write_bytes

    def full(path, content):
        if "states" in path.parts:
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    line = refused("measure", "-m", model, "-d", photos, "-p", PROBE)
    assert "no space left" in line
    monkeypatch.undo()
    os.chdir(tmp_path)
    code, out, _ = chiasm("measure", "--resume", "latest")
    assert code == 0 and load_run(out.splitlines()[-1]).manifest["n"] == 4


# -- the edges of main -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "Permission denied", "/somewhere"),
        OSError(28, "No space left on device"),
        NotADirectoryError(20, "Not a directory", "a/b"),
        FileNotFoundError(2, "No such file or directory", "a/card.json"),
    ],
)
def test_errors_of_the_system_that_a_user_can_put_right(refused, monkeypatch, error):
    def fails(*_args, **_options):
        raise error

    monkeypatch.setattr("chiasm.experiments.manifest.list_runs", fails)
    assert (error.filename or "no space") in refused("runs")


def test_a_fault_of_chiasm_shows_its_traceback(monkeypatch):
    def fails(*_args, **_options):
        raise KeyError("a bug")

    monkeypatch.setattr("chiasm.experiments.manifest.list_runs", fails)
    with pytest.raises(KeyError, match="a bug"):
        cli.main(["runs"])


def test_as_a_process_it_exits_with_2_and_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "chiasm.experiments.cli", "measure", "--model", "chiasm-test/none", "--data", "nope"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, done.stderr


def test_an_option_of_another_experiment_is_refused(refused):
    line = refused("run", "alignment", "--word", "tree")
    assert "--word" in line and "'alignment'" in line


def test_a_word_that_never_occurs_and_a_teacher_that_is_not_there(refused, tmp_path):
    line = refused("run", "concepts", "--word", "zebra", "--limit", "24")
    assert "zebra" in line
    line = refused("run", "embeddings", "--teacher", tmp_path / "none", "--limit", "8")
    assert "none" in line
    assert all(folder.name.endswith(".partial") for folder in tmp_path.glob("runs/*/*"))  # what was begun says so
