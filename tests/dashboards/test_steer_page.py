"""The page Steer as a window draws it: what is chosen changes the answer, and what cannot be is one line."""

from __future__ import annotations

import shutil

import pytest
from chiasm.dashboards.changes import Controls, answering
from chiasm.dashboards.directions_at_hand import Ready
from chiasm.dashboards.pictures import scene_at
from chiasm.models import open_vlm


@pytest.fixture
def page(open_page):
    return open_page("steer")


def texts(page) -> tuple[str, str]:
    """What is written as (plain, changed), without marks."""
    found = [one.value if hasattr(one, "value") else one.proto.body for one in page.get("html")]
    said = [text for text in found if 'chiasm-text"' in text]
    return tuple(_bare(text) for text in said) if len(said) == 2 else (*map(_bare, said), "")


def _bare(html: str) -> str:
    import re

    return re.sub("<[^>]+>", "", html)


def captions(page) -> str:
    return " | ".join(one.value for one in page.caption)


def codes(page) -> list[str]:
    return [one.value for one in page.code]


def test_it_opens_with_a_change(page):
    assert not page.exception and not page.error
    plain, changed = texts(page)
    assert plain and changed and plain != changed
    assert "vcd: " in captions(page) and "words gone" in captions(page)
    python, command = codes(page)
    assert "ContrastDecoder(vlm, NoisedImage()" in python and "--decode=vcd" in command


def test_every_control_is_in_the_answer_and_in_the_code(page):
    page.button[0].click().run()
    assert "Nothing is changed yet" in captions(page) and texts(page)[1] == ""
    page.selectbox(key="steer_direction").select("place style").run()
    assert not page.exception and not page.error
    assert (page.select_slider(key="steer_layer").value, page.slider(key="steer_scale").value) == (1, 0.7)
    assert page.selectbox(key="steer_positions").value == "-1"
    page.slider(key="steer_scale").set_value(-0.5)
    page.select_slider(key="steer_layer").set_value(2)
    page.slider(key="steer_keep").set_value(0.55)
    page.select_slider(key="steer_exit").set_value(1)
    page.slider(key="steer_boost").set_value(0.3)
    page.number_input(key="steer_tokens").set_value(20)
    page.selectbox(key="steer_decode").select("damro").run()
    page.slider(key="steer_alpha").set_value(0.3)
    page.number_input(key="steer_k").set_value(3).run()
    assert not page.exception and not page.error
    sample = scene_at(0)[0]
    source = Ready("place-style")
    controls = Controls(source, 2, -0.5, "-1", "damro", 0.3, 0.1, 3, 0.55, (), 1, 0.3)
    vlm = open_vlm("organism", device="cpu")
    change = controls.change(vlm, source.direction(vlm, 2, sample.images[0]))
    assert texts(page)[1] == "".join(answering(vlm, sample.images[0], sample.prompt, change, 20)).strip()
    python, command = codes(page)
    assert command.split()[-10:] == [
        "--alpha=0.3", "--layer=2", "--scale=-0.5", "--positions=-1", "--prune=0.55", "--exit=1", "--boost=0.3",
        "--max-new-tokens", "20", "--device", "cpu",
    ][-10:]  # fmt: skip
    assert "OutlierTokens(k=3)" in python and "positions=-1" in python
    page.button[0].click().run()
    assert "Nothing is changed yet" in captions(page)


def test_what_cannot_be_is_one_line_and_the_rest_stays(page):
    page.selectbox(key="steer_decode").select("damro").run()
    page.number_input(key="steer_k").set_value(900).run()
    (error,) = page.error
    assert "k=900" in error.value and "64" in error.value and not page.exception
    assert texts(page)[0] and codes(page)
    page.number_input(key="steer_k").set_value(5).run()
    assert not page.error and texts(page)[1]


def test_a_direction_from_two_prompts(page):
    page.selectbox(key="steer_direction").select("from two prompts").run()
    page.text_input(key="steer_target").set_value('what "is" there ?').run()
    assert not page.exception and not page.error and "direction × 1" in captions(page)
    assert (
        len(codes(page)) == 1
        and 'direction_from_pairs(vlm, picture, [("write a short caption .", "what \\"is\\" there ?")]'
        in codes(page)[0]
    )
    assert "takes a direction from a file" in captions(page)


def test_answers_are_remembered(page):
    kept = page.session_state["steer_answers"]
    assert len(kept) == 2
    page.slider(key="steer_beta").set_value(0.3).run()
    assert len(page.session_state["steer_answers"]) == 3
    page.slider(key="steer_beta").set_value(0.1).run()
    assert len(page.session_state["steer_answers"]) == 3


def test_directions_that_were_saved_and_gone_again(open_page, told, runs_root, tmp_path):
    root = tmp_path / "runs"
    shutil.copytree(runs_root, root)
    vlm = open_vlm("organism", device="cpu")
    Ready("yes-to-no").direction(vlm, 2, None).save(root / "directions" / "mine")
    told(runs=str(root))
    page = open_page("steer")
    page.selectbox(key="steer_direction").select("mine (saved)").run()
    assert not page.exception and not page.error and "mine" in codes(page)[1]
    assert page.select_slider(key="steer_layer").value == 2
    shutil.rmtree(root / "directions")
    page.run()
    assert not page.exception and not page.error
    assert page.selectbox(key="steer_direction").value == "no direction"


def test_another_model_has_two_prompts_and_is_told_how_to_save(open_page, told, runs_root, tmp_path):
    folder = open_vlm("organism/aligned", device="cpu").save(tmp_path / "mine")
    Ready("yes-to-no").direction(open_vlm("organism", device="cpu"), 2, None).save(
        tmp_path / "runs" / "directions" / "of-another"
    )
    told(model=str(folder), runs=str(tmp_path / "runs"))
    page = open_page("steer")
    assert not page.exception and not page.error
    assert page.selectbox(key="steer_direction").options == ["no direction", "from two prompts"]
    assert "No direction of this model is saved yet" in captions(page) and "1 saved direction" in captions(page)
    page.selectbox(key="steer_direction").select("from two prompts").run()
    assert not page.exception and not page.error


def test_a_model_that_does_not_open_is_one_line(open_page, told, tmp_path):
    told(model=str(tmp_path / "nothing"))
    page = open_page("steer")
    assert len(page.error) == 1 and not page.exception
