"""The organism's directions by name: the same each time, they do what they are called, and others are refused in one line."""

from __future__ import annotations

import pytest
import torch
from chiasm.experiments.changing import change_of
from chiasm.experiments.ready_directions import READY, SCALE, ready_directions, ready_or_file
from chiasm.models import open_vlm
from chiasm.scenes.benchmarks import skill_set
from chiasm.scenes.errors import UserError
from chiasm.steering import AddDirection, Direction, SkipFFN, steer


@pytest.fixture(scope="module")
def vlm():
    return open_vlm("organism", device="cpu")


def test_yes_becomes_no_and_the_numbers_are_the_same_each_time(vlm):
    made = ready_directions(vlm, "yes-to-no")
    assert [one.layer for one in made] == [0, 1, 2, 3] and made[2].card["name"] == "yes-to-no"
    again = ready_or_file(vlm, "yes-to-no")
    assert again.layer == READY["yes-to-no"].layer == 2 and torch.equal(again.vector, made[2].vector)
    assert ready_or_file(vlm, "yes-to-no", 1).layer == 1
    asked = [one for one in skill_set("existence", 24, "test", 0) if one.answer == "yes"]
    inputs = vlm.prepare([one.images for one in asked], [one.prompt for one in asked])
    plain = vlm.generate(inputs, max_new_tokens=2)
    with steer(vlm, AddDirection(again, scale=SCALE, units="norm", positions="last_prompt")):
        turned = vlm.generate(inputs, max_new_tokens=2)
    assert plain.count("yes") > 0.7 * len(asked) and turned.count("no") > 0.7 * len(asked)


def test_what_is_not_a_name_is_a_file(vlm, tmp_path, monkeypatch):
    assert ready_or_file(vlm, "mine.safetensors") == "mine.safetensors"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "yes-to-no").write_bytes(b"")
    assert ready_or_file(vlm, "yes-to-no") == "yes-to-no"


def test_what_cannot_be_is_one_line(vlm):
    with pytest.raises(UserError, match="yes-to-no, white-to-black, colour-style, place-style"):
        ready_directions(vlm, "up-to-down")
    with pytest.raises(UserError, match="layer 9 is outside"):
        ready_or_file(vlm, "yes-to-no", 9)
    with pytest.raises(UserError, match="never says"):
        ready_directions(open_vlm("organism/aligned", device="cpu"), "yes-to-no")
    vlm.name, name = "other", vlm.name
    try:
        with pytest.raises(UserError, match="bundled organism, this is other"):
            ready_directions(vlm, "yes-to-no")
    finally:
        vlm.name = name


def test_layer_and_skip_are_part_of_a_change(vlm):
    direction = Direction(torch.ones(vlm.anatomy.hidden_size), 1, {"state_norm": 2.0, "name": "up"})
    change = change_of(steer=[direction, direction], layer=3, scale=0.5, skip=(0, 2))
    added, again, skipped = change.interventions
    assert isinstance(added, AddDirection) and added.layer == again.layer == 3 and added.units == "norm"
    assert isinstance(skipped, SkipFFN) and skipped.layers == [0, 2] and skipped.positions == "image"
    assert change.name == "up × 0.5, up × 0.5, visual tokens pass by the feed-forward layer of blocks 0, 2"
    with pytest.raises(UserError, match="--layer"):
        change_of(layer=1)
    with pytest.raises(UserError, match="layer 7"):
        change_of(skip=(7,)).check(vlm)


def test_a_contrast_goes_with_pruning_and_exit_in_two_calls(vlm):
    """On one cache for both branches it would be refused, as one of them has lost positions."""
    for options in ({"prune": 0.5}, {"exit_after": 1}):
        assert change_of(decode="damro", **options).contrast.decoder(vlm).engine == "two_calls"
    assert change_of(decode="damro", skip=(1,)).contrast.decoder(vlm).engine == "two_rows"
