"""`chiasm pairs`: from the command line to a data set, and mistakes in one line."""

from __future__ import annotations

import json

import pytest
import typer
from chiasm.alignment.pair_files import load_pairs
from chiasm.experiments.cli_pairs import pairs
from chiasm.scenes.errors import UserError
from typer.testing import CliRunner

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(pairs)


def run(*told):
    result = CliRunner().invoke(app, [str(word) for word in told])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_scenes_become_pairs_and_are_not_made_twice(tmp_path):
    out = tmp_path / "out"
    said = run("--n", 24, "--backend", "scene-truth", "--out", out, "--device", "cpu")
    n = len(load_pairs(out))
    assert n >= 15 and f"{n} pairs of 24 items" in said and "sees the texts alone" in said and str(out) in said
    assert run("--n", 24, "--backend", "scene-truth", "--out", out, "--device", "cpu") == said
    assert all(int(name.rsplit("-", 1)[1]) % 10 < 8 for name in load_pairs(out)["id"])  # scenes of the training split
    with pytest.raises(UserError, match="was begun with another"):
        run("--n", 24, "--out", out, "--seed", 1, "--device", "cpu")


def test_photographs_are_masked_by_vocabulary_and_judged_by_the_model(photo_files, tmp_path):
    lines = [
        {"id": name, "image": str(path), "prompt": "what is it ?", "answer": "a red cup on the left of a man"}
        for name, path in photo_files.items()
    ]
    data = tmp_path / "photos.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    try:
        run("--data", data, "--backend", "self", "--k", 2, "--out", tmp_path / "out", "--device", "cpu", "--n", 4)
    except UserError as error:  # the bundled model knows no photographs: any verdict will do, but not a crash
        assert "none of the 4 items gave a pair" in str(error)
    else:
        assert all(row["judge"].startswith("yes-no:") for row in load_pairs(tmp_path / "out"))


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (["--backend", "gpt"], "--backend 'gpt' is not known"),
        (["--backend", "http"], "needs --endpoint"),
        (["--backend", "local"], "name it with --other"),
        (["--price", "cheap"], "two numbers"),
        (["--mask", "verbs"], "mask 'verbs'"),
        (["--rejected-image", "dog"], "rejected_image 'dog'"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--n", "0"], "--limit 0 must be at least 1"),
    ],
)
def test_mistakes_are_one_line(told, words, tmp_path):
    with pytest.raises(UserError, match=words) as error:
        run(*told, "--out", tmp_path / "out", "--device", "cpu")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())
