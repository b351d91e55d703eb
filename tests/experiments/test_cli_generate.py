"""`chiasm generate` as it is typed: the plain answer beside the changed one, kept as they come, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from chiasm.experiments import options
from chiasm.models import open_vlm
from chiasm.models.vlm import VLM
from chiasm.scenes.benchmarks import scene_samples
from chiasm.steering import AddDirection, ContrastDecoder, Direction, OutlierTokens
from chiasm.steering.directions import direction_between
from PIL import Image

from .test_cli import chiasm, refused  # noqa: F401 - fixtures

FEW = ["--data", "scenes", "--limit", "3", "--max-new-tokens", "4"]


@pytest.fixture(scope="module")
def vlm():
    return open_vlm("organism", device="cpu")


@pytest.fixture
def opened(monkeypatch, vlm):
    """The organism is opened once for all tests."""
    monkeypatch.setattr(options, "open_model", lambda *_, **__: vlm)


@pytest.fixture
def files(chiasm, vlm, opened):  # noqa: F811
    """cat.png and my_direction.safetensors, here."""
    next(scene_samples(1, "test")).images[0].save("cat.png")
    base, target = torch.randn(2, 5, vlm.anatomy.hidden_size, generator=torch.Generator().manual_seed(0))
    direction_between(vlm, base, target, 1).save("my_direction")


def written(path: str = "answers.jsonl") -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_a_changed_answer_beside_the_plain_one(chiasm, vlm, files):  # noqa: F811
    code, out, err = chiasm(
        "generate", "--decode", "damro", "--alpha", "1", "--steer", "my_direction.safetensors", "--scale", "0.5",
        "--image", "cat.png", "--prompt", "describe the image .", "--out", "answers.jsonl",
    )  # fmt: skip
    assert code == 0, err
    (record,) = written()
    inputs = vlm.prepare([Image.open("cat.png").convert("RGB")], ["describe the image ."])
    push = AddDirection(Direction.load("my_direction"), scale=0.5, units="norm")
    changed = ContrastDecoder(vlm, OutlierTokens(), alpha=1.0, beta=0.1, interventions=[push]).generate(inputs)
    assert record["answer"] == vlm.generate(inputs)[0] and record["changed"] == changed[0] != record["answer"]
    assert record["change"] == "damro-a1, my_direction × 0.5" and f"changed: {record['change']}" in err
    assert f"plain:    {record['answer']}" in out and f"changed:  {record['changed']}" in out


def test_answers_are_kept_as_they_come_and_gone_on_with(chiasm, opened, monkeypatch):  # noqa: F811
    asked = ["generate", *FEW, "--exit", "1", "--out"]
    assert chiasm(*asked, "whole.jsonl")[0] == 0
    whole, generate, calls = written("whole.jsonl"), VLM.generate, []
    assert len(whole) == 3

    def counted(self, *arguments, **named):
        calls.append(1)
        if len(calls) == 4:  # the changed answer to the second question
            raise KeyboardInterrupt
        return generate(self, *arguments, **named)

    monkeypatch.setattr(VLM, "generate", counted)
    code, _, err = chiasm(*asked, "answers.jsonl")
    assert code == 130 and "--resume" in err
    assert written() == whole[:1]  # what was answered is there
    with Path("answers.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id": "half of a')
    code, _, err = chiasm(*asked, "answers.jsonl", "--resume")
    assert code == 0, err
    assert written() == whole and len(calls) == 4 + 4  # the first was not asked again
    code, out, _ = chiasm(*asked, "answers.jsonl", "--resume")
    assert code == 0 and out == "" and written() == whole
    code, _, err = chiasm("generate", *FEW, "--out", "answers.jsonl", "--resume")
    assert code == 2 and "was begun by another command" in err and written() == whole
    assert chiasm("generate", *FEW, "--out", "answers.jsonl")[0] == 0  # anew
    assert [set(one) for one in written()] == [{"id", "prompt", "answer"}] * 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--decode", "beam"], ["'beam'", "damro"]),
        (["--decode", "damro", "--alpha", "-1"], ["alpha=-1", "0 (no contrast) or more"]),
        (["--decode", "damro", "--beta", "1.5"], ["beta=1.5", "(0, 1]"]),
        (["--decode", "damro-sampled"], ["'damro-sampled'", "--sample"]),
        (["--decode", "vcd-k4"], ["k=4", "keeps no tokens"]),
        (["--alpha", "1"], ["--alpha 1", "--decode"]),
        (["--beta", "0.5"], ["--beta 0.5", "--decode"]),
        (["--scale", "2"], ["--scale", "--steer"]),
        (["--positions", "image"], ["--positions", "--steer"]),
        (["--steer", "nope.safetensors"], ["there is no direction 'nope'"]),
        (["--steer", "my_direction.safetensors", "--positions", "somewhere"], ["'somewhere'", "last_prompt"]),
        (["--resume"], ["--resume", "--out"]),
    ],
)
def test_arguments(refused, files, arguments, words):  # noqa: F811
    line = refused("generate", "cat.png", *arguments)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--exit", "9"], "layer 9 is outside"),
        (["--prune", "2"], "keep=2.0 must be a share"),
        (["--decode", "damro", "--boost", "-1"], "strength=-1.0"),
        (["--steer", "other.safetensors"], "the direction was made on another (weights 0)"),
        (["--steer", "narrow.safetensors"], "the direction is (3,)"),
    ],
)
def test_what_the_model_has_no_place_for_is_told_before_anything_is_asked(refused, vlm, files, arguments, words):  # noqa: F811
    other = {"model": {"name": "another", "weights": "0"}}
    Direction(torch.ones(vlm.anatomy.hidden_size), 1, other).save("other")
    Direction(torch.ones(3), 1, {}).save("narrow")
    assert words in refused("generate", "cat.png", *arguments)
    evaluated = ["evaluate", "pope-scenes", "--limit", "6", *arguments]
    if "--decode" not in arguments:
        assert words in refused(*evaluated)
