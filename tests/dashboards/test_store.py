"""The store of the pages: what it lists, when it looks again, and that no name leads out of it."""

import json
import os
import shutil

import pandas as pd
import pytest
from chiasm.dashboards.store import Store, model_name, run_name, search
from chiasm.scenes.errors import UserError


@pytest.fixture
def root(tmp_path):
    """Runs that are complete, incomplete, broken and of another version, and things that are no runs."""
    root = tmp_path / "runs"
    made(root, "measure/20261101-000000-aaaaaa", model={"name": "organism/tuned"}, n=8)
    made(root, "measure/20261102-000000-bbbbbb.partial", state="incomplete", model={"name": "other"})
    made(root, "report/20261103-000000-cccccc", format=0)
    made(root, "report/20261104-000000-dddddd")
    (root / "report/20261104-000000-dddddd/manifest.json").write_text("{")
    (root / "report/notes").mkdir()
    (root / "readme.txt").write_text("mine")
    return root


def made(root, name, **facts):
    path = root / name
    (path / "tables").mkdir(parents=True)
    manifest = {"format": 1, "state": "complete", "experiment": path.parent.name, "config": {}} | facts
    (path / "manifest.json").write_text(json.dumps(manifest))
    pd.DataFrame({"x": [1, 2]}).to_parquet(path / "tables/implicit_alignment.parquet")
    pd.DataFrame({"x": [3]}).to_parquet(path / "tables/aligned.implicit_alignment.parquet")
    return path


def names(store):
    return [run_name(run) for run in store.runs()]


def test_every_run_is_listed_newest_first_with_its_state(root):
    assert [(run_name(run), run.state) for run in Store(root).runs()] == [
        ("report/20261104-000000-dddddd", "broken"),
        ("report/20261103-000000-cccccc", "other version"),
        ("measure/20261102-000000-bbbbbb", "incomplete"),
        ("measure/20261101-000000-aaaaaa", "complete"),
    ]
    assert Store(root / "nowhere").runs() == []


def test_the_list_is_made_again_only_when_something_changed(root):
    store = Store(root)
    before = store.runs()
    assert store.runs() is before
    partial = root / "measure/20261102-000000-bbbbbb.partial"
    partial.rename(partial.with_suffix(""))
    assert store.runs() is not before and names(store)[2] == "measure/20261102-000000-bbbbbb"  # the name it had
    made(root, "new/20261105-000000-eeeeee")
    assert names(store)[0] == "new/20261105-000000-eeeeee"
    manifest = root / "new/20261105-000000-eeeeee/manifest.json"
    manifest.write_text(manifest.read_text().replace("complete", "incomplete"))
    os.utime(manifest, ns=(1, 1))
    assert store.runs()[0].state == "incomplete"
    shutil.rmtree(root / "new")
    assert len(store.runs()) == 4


def test_tables_are_read_once_until_they_change(root):
    store, name = Store(root), "measure/20261101-000000-aaaaaa"
    table = store.table(name, "implicit_alignment")
    assert table["x"].tolist() == [1, 2] and store.table(name, "implicit_alignment") is table
    pd.DataFrame({"x": [9, 9, 9]}).to_parquet(root / name / "tables/implicit_alignment.parquet")
    assert store.table(name, "implicit_alignment")["x"].tolist() == [9, 9, 9]


def test_a_damaged_or_missing_table_is_one_line(root):
    store, name = Store(root), "measure/20261101-000000-aaaaaa"
    (root / name / "tables/implicit_alignment.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match="cannot be read"):
        store.table(name, "implicit_alignment")
    with pytest.raises(UserError, match="has no file 'tables/unknown"):
        store.table(name, "unknown")


def test_sources_are_tables_of_a_kind_in_runs_that_can_be_read(root):
    found = Store(root).sources("implicit_alignment")
    assert [(source.run_name[-6:], source.table.count("."), source.who) for source in found] == [
        ("bbbbbb", 1, "aligned"),
        ("bbbbbb", 0, "other"),
        ("aaaaaa", 1, "aligned"),
        ("aaaaaa", 0, "tuned"),
    ]
    assert len({source.key for source in found}) == 4 and Store(root).sources("nothing") == []


@pytest.mark.parametrize(
    "name", ["../elsewhere/secret", "/etc", "measure/../../elsewhere/secret", "report/notes", "", "."]
)
def test_no_name_leads_out_of_the_folder(root, name):
    outside = made(root.parent, "elsewhere/secret")
    store = Store(root)
    for use in (
        store.run,
        store.tables,
        store.figures,
        store.delete,
        lambda name: store.table(name, "implicit_alignment"),
    ):
        with pytest.raises(UserError, match="there is no run"):
            use(name)
    assert outside.is_dir()


def test_no_file_of_a_run_leads_out_of_it(root):
    store, name = Store(root), "measure/20261101-000000-aaaaaa"
    (root / name / "log.txt").symlink_to("/etc/passwd")
    for parts in (
        ("log.txt",),
        ("..", "..", "..", "readme.txt"),
        ("/etc/passwd",),
        ("tables", "../../../../readme.txt"),
    ):
        with pytest.raises(UserError, match="has no file"):
            store.file(name, *parts)
    with pytest.raises(UserError, match="has no file"):
        store.table(name, "../../20261102-000000-bbbbbb.partial/tables/implicit_alignment")


def test_a_run_is_deleted_and_nothing_else(root):
    store = Store(root)
    store.delete("measure/20261102-000000-bbbbbb")
    assert len(names(store)) == 3 and not (root / "measure/20261102-000000-bbbbbb.partial").exists()
    store.delete("report/20261104-000000-dddddd")  # a broken one, too
    assert (root / "report/notes").is_dir() and (root / "readme.txt").exists()
    with pytest.raises(UserError, match="there is no run"):
        store.delete("measure/20261102-000000-bbbbbb")


def test_a_link_to_elsewhere_is_shown_but_not_deleted(root):
    outside = made(root.parent, "elsewhere/20261106-000000-ffffff")
    (root / "measure/20261106-000000-ffffff").symlink_to(outside)
    (root / "linked").symlink_to(outside.parent)
    store = Store(root)
    for name in ("measure/20261106-000000-ffffff", "linked/20261106-000000-ffffff"):
        assert len(store.table(name, "implicit_alignment")) == 2
        with pytest.raises(UserError, match="link to another place"):
            store.delete(name)
    assert (outside / "manifest.json").is_file()


def test_search_wants_every_word_and_takes_odd_manifests(root):
    made(root, "odd/20261107-000000-abcdef", model=3, data=["x"], config="text", n="many", wall_seconds="long")
    runs = Store(root).runs()
    assert [run.path.name[-6:] for run in search(runs, "ORGANISM measure")] == ["aaaaaa"]
    assert search(runs, "organism report") == [] and len(search(runs, "  ")) == 5
    assert [run.state for run in search(runs, "broken")] == ["broken"]
    assert model_name(runs[0].manifest) == "3"
