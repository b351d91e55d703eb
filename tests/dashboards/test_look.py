"""The page Look: what a user does on it, with the organism."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import streamlit as st
from chiasm.dashboards import look_view, pictures
from chiasm.dashboards.live import Watch
from chiasm.dashboards.looked import labels
from chiasm.dashboards.overlays import percent
from chiasm.dashboards.pages import look
from chiasm.dashboards.pictures import scene_at
from chiasm.dashboards.store import run_name
from chiasm.experiments.run import Run
from chiasm.models import open_vlm
from PIL import Image

from .test_live import tiny


def _generated(open_page, most: int = 24):
    page = open_page("look")
    page.slider(key="look_most").set_value(most)
    _button(page, "Generate").click().run()
    assert not page.exception and not page.error
    return page


def _button(page, label: str):
    return next(button for button in page.button if button.label == label)


def _pills(page):
    return next(group for group in page.button_group if "choose a word" in group.label)


def _types(monkeypatch, text: str) -> None:
    """The prompt that is typed: AppTest knows no choice that takes new options."""
    choose = st.selectbox
    monkeypatch.setattr(
        "streamlit.selectbox", lambda label, *a, **k: text if label == "Prompt" else choose(label, *a, **k)
    )


def _facts(page) -> str:
    return next(caption.value for caption in page.caption if " tokens in " in caption.value)


def _said(page) -> str:
    return next(caption.value for caption in page.caption if "of its attention" in caption.value).replace("\\", "")


def test_the_page_opens_without_a_model(open_page, monkeypatch):
    monkeypatch.setattr(look, "open_model_here", lambda: pytest.fail("a model was opened"))
    page = open_page("look")
    assert not page.exception and not page.error
    assert page.selectbox(key="look_prompt").value == "describe the image in detail ."
    assert any("press **Generate**" in info.value for info in page.info)
    assert not _button(page, "Generate").disabled


def test_the_page_is_drawn_without_what_takes_seconds_to_import():
    script = "import sys, chiasm.dashboards.pages.look; print([m for m in ('torch', 'transformers', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_an_answer_is_read_word_by_word(open_page, monkeypatch):
    page = _generated(open_page)
    seen = page.session_state["look_looked"].seen
    assert len(seen.words) == 24 and seen.answer.startswith("this is a picture of a")
    names = labels(seen.words)
    assert len(_pills(page).options) == 24
    monkeypatch.setattr(Watch, "stream", lambda self: pytest.fail("it was generated again"))
    twice = next(i for i, name in enumerate(names) if name.endswith("\u200b"))  # a word that comes again
    page.button_group(key=_pills(page).key).set_value(twice).run()
    values = seen.map(twice)[seen.layers.index(page.select_slider(key="look_layer").value)]
    assert f"“{names[twice].rstrip(chr(0x200B))}”" in _said(page)
    assert f"{percent(values.sum())} of its attention is on the picture" in _said(page)
    page.select_slider(key="look_layer").set_value(1)
    page.selectbox(key="look_head").set_value(2).run()
    assert f"layer 1, head 2: {percent(seen.attention[twice, 1, 2].sum())} of its attention" in _said(page)
    assert not page.exception and not page.error


def test_every_view_is_drawn(open_page):
    page = _generated(open_page, 12)
    for view, told in (
        ("Encoder", "CLS token, encoder layer 4"),
        ("Patches as words", "logit lens"),
        ("All layers", ""),
    ):
        page.segmented_control(key="look_view").set_value(view).run()
        assert not page.exception and not page.error
        shown = [element.value for element in page.markdown] + [slider.label for slider in page.select_slider]
        assert any(told in text for text in shown)
    assert page.session_state["look_looked"].lens is not None
    page.toggle(key="look_common").set_value(True).run()
    assert any("can be compared" in caption.value for caption in page.caption)
    page.toggle(key="look_outliers").set_value(False).run()
    assert not page.exception and not page.error


def test_a_picture_of_the_users_own(open_page, monkeypatch):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 120, 3), np.uint8))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    uploads = [SimpleNamespace(name="mine.png", getvalue=stream.getvalue)]
    monkeypatch.setattr("streamlit.file_uploader", lambda *_, **__: uploads[0])
    page = open_page("look")
    page.segmented_control(key="look_source").set_value(pictures.OWN).run()
    _types(monkeypatch, "what do you see ?")
    page.slider(key="look_most").set_value(8)
    _button(page, "Generate").click().run()
    assert not page.exception and not page.error
    looked = page.session_state["look_looked"]
    assert looked.chosen.image.size == (120, 80) and looked.chosen.prompt == "what do you see ?"
    assert np.nanmax(looked.seen.boxes[:, 2]) <= 120 and np.nanmax(looked.seen.boxes[:, 3]) <= 80
    page.session_state["look_own"] = None
    del page.session_state["look_own"]
    uploads[0] = SimpleNamespace(name="broken.png", getvalue=lambda: b"some text")
    page.run()
    assert len(page.error) == 1 and "is not a picture" in page.error[0].value and not page.exception
    assert "look_looked" in page.session_state  # the rest goes on


def test_what_the_model_does_not_take_is_told(open_page, monkeypatch):
    page = open_page("look")
    _types(monkeypatch, "<image> and <image> ?")
    _button(page, "Generate").click().run()
    assert len(page.error) == 1 and "give as many of each" in page.error[0].value and not page.exception
    _types(monkeypatch, "what do you see ?")
    page.slider(key="look_most").set_value(8)
    _button(page, "Generate").click().run()
    assert not page.error and len(page.session_state["look_looked"].seen.words) == 8


def test_a_model_that_cannot_be_opened_is_told(open_page, told):
    told(model="no/such/model")
    page = open_page("look")
    assert not page.error
    _button(page, "Generate").click().run()
    assert len(page.error) == 1 and "no/such/model" in page.error[0].value and not page.exception


def test_a_stopped_answer_is_kept(open_page, monkeypatch):
    whole = Watch.stream

    def stopped(self):
        for i, piece in enumerate(whole(self)):
            if i == 5:
                st.stop()  # what happens to the script when a button is pressed while it runs
            yield piece

    page = open_page("look")
    threads = threading.active_count()
    monkeypatch.setattr(Watch, "stream", stopped)
    _button(page, "Generate").click().run()
    seen = page.session_state["look_looked"].seen
    assert threading.active_count() == threads and seen.ending == "stopped" and 5 <= len(seen.words) < 60
    _button(page, "Generate").set_value(False).run()
    assert not page.exception and not page.error and _facts(page).endswith("stopped.")


def test_a_sample_of_a_run_is_looked_at(open_page, told, tmp_path):
    with Run.create("hallucination", {"model": "organism", "limit": 4, "seed": 0}, tmp_path) as run:
        pass
    told(runs=str(tmp_path))
    page = open_page("look")
    sample = scene_at(3)[2]
    page.slider(key="look_most").set_value(4)
    from chiasm.dashboards.store import Store

    name = run_name(Store(tmp_path).runs()[0])
    page.session_state["look_request"] = {"run": name, "id": sample.id}
    page.run()
    assert not page.exception and not page.error and run.finished
    looked = page.session_state["look_looked"]
    assert looked.chosen.sample.id == sample.id and looked.chosen.image.tobytes() == sample.images[0].tobytes()
    assert page.segmented_control(key="look_source").value == pictures.FOUND
    assert page.selectbox(key="look_prompt").value == pictures.plain_prompt(sample.prompt)
    page.session_state["look_request"] = {"run": "../../etc", "id": "passwd"}
    page.run()
    assert "there is no run" in page.error[0].value


@pytest.mark.parametrize(
    ("family", "kind"),
    [("qwen2_5_vl", "a patch receives"), ("llava_next", "CLS token"), ("gemma3", "a patch receives"), ("blip2", "CLS token"), ("mllama", "CLS token")],
)  # fmt: skip
def test_families_say_what_they_do_not_have(open_page, monkeypatch, family, kind):
    vlm = tiny(family)
    for module in (look, look_view):
        monkeypatch.setattr(module, "open_model_here", lambda: vlm)
    page = _generated(open_page, 4)
    assert len(page.session_state["look_looked"].seen.words) == 4
    page.segmented_control(key="look_view").set_value("Encoder").run()
    assert not page.exception and not page.error
    assert any(kind in element.value for element in page.markdown)
    assert any("no CLS token" in info.value for info in page.info) == (kind != "CLS token")
    page.segmented_control(key="look_view").set_value("Patches as words").run()
    assert not page.exception
    assert [("no visual tokens" in error.value) for error in page.error] == [True] * (family == "mllama")
    assert any("have no place on the picture" in one.value for one in page.info) == (family == "blip2")


def test_two_windows_do_not_disturb_each_other(open_page, told):
    vlm = open_vlm("organism", device="cpu")
    pages: dict[int, object] = {}

    def window(number: int) -> None:
        page = open_page("look")
        page.number_input(key="look_scene").set_value(number)
        page.slider(key="look_most").set_value(16)
        _button(page, "Generate").click().run()
        pages[number] = page

    threads = [threading.Thread(target=window, args=(number,)) for number in (0, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, page in pages.items():
        sample = scene_at(number)[0]
        watch = Watch(vlm, sample.images[0], sample.prompt, max_new_tokens=16)
        list(watch.stream())
        alone, seen = watch.seen(), page.session_state["look_looked"].seen
        assert not page.exception and not page.error and seen.words == alone.words
        np.testing.assert_allclose(seen.attention, alone.attention, atol=1e-6)
