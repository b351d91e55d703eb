"""The whole dashboard in a real browser, as a user has it: hands on the controls, eyes on what is drawn.

Pictures of what was seen are kept in the folder that CHIASM_SCREENSHOTS names.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import statistics
import time
from pathlib import Path

import numpy as np
import pytest
from chiasm.dashboards.frame import PAGES
from chiasm.experiments.run import Run
from chiasm.scenes.render import render
from chiasm.scenes.world import make_scene
from PIL import Image

from .browsing import MISSING, PHONE, WIDE, Window, browser, served
from .test_pairs_browser import made  # noqa: F401  the same small set of pairs
from .test_training import begun

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

FIRST_PAGE, PAGE_SWITCH, ANSWER_AGAIN = 3.0, 1.0, 1.0
"""Seconds, on a machine that does nothing else."""


def slack() -> float:
    """How much longer things may take: other work on the machine is none of the dashboard's, and said so."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load <= 1:
        return 1.5  # another machine, another day
    print(f"the load is {load:.1f} on {cores} cores: bars are stretched accordingly")
    return 3.0 * max(1.0, load / cores)


@pytest.fixture(scope="module")
def root(tmp_path_factory, runs_root, evaluations, made):  # noqa: F811
    """Measurements of two models, two evaluations, pairs, a training, a run that is not complete and one that is broken."""
    root = tmp_path_factory.mktemp("browsed") / "runs"
    shutil.copytree(runs_root, root)
    shutil.copytree(evaluations["chair-scenes"].parent, root / "evaluate")
    shutil.copytree(made, root / "pairs" / "scenes")
    begun(root, steps=8).finish()
    Run.create("measure", {"model": "organism", "data": "half"}, root)
    (root / "measure" / "20200101-000000-ffffff").mkdir()
    (root / "measure" / "20200101-000000-ffffff" / "manifest.json").write_text("{")
    return root


@pytest.fixture(scope="module")
def chromium():
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def server(root, tmp_path_factory, chromium):
    """(address, seconds from the start of the command until the first page was drawn)."""
    with served(root, tmp_path_factory.mktemp("log") / "server.log") as (address, start):
        window = Window(chromium, address)
        window.page.goto(address)
        window.page.get_by_role("button", name="Generate").wait_for()
        drawn = time.monotonic() - start
        window.close()
        yield address, drawn


@pytest.fixture
def opened(server, chromium, request, tmp_path):
    """opened(path, …): a window of its own, kept as a picture at the end; nothing in it may have complained."""
    windows = []

    def open_window(path: str = "", size=WIDE, dark: bool = False) -> Window:
        windows.append(Window(chromium, server[0], size, dark=dark))
        return windows[-1].open(path)

    yield open_window
    folder = Path(os.environ.get("CHIASM_SCREENSHOTS") or tmp_path)
    name = re.sub(r"\W+", "_", request.node.name.removeprefix("test_")).strip("_")
    for i, window in enumerate(windows):
        window.picture(folder / f"{name}{f'_{i}' if len(windows) > 1 else ''}.png")
        window.close()
    assert [window.complaints for window in windows] == [[] for _ in windows]


def photograph() -> bytes:
    """A JPEG as of a camera: a scene of the test split drawn large, off the square, with noise."""
    pixels = np.asarray(render(make_scene(9), 480).pil.resize((640, 480)), float)
    noisy = pixels + np.random.default_rng(0).normal(0, 6, pixels.shape)
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


# -- Look --------------------------------------------------------------------------------------------------------------


def test_a_photograph_is_uploaded_answered_and_each_word_shows_where_it_looked(opened):
    window = opened().choose("My picture")
    page = window.page
    page.locator("input[type=file]").set_input_files(
        {"name": "beach.jpg", "mimeType": "image/jpeg", "buffer": photograph()}
    )
    page.get_by_alt_text("The picture that is asked about").wait_for()
    window.settle().generate()
    words = window.words()
    assert words.count() > 8
    seen = []
    for at in (3, 6):
        words.nth(at).click()
        window.settle()
        assert words.nth(at).get_attribute("aria-checked") == "true"
        seen.append((window.overlay().get_attribute("alt"), window.overlay().screenshot()))
    assert seen[0][0] != seen[1][0] and seen[0][1] != seen[1][1]
    layer = page.get_by_role("slider", name="Layer")
    layer.press("Home")
    page.get_by_alt_text(re.compile("at layer 0$")).wait_for()
    assert window.settle().overlay().screenshot() != seen[1][1]
    for view, told in (("Encoder", "CLS token, encoder layer"), ("Patches as words", "stands for by the final norm")):
        window.choose(view)
        page.get_by_text(told).first.wait_for()
    assert not window.settle().told_errors()


