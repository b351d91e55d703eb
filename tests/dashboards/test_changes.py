"""The page Steer without the page: what differs between answers, and code that gives the same answers in another process."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
import torch
from chiasm.dashboards.changes import (
    GONE,
    NEW,
    Controls,
    Panel,
    answering,
    compared,
    differences,
    scene_of,
    words_changed,
)
from chiasm.dashboards.directions_at_hand import Ready, Saved, TwoPrompts, saved_directions
from chiasm.dashboards.marked import as_html
from chiasm.dashboards.pictures import scene_at
from chiasm.experiments import cli
from chiasm.models import open_vlm
from chiasm.scenes.errors import UserError
from chiasm.scenes.pictures import open_picture
from chiasm.scenes.readers import open_data
from chiasm.steering import Direction
from chiasm.steering.directions import direction_between

TOKENS = 24
PROMPTS = ("write a short caption .", "write a caption about the place .")


@pytest.fixture(scope="module")
def vlm():
    return open_vlm("organism", device="cpu")


@pytest.fixture(scope="module")
def scene():
    return scene_at(3)[0]


@pytest.fixture
def chiasm(monkeypatch, tmp_path):
    """chiasm(command) -> what `chiasm generate` wrote, called in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "warnoptions", ["default"])

    def call(command: str) -> dict:
        import shlex

        words = shlex.split(command)
        assert words[0] == "chiasm"
        with pytest.raises(SystemExit) as caught:
            cli.main([*words[1:], "--out", "answers.jsonl"])
        assert not caught.value.code
        (line,) = (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
        return json.loads(line)

    return call


def answered(vlm, picture, prompt: str, controls: Controls, tokens: int = TOKENS) -> str:
    source = controls.source
    direction = None if source is None else source.direction(vlm, controls.layer, picture)
    return "".join(answering(vlm, picture, prompt, controls.change(vlm, direction), tokens)).strip()


@pytest.fixture(scope="module")
def panel_answers(vlm, scene):
    """panel_answers(controls) -> the answer on the page, of the scene; made once."""
    return cache(lambda controls: answered(vlm, scene.images[0], scene.prompt, controls))


def saved(vlm, root, layer: int = 1) -> Saved:
    """The one direction saved under a folder of runs, drawn at random."""
    base, target = torch.randn(2, 5, vlm.anatomy.hidden_size, generator=torch.Generator().manual_seed(0))
    place = root / "steering" / "20260101-000000-abcdef" / "arrays"
    place.mkdir(parents=True)
    direction_between(vlm, base, target, layer, scale=1.5, positions=-1).save(place / "mine")
    found, others = saved_directions(root, vlm.fingerprint())
    assert others == 0
    return found[0]


# -- what differs


def test_differences_word_by_word():
    plain, changed = "a red cup , on the table .", "a cup on the blue table ."
    assert differences(plain, changed) == [
        ("a", "a"), (" red", ""), (" cup", " cup"), (" ,", ""), (" on the", " on the"), ("", " blue"), (" table .", " table ."),
    ]  # fmt: skip
    assert words_changed(plain, changed) == (2, 1) and words_changed(plain, plain) == (0, 0)
    assert differences("", "yes") == [("", "yes")] and words_changed("", "") == (0, 0)
    for text, side in ((plain, 0), (changed, 1)):
        assert "".join(words for words, _ in compared(plain, changed)[side]) == text


def test_marks_hold_words_and_no_space_and_no_markup_of_the_model():
    before, after = compared("see <b> now", "see <script>alert(1)</script> now")
    assert before == [("see", ""), (" ", ""), ("<b>", GONE), (" now", "")]
    assert after[2] == ("<script>alert(1)</script>", NEW)
    assert "<script>" not in as_html(after) and "&lt;script&gt;" in as_html(after)
    assert f'<mark class="{GONE}">&lt;b&gt;</mark>' in as_html(before)


def test_repeated_words_are_compared_however_many_there_are():
    long = "the fish is red . " * 80  # difflib would call the words of long texts noise
    assert words_changed(long, long.replace("red", "blue", 1)) == (1, 1)


# -- the change


def test_the_defaults_change_nothing(vlm):
    assert Controls().options() == {} and Controls().change(vlm) is None


def test_only_what_is_not_default_is_said():
    controls = Controls(decode="damro", k=4, alpha=2.0, beta=0.0, keep=0.5, skip=(1, 2), exit_after=0, boost=0.2)
    assert controls.options() == {
        "decode": "damro-k4", "alpha": 2.0, "beta": 0.0, "prune": 0.5, "skip": (1, 2), "exit_after": 0, "boost": 0.2,
    }  # fmt: skip
    assert Controls(beta=0.3, alpha=1.0).options() == {}  # of no contrast
    assert Controls(Ready("yes-to-no"), 2, 0.7, "last_prompt").options() == {
        "layer": 2,
        "scale": 0.7,
        "positions": "last_prompt",
    }


@pytest.mark.parametrize(
    ("controls", "told"),
    [
        (Controls(exit_after=9), "layer 9"),
        (Controls(skip=(7,)), "layer 7"),
        (Controls(decode="vcd", alpha=-1.0), "alpha=-1.0"),
        (Controls(decode="vcd", beta=2.0), "beta=2.0"),
        (Controls(decode="vcd", k=3), "keeps no tokens"),
        (Controls(keep=-0.5), "keep=-0.5"),
        (Controls(boost=-1.0), "strength=-1.0"),
    ],
)
def test_what_cannot_be_is_one_line(vlm, controls, told):
    with pytest.raises(UserError, match=told) as caught:
        controls.change(vlm)
    assert "\n" not in str(caught.value)


def test_more_outliers_than_tokens_is_one_line(vlm, scene):
    with pytest.raises(UserError, match="5000"):
        answered(vlm, scene.images[0], scene.prompt, Controls(decode="damro", k=5000))


def test_pieces_are_the_answer_that_generate_gives(vlm, scene):
    inputs = vlm.prepare([[scene.images[0]]], [scene.prompt])
    for controls in (Controls(), Controls(boost=0.5, keep=0.5), Controls(decode="vcd", skip=(2,))):
        change = controls.change(vlm)
        whole = change.generate(vlm, inputs) if change else vlm.generate(inputs)
        assert answered(vlm, scene.images[0], scene.prompt, controls, 64) == whole[0]


def test_an_answer_that_is_given_up_leaves_the_model_as_it_was(vlm, scene):
    hooks = lambda: sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in vlm.model.modules())  # noqa: E731
    before, there = answered(vlm, scene.images[0], scene.prompt, Controls()), hooks()
    pieces = answering(vlm, scene.images[0], scene.prompt, Controls(keep=0.2, boost=0.9).change(vlm), 64)
    next(pieces)
    assert hooks() > there
    pieces.close()
    assert answered(vlm, scene.images[0], scene.prompt, Controls()) == before and hooks() == there


