"""The page Runs: what it lists, what it tells of a run, and that it deletes one only when told twice."""

import json
import shutil

import pytest
from chiasm.dashboards import run_facts
from chiasm.dashboards.store import Store, run_name
from chiasm.scenes.errors import UserError
from PIL import Image


@pytest.fixture
def own_runs(tmp_path, told, runs_root):
    """A copy of the small store, with a run of each other state."""
    root = tmp_path / "runs"
    shutil.copytree(runs_root, root)
    whole = next(iter((root / "measure").iterdir()))
    for name, text in (
        (
            "20200101-000000-000001.partial",
            whole.joinpath("manifest.json").read_text().replace('"complete"', '"incomplete"'),
        ),
        ("20200101-000000-000002", "{"),
        ("20200101-000000-000003", '{"format": 99}'),
    ):
        (root / "measure" / name).mkdir()
        (root / "measure" / name / "manifest.json").write_text(text)
    told(runs=str(root))
    return root


def texts(page):
    kinds = (page.markdown, page.caption, page.info, page.warning, page.error, page.subheader)
    return "\n".join(one.value for kind in kinds for one in kind)


def test_the_page_lists_every_run_and_tells_where_one_is_from(open_page, own_runs):
    page = open_page("runs")
    assert not page.error and not page.exception
    listed = page.dataframe[0].value
    assert len(listed) == 5 and set(listed[""]) == {"✓", "… incomplete", "✕ broken", "≠ other version"}
    assert "5 of 5 runs" in texts(page)
    facts = page.table[0].value.iloc[:, 0]
    assert (
        facts["Model"].startswith("organism/") and facts["Samples"] == "8 measured, 0 skipped" and facts["Seed"] == "0"
    )
    assert "2020" not in facts["Started"] and len(facts["Weights"]) >= 8 and "torch" in facts["Versions"]


def test_search_and_states_narrow_the_list(open_page, own_runs):
    page = open_page("runs")
    page.text_input(key="runs_search").set_value("organism/aligned").run()
    assert len(page.dataframe[0].value) in (1, 2) and page.selectbox(key="runs_open").value.startswith("measure/2")
    page.text_input(key="runs_search").set_value("no such thing").run()
    assert "No run has all of that" in texts(page) and not page.error
    page.text_input(key="runs_search").set_value("").run()
    page.button_group(key="runs_states").set_value(["broken"]).run()
    assert list(page.dataframe[0].value[""]) == ["✕ broken"]
    assert "is damaged" in texts(page) and "manifest cannot be read" in texts(page) and not page.error


@pytest.mark.parametrize(("number", "said"), [("1", "running, or was killed"), ("3", "a newer version of chiasm")])
def test_a_run_that_is_not_complete_says_why(open_page, own_runs, number, said):
    page = open_page("runs")
    page.selectbox(key="runs_open").set_value(f"measure/20200101-000000-00000{number}").run()
    assert said in page.warning[0].value and not page.error and not page.exception


def test_tables_figures_and_log_of_a_run(open_page, own_runs):
    page = open_page("runs")
    run = own_runs / page.selectbox(key="runs_open").value
    (run / "figures").mkdir(exist_ok=True)
    Image.new("RGB", (20, 10)).save(run / "figures/good.png")
    (run / "figures/bad.png").write_bytes(b"no picture")
    (run / "log.txt").write_text("it went well\n")
    page.button_group(key="runs_view").set_value("Tables").run()
    assert page.dataframe[1].value is not None and "rows" in texts(page) and not page.error
    page.button_group(key="runs_view").set_value("Figures").run()
    assert [error.value for error in page.error] == [error.value for error in page.error if "bad" in error.value]
    assert len(page.error) == 1 and "measure again" in page.error[0].value
    page.button_group(key="runs_view").set_value("Log").run()
    assert page.code[0].value.strip() == "it went well" and not page.error


def test_a_damaged_table_is_told_and_the_rest_goes_on(open_page, own_runs):
    page = open_page("runs")
    run = own_runs / page.selectbox(key="runs_open").value
    for path in (run / "tables").iterdir():
        path.write_bytes(b"PAR1 not really")
    page.button_group(key="runs_view").set_value("Tables").run()
    assert "cannot be read" in page.error[0].value and len(page.dataframe[0].value) == 5 and not page.exception


def test_a_run_is_deleted_when_that_is_confirmed(open_page, own_runs):
    page = open_page("runs")
    name = page.selectbox(key="runs_open").value
    page.button(key="runs_delete").click().run()
    assert name.split("/")[1] in texts(page) and "cannot be undone" in texts(page) and (own_runs / name).is_dir()
    page.button(key="runs_keep").click().run()
    assert (own_runs / name).is_dir() and "cannot be undone" not in texts(page)
    page.button(key="runs_delete").click().run()
    page.selectbox(key="runs_open").set_value("measure/20200101-000000-000002").run()  # another run is not asked about
    assert "cannot be undone" not in texts(page)
    page.selectbox(key="runs_open").set_value(name).run()
    page.button(key="runs_confirm").click().run()
    assert not (own_runs / name).exists() and len(list((own_runs / "measure").iterdir())) == 4
    assert name not in page.selectbox(key="runs_open").options and not page.error


def test_an_empty_folder_is_told(open_page, told, tmp_path):
    told(runs=str(tmp_path / "nowhere"))
    page = open_page("runs")
    assert "No runs" in page.info[0].value and not page.error


def test_odd_manifests_leave_cells_empty(tmp_path):
    for i, more in enumerate(
        (
            dict(model=3, data=["x"], n="many", wall_seconds="long", peak_memory_mb={"cuda": "?"}),
            {},
            dict(versions=1, started="soon"),
        )
    ):
        path = tmp_path / f"odd/2026110{i}-000000-aaaaaa"
        path.mkdir(parents=True)
        (path / "manifest.json").write_text(json.dumps({"format": 1, "state": "complete"} | more))
    runs = Store(tmp_path).runs()
    table = run_facts.overview(runs)
    assert len(table) == 3 and table["n"].isna().all() and list(table["name"]) == [run_name(run) for run in runs]
    for run in runs:
        facts = run_facts.provenance(run)
        assert facts["State"] == "complete" and all(isinstance(value, str) and value for value in facts.values())


def test_weight_log_and_pictures(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/one").write_bytes(b"12345")
    (tmp_path / "log.txt").write_bytes(b"\xff" + b"x" * 30_000)
    assert run_facts.weight(tmp_path) == (2, 30_006)
    assert run_facts.log_tail(tmp_path / "log.txt") == "x" * run_facts.LOG_BYTES
    with pytest.raises(UserError, match="cannot be read"):
        run_facts.checked_picture(tmp_path / "log.txt")