def test_what_is_no_picture_is_refused_in_a_line_and_the_page_goes_on(opened):
    window = opened().choose("My picture")
    window.page.locator("input[type=file]").set_input_files(
        {"name": "cat.png", "mimeType": "image/png", "buffer": b"\x89PNG no picture"}
    )
    window.page.get_by_text("'cat.png' is not a picture that can be read").wait_for()
    assert len(window.settle().told_errors()) == 1
    assert window.choose("A scene").generate().words().count() > 8 and not window.told_errors()


def test_two_windows_at_once_each_give_what_they_give_alone(opened):
    windows = [opened(), opened()]
    for window, scene in zip(windows, ("3", "11"), strict=True):
        box = window.page.get_by_role("spinbutton", name="Scene")
        box.fill(scene)
        box.press("Enter")
        window.settle()

    def read(window: Window) -> tuple[list[str], str, str]:
        window.page.get_by_text(re.compile(r"\d+ tokens in")).wait_for()
        overlay = window.settle().overlay()
        return window.words().all_inner_texts(), overlay.get_attribute("alt"), overlay.get_attribute("src")

    for window in windows:
        window.press("Generate")
    together = [read(window) for window in windows]
    assert together[0] != together[1]
    for window, before in zip(windows, together, strict=True):
        window.press("Generate")
        window.page.wait_for_timeout(200)  # the answer before is taken away
        assert read(window) == before


def test_the_address_of_the_first_page_by_its_name_opens_it_too(opened):
    window = opened("look")
    window.page.get_by_role("button", name="Generate").wait_for()
    assert not window.settle().told_errors() and window.page.locator("h1").inner_text() == "Look"


# -- Steer -------------------------------------------------------------------------------------------------------------


def test_a_slider_that_is_moved_gives_another_answer_within_a_second(opened):
    window = opened("steer")
    page = window.page
    note = page.get_by_text(re.compile(r"(\d+ new|the answer is the same) · "))
    note.wait_for()
    answers, seconds = [page.locator(".chiasm-text").nth(1).inner_text()], []
    slider = page.get_by_role("slider", name="Strength α")
    for key, value in (("End", "3.0"), ("Home", "0.0")):
        code = page.get_by_test_id("stCode").first.inner_text()
        start = time.monotonic()
        slider.press(key)  # the code stands below the answers, so it is drawn after them
        page.wait_for_function("code => document.querySelector('[data-testid=stCode]').innerText !== code", arg=code)
        seconds.append(time.monotonic() - start)
        note.wait_for()
        assert f"alpha={value}" in window.settle().page.get_by_test_id("stCode").first.inner_text()
        answers.append(page.locator(".chiasm-text").nth(1).inner_text())
    assert len(set(answers)) > 1
    print(f"changed answers were there {', '.join(f'{one:.2f}' for one in seconds)} s after the slider was let go")
    assert min(seconds) < ANSWER_AGAIN * slack()
    page.get_by_role("tab", name="Copy as command").click()
    page.get_by_text("chiasm generate").first.wait_for()
    window.press("Change nothing")
    page.get_by_text("Nothing is changed yet").wait_for()
    assert not window.settle().told_errors()


# -- results -----------------------------------------------------------------------------------------------------------


def test_two_runs_are_compared_by_curves_in_one_drawing_or_beside_each_other(opened):
    window = opened("lenses")
    page = window.page
    chosen = page.get_by_test_id("stMultiSelect").first.inner_text()
    assert "aligned · measure" in chosen and "tuned · measure" in chosen
    drawings = page.locator(".js-plotly-plot")
    drawings.first.wait_for()
    assert {"tuned", "aligned"} <= set(" ".join(page.locator("main").all_inner_texts()).split())
    window.choose("Side by side")
    page.get_by_text("How to read this").first.wait_for()
    drawings.first.wait_for()
    assert not window.settle().told_errors()
    window.choose("Attention shift")
    drawings.first.wait_for()
    assert not window.settle().told_errors()


def test_a_failed_sample_is_opened_in_look(opened):
    window = opened("hallucination").choose("Answers")
    page = window.page
    item = page.locator("[class*=st-key-hallucination_item_]").first
    item.wait_for()
    assert item.locator("mark.bad").count() or "✗" in item.inner_text()
    named = re.search(r"· (\S+)$", item.get_by_test_id("stCaptionContainer").first.inner_text())[1]
    item.get_by_role("button", name="Open in Look").click()
    page.locator("h1", has_text="Look").wait_for()
    page.get_by_text(f"Sample {named}").wait_for()
    page.get_by_text(re.compile(r"\d+ tokens in")).wait_for()
    assert window.settle().overlay().count() == 1 and not window.told_errors()