def test_windows_do_not_disturb_each_other(vlm):
    ask = [
        (scene_at(n)[0], c)
        for n in range(3)
        for c in (Controls(), Controls(boost=0.8, keep=0.4), Controls(decode="vcd", exit_after=1))
    ]
    alone = [answered(vlm, sample.images[0], sample.prompt, controls) for sample, controls in ask]
    with ThreadPoolExecutor(4) as pool:
        together = pool.map(lambda one: answered(vlm, one[0].images[0], one[0].prompt, one[1]), ask)
        assert list(together) == alone


# -- code that reproduces the panel

COMBINATIONS = [
    Controls(),
    Controls(Ready("place-style"), 1, 0.7, "-1"),
    Controls(decode="damro", k=4, alpha=2.0, beta=0.0),
    Controls(decode="pai", skip=(1, 3)),
    Controls(decode="m3id", beta=0.25, keep=0.4),
    Controls(decode="m3id", alpha=1.3),
    Controls(decode="random-tokens", k=5, exit_after=1),
    Controls(decode="blank"),
    Controls(Ready("yes-to-no"), 2, 1.5, "text", "vcd", 0.5, 0.2, None, 0.55, (0, 2), 2, 0.15),
    Controls(keep=0.3, exit_after=0, skip=(2,), boost=0.05),
]


@pytest.mark.parametrize("controls", COMBINATIONS, ids=lambda c: "-".join(map(str, [c.decode, *c.options()])))
def test_python_and_command_reproduce_the_panel(scene, chiasm, panel_answers, controls):
    panel = Panel(controls, scene.prompt, scene_of(scene.images[0], scene), device="cpu", tokens=TOKENS)
    plain, changed = panel_answers(Controls()), panel_answers(controls)
    space: dict = {}
    exec(compile(panel.as_python().text, "copied", "exec"), space)
    assert (space["plain"], space["changed"]) == (plain, changed)
    record = chiasm(panel.as_command().text)
    assert (record["answer"], record.get("changed", plain)) == (plain, changed)
    assert record["prompt"] == scene.prompt


