"""What windows share, how errors are shown, and the frame around the pages."""

import threading

from chiasm.dashboards import frame
from chiasm.dashboards.session import open_model_here, warming
from streamlit.testing.v1 import AppTest


def failing():
    import streamlit as st
    import torch
    from chiasm.dashboards.session import shown_error
    from chiasm.scenes.errors import UserError

    for error in (
        UserError("value *x* of $a$ must be b"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("what\nnobody <b>expected</b>"),
    ):
        with shown_error():
            raise error
    st.write("and the rest goes on")


def test_every_error_is_one_readable_line_and_the_rest_goes_on():
    page = AppTest.from_function(failing).run()
    told = [error.value for error in page.error]
    assert told[0] == "value \\*x\\* of \\$a\\$ must be b"
    assert "No memory left" in told[1] and "device has no memory left" in told[2]
    assert "RuntimeError: what nobody \\<b\\>expected\\</b\\>" in told[3]
    assert page.markdown[-1].value == "and the rest goes on" and not page.exception


def test_a_model_that_fails_to_open_is_one_line_each_time(told):
    told(model="nowhere/at-all")

    def opening():
        from chiasm.dashboards.session import open_model_here, shown_error

        with shown_error():
            open_model_here()

    page = AppTest.from_function(opening, default_timeout=60).run().run()
    assert len(page.error) == 1 and "nowhere/at-all" in page.error[0].value and not page.exception


def test_all_windows_share_one_model(told):
    opened = []
    threads = [threading.Thread(target=lambda: opened.append(open_model_here())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(vlm) for vlm in opened}) == 1 and len(opened) == 3
    assert open_model_here("organism/aligned") is not opened[0]


def test_what_is_heavy_is_imported_once_in_the_background():
    assert warming() is warming() and warming().daemon
    warming().join(60)
    assert not warming().is_alive()


def test_the_frame_has_every_page_and_opens_the_first(told, monkeypatch):
    asked = []
    monkeypatch.setattr(frame.st, "set_page_config", lambda **settings: asked.append(settings))
    page = AppTest.from_string("from chiasm.dashboards.frame import draw\ndraw()", default_timeout=60).run()
    assert not page.exception and not page.error and page.title[0].value == "Look"
    assert asked[0]["layout"] == "wide" and asked[0]["page_icon"].size == (64, 64)
    assert list(frame.PAGES) == ["look", "steer", "lenses", "hallucination", "tuning", "runs"]


def test_a_page_that_cannot_be_imported_is_told(monkeypatch, told):
    monkeypatch.setitem(frame.PAGES, "missing", ("Missing", ":material/error:"))
    page = AppTest.from_string("from chiasm.dashboards.frame import page_alone\npage_alone('missing')").run()
    assert "ModuleNotFoundError" in page.error[0].value and not page.exception