def test_a_training_is_drawn_and_a_pair_is_browsed_with_what_differs(opened):
    window = opened("tuning")
    page = window.page
    page.locator(".js-plotly-plot").first.wait_for()
    window.choose("Pairs")
    pair = page.locator("[class*=st-key-tuning_pair_]").first
    pair.wait_for()
    assert pair.locator("mark.good").count() and pair.locator("mark.bad").count() and pair.get_by_role("img").count()
    pair.get_by_text("Everything that was checked").click()
    pair.get_by_test_id("stDataFrame").wait_for()
    assert not window.settle().told_errors()


def test_a_run_is_deleted_when_that_is_confirmed_and_not_before(opened, root):
    doomed = Run.create("measure", {"model": "organism", "data": "tobedeleted"}, root)
    doomed.finish()
    assert doomed.path.is_dir()
    window = opened("runs")
    page = window.page
    assert all(state in page.locator("main").inner_text() for state in ("incomplete (1)", "broken (1)"))
    search = page.get_by_role("textbox", name="Search")
    search.fill("tobedeleted")
    search.press("Enter")
    page.get_by_text(re.compile("^1 of ")).wait_for()
    window.settle().press("Delete …").settle()
    page.get_by_role("button", name="Keep it").click()
    page.get_by_role("button", name="Delete it").wait_for(state="detached")
    assert doomed.path.is_dir()
    window.settle().press("Delete …").settle()
    page.get_by_role("button", name="Delete it").click()
    page.get_by_text("No run has all of that").wait_for()
    assert not doomed.path.exists() and not window.settle().told_errors()
    search.fill("")
    search.press("Enter")
    page.get_by_role("combobox", name="Run").wait_for()
    window.settle().choose(page.get_by_test_id("stButtonGroup").get_by_text("broken (1)").inner_text())
    page.get_by_text("Its manifest cannot be read").wait_for()


# -- every page --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_a_phone_shows_every_page_without_scrolling_sideways(opened, name):
    window = opened("" if name == "look" else name, PHONE)
    if name == "look":
        window.generate()
    assert not window.scrolls_sideways() and not window.told_errors()
    for group in window.page.get_by_test_id("stButtonGroup").all():  # choices are told apart by their labels alone
        labels = group.get_by_role("radio").or_(group.get_by_role("button")).all_text_contents()
        assert len(labels) == len(set(labels)), labels


def test_the_keyboard_reaches_every_main_control_and_works_it(opened):
    window = opened()
    page, reached = window.page, []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("() => { const it = document.activeElement; return it.tagName === 'MAIN' ? '' : it.ariaLabel || it.innerText }")
        )  # fmt: skip
        if reached[-1].endswith("Generate"):
            break
    said = "\n".join(reached)
    for control in (*(title for title, _ in PAGES.values()), "A scene", "Scene", "Prompt", "Longest answer, in tokens", "Generate"):  # fmt: skip
        assert control in said, reached
    page.keyboard.press("Enter")
    page.get_by_text(re.compile(r"\d+ tokens in")).wait_for()
    window.settle()
    chosen = window.words().and_(page.locator("[aria-checked=true]"))
    before = window.overlay().get_attribute("src")
    chosen.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    page.wait_for_function("src => document.querySelector('img[alt^=\"Where the word\"]')?.src !== src", arg=before)


@pytest.mark.parametrize("name", PAGES)
def test_the_dark_window_is_dark_and_its_words_are_light(opened, name):
    window = opened("" if name == "look" else name, dark=True)
    if name == "look":
        window.generate()
    style = "element => [getComputedStyle(element).backgroundColor, getComputedStyle(element).color]"
    ground, ink = (
        np.mean([int(part) for part in re.findall(r"\d+", one)[:3]])
        for one in window.page.get_by_test_id("stApp").evaluate(style)
    )
    assert ground < 40 and ink > 200 and not window.told_errors()


# -- time --------------------------------------------------------------------------------------------------------------


def test_the_first_page_is_there_in_three_seconds_and_others_in_one(server, opened):
    print(f"the first page was drawn {server[1]:.2f} s after the start of the command")
    assert server[1] < FIRST_PAGE * slack()
    window, seconds = opened(), []
    for name in [*PAGES, *PAGES]:
        start = time.monotonic()
        window.page.get_by_test_id("stTopNavLink").filter(has_text=PAGES[name][0]).click()
        window.page.locator("h1", has_text=PAGES[name][0]).wait_for()
        seconds.append(time.monotonic() - start)
        window.settle()
    print("switches of the page: " + ", ".join(f"{one:.2f}" for one in seconds) + " s")
    assert statistics.median(seconds) < PAGE_SWITCH * slack()