def test_the_answers_of_the_combinations_are_not_all_the_same(panel_answers):
    """Or the test before would pass with code that changes nothing."""
    assert len({panel_answers(controls) for controls in COMBINATIONS}) > len(COMBINATIONS) // 2


def test_a_saved_direction_in_code(vlm, scene, chiasm, tmp_path):
    source = saved(vlm, tmp_path / "runs with space")
    assert (source.layer, source.scale, source.positions, source.units) == (1, 1.5, "-1", "norm")
    controls = Controls(source, 2, 1.5, "-1")
    panel = Panel(controls, scene.prompt, scene.truth["scene"].seed, device="cpu", tokens=TOKENS)
    changed, space = answered(vlm, scene.images[0], scene.prompt, controls), {}
    exec(panel.as_python().text, space)
    assert space["changed"] == changed == chiasm(panel.as_command().text)["changed"]


def test_an_uploaded_picture_is_a_placeholder(vlm, scene, chiasm, tmp_path):
    picture = scene.images[0].rotate(90).resize((90, 60))
    picture.save(tmp_path / "picture.png")
    prompt = 'what is "there" , \'here\' and in \\ the $HOME `x` ?\n"""); raise SystemExit'
    controls = Controls(TwoPrompts(*PROMPTS), 1, 1.0, "last_prompt")
    for one in (Controls(keep=0.5), controls):
        panel = Panel(one, prompt, None, device="cpu", tokens=TOKENS)
        space: dict = {}
        exec(panel.as_python().text, space)
        assert space["changed"] == answered(vlm, open_picture(tmp_path / "picture.png"), prompt, one)
        assert "picture.png" in panel.as_python().hint
    assert (
        panel.as_command().text == "" and "save" in panel.as_command().hint
    )  # the command line reads directions from files
    panel = Panel(Controls(keep=0.5), prompt, None, device="cpu", tokens=TOKENS)
    record = chiasm(panel.as_command().text)
    assert record["prompt"] == prompt and record["changed"] == answered(vlm, picture, prompt, Controls(keep=0.5))
    assert "picture.png" in panel.as_command().hint


def test_model_adapter_and_device_are_in_the_code():
    panel = Panel(Controls(), "x", 9, "some/model", "an adapter", "cuda:1", tokens=64)
    assert 'open_vlm("some/model", adapter="an adapter", device="cuda:1")' in panel.as_python().text
    assert panel.as_command().text.endswith("--model some/model --adapter 'an adapter' --device cuda:1")


def test_scenes_of_every_split_are_found_again(scene):
    for split in ("train", "val", "test"):
        (sample,) = open_data("scenes:caption", n=1, split=split, start=5)
        seed = scene_of(sample.images[0], sample)
        assert f"--read split={split} --read start=5 " in Panel(Controls(), "x", seed).as_command().text
    assert scene_of(scene.images[0].resize((32, 32)), scene) is None and scene_of(scene.images[0], None) is None


# -- saved directions


def test_only_directions_of_this_model_under_the_folder_are_listed(vlm, tmp_path):
    root, outside = tmp_path / "runs", tmp_path / "outside"
    mine = saved(vlm, root)
    assert mine.label == "mine (steering/20260101-000000-abcdef)" and mine.path.is_relative_to(root)
    arrays = mine.path.parent
    Direction(torch.ones(3), 0, {"model": {"weights": "of another"}}).save(arrays / "other")
    Direction(torch.ones(96), 0, mine.direction(vlm, 1, None).card).save(outside / "secret")
    for ending in (".json", ".safetensors"):
        (arrays / f"link{ending}").symlink_to(outside / f"secret{ending}")
    for name, text in {"damaged": "{", "list": "[]", "alone": json.dumps({"kind": "direction", "layer": 1})}.items():
        (arrays / f"{name}.json").write_text(text)
    found, others = saved_directions(root, vlm.fingerprint())
    assert found == [mine] and others == 1
    mine.direction(vlm, 1, None).save(root / "directions" / "own")
    labels = [one.label for one in saved_directions(root, vlm.fingerprint())[0]]
    assert labels == [mine.label, "own (saved)"]
    assert saved_directions(tmp_path / "nowhere", vlm.fingerprint()) == ([], 0)


def test_a_damaged_direction_is_one_line(vlm, tmp_path):
    source = saved(vlm, tmp_path)
    source.path.write_bytes(b"no")
    with pytest.raises(UserError, match="damaged"):
        source.direction(vlm, 1, None)
