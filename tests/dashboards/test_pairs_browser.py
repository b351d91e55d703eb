"""Sets of pairs as the page shows them: found without a typed path, read as they were made, told where they are damaged."""

from __future__ import annotations

import json
import shutil

import pytest
from chiasm.alignment.encoders import SceneGraph
from chiasm.alignment.judges import SceneJudge
from chiasm.alignment.masking import SceneMasker
from chiasm.alignment.pair_config import PairConfig
from chiasm.alignment.pairs import build_pairs
from chiasm.alignment.scene_truth import SceneTruth
from chiasm.dashboards.marked import BAD, FAINT, GOOD, PLAIN
from chiasm.dashboards.pairs_browser import pair_at, pair_sets, read_pair_set, span_pieces, word_pieces
from chiasm.scenes.benchmarks import scene_samples
from chiasm.scenes.errors import UserError
from PIL import Image


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A set of pairs of 12 scenes."""
    return build_pairs(
        list(scene_samples(12, "test", "description")), tmp_path_factory.mktemp("runs") / "pairs" / "scenes", backend=SceneTruth(),
        encoder=SceneGraph(), judge=SceneJudge(), masker=SceneMasker(), config=PairConfig(chunk=8), progress=False,
    ).path  # fmt: skip


@pytest.fixture
def root(made, tmp_path):
    """The same in a folder of runs of its own."""
    shutil.copytree(made, tmp_path / "runs" / "pairs" / "scenes")
    return tmp_path / "runs"


def one_of(root):
    (found,) = pair_sets(root)
    return found


def test_sets_are_found_below_the_runs_beside_them_and_where_a_tuning_names_them(root, made):
    assert [(one.name, one.complete) for one in pair_sets(root)] == [("pairs/scenes", True)]
    shutil.copytree(made, root.parent / "pairs")
    shutil.copytree(made, root / "tune" / "20260101-000000-abcdef" / "pairs")  # a run is looked into no further
    (root / "tune" / "20260101-000000-abcdef" / "manifest.json").write_text("{}")
    (root / "more.incomplete").mkdir()
    (root / "more.incomplete" / "pairs.json").write_text("{}")
    named = {"config": {"pairs": str(made)}}
    found = pair_sets(
        root, [named, {"config": {"pairs": str(root / "pairs" / "scenes")}}, {"config": {"pairs": "/etc"}}, {}]
    )
    assert [(one.name, one.complete) for one in found] == [
        ("more", False), ("pairs/scenes", True), (str(root.parent / "pairs"), True), (str(made), True),
    ]  # fmt: skip


def test_a_set_is_read_with_its_report_and_what_was_dropped(root):
    contents = read_pair_set(one_of(root))
    assert not contents.problems and len(contents.table) == contents.report["n"] == len(contents.rows)
    assert len(contents.dropped) == sum(contents.report["dropped"].values())
    assert not len(contents.dropped) or contents.dropped["why"].str.len().min() > 0
    assert not list(one_of(root).path.glob("cache-*")), "reading writes nothing"


def test_a_pair_has_both_pictures_what_differs_and_what_was_checked(root):
    contents = read_pair_set(one_of(root))
    for index in range(len(contents.table)):
        pair = pair_at(contents, index)
        chosen, rejected = ("".join(text for text, _ in pieces) for pieces in (pair.chosen, pair.rejected))
        assert chosen != rejected and all(isinstance(picture, Image.Image) for picture in pair.pictures)
        assert {kind for _, kind in pair.chosen} <= {PLAIN, GOOD, FAINT} and GOOD in {kind for _, kind in pair.chosen}
        assert {kind for _, kind in pair.rejected} <= {PLAIN, BAD, FAINT} and BAD in {kind for _, kind in pair.rejected}
        assert [found for _, found, _ in pair.checks[:3]] == ["true", "false", "false"]
        assert ("judged by", "scene-graph", "") in pair.checks


def test_spans_cut_both_texts_and_wrong_ones_are_not_believed():
    spans = [
        {"start": 2, "end": 5, "chosen": "cat", "rejected": "horse"},
        {"start": 9, "end": 12, "chosen": "red", "rejected": "red"},
    ]
    chosen, rejected = span_pieces("a cat is red.", "a horse is red.", spans)
    assert chosen == [("a ", PLAIN), ("cat", GOOD), (" is ", PLAIN), ("red", FAINT), (".", PLAIN)]
    assert rejected == [("a ", PLAIN), ("horse", BAD), (" is ", PLAIN), ("red", FAINT), (".", PLAIN)]
    assert span_pieces("a cat is red.", "a horse is blue.", spans) is None and span_pieces("a", "b", []) is None
    chosen, rejected = word_pieces("a cat is red", "a horse is red")
    assert chosen == [("a ", PLAIN), ("cat", GOOD), (" is red", PLAIN)] and rejected[1] == ("horse", BAD)


def test_a_set_that_is_being_made_tells_how_far_it_is(tmp_path):
    folder = tmp_path / "mine.incomplete"
    folder.mkdir(parents=True)
    (folder / "pairs.json").write_text('{"backend": "self 1"}')
    records = [{"id": "a", "kind": "object"}, {"id": "b", "reason": "no_fill", "tried": {"unchanged": 2, "no_fill": 1}}]
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"id": "half')
    contents = read_pair_set(one_of(tmp_path))
    assert contents.read == 2 and contents.rows is None and not contents.problems
    assert contents.dropped.to_dict("records")[0] == {
        "id": "b", "reason": "no_fill", "kind": None, "why": "the rejected picture suggests nothing for the masks", "tried": "unchanged 2, no_fill 1",
    }  # fmt: skip


def test_damaged_files_are_each_told_and_the_rest_is_shown(root):
    one = one_of(root)
    (one.path / "report.json").write_text("{")
    (one.path / "dropped.jsonl").write_text('{"id": "a", "reason": "no_fill"}\nbroken\n')
    contents = read_pair_set(one)
    assert "'report.json' cannot be read" in contents.problems[0] and "1 damaged line" in contents.problems[1]
    assert len(contents.table) and list(contents.dropped["id"]) == ["a"]
    next(one.path.glob("*.arrow")).write_bytes(b"no arrow")
    (one.path / "pairs.json").write_text('{"format": 1}')  # newer than what was read before
    contents = read_pair_set(one)
    assert contents.rows is None and "cannot be read" in contents.problems[0]
    with pytest.raises(UserError, match="cannot be read"):
        pair_at(contents, 0)


def test_a_broken_picture_is_told_in_its_place(root):
    contents = read_pair_set(one_of(root))
    (row,) = contents.rows[0].to_pylist()

    class Broken:
        def to_pylist(self):
            return [row | {"images": [{"bytes": b"no picture", "path": None}], "rejected_images": None, "spans": "{"}]

    pair = pair_at(type(contents)(rows=[Broken()]), 0)
    assert all(isinstance(picture, str) and "cannot be shown" in picture for picture in pair.pictures)
    assert BAD in {kind for _, kind in pair.rejected}  # told by the words where the spans are damaged
