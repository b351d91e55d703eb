"""Pairs: what never may come out, every drop with its reason, the same again with the same seed, and after kill -9."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import pytest
from chiasm.alignment.collator import VisualPreferenceCollator
from chiasm.alignment.encoders import SceneGraph, Tower
from chiasm.alignment.filters import REASONS
from chiasm.alignment.infill import Fill, InfillFailed
from chiasm.alignment.judges import SceneJudge
from chiasm.alignment.masking import KINDS, SceneMasker
from chiasm.alignment.pair_config import PairConfig
from chiasm.alignment.pair_files import META, load_pairs
from chiasm.alignment.pairs import build_pairs
from chiasm.alignment.rejected_images import KINDS as REJECTED
from chiasm.alignment.scene_truth import SceneTruth
from chiasm.alignment.self_infill import ConstrainedInfill
from chiasm.models import open_vlm
from chiasm.scenes.benchmarks import scene_samples
from chiasm.scenes.claims import holds
from chiasm.scenes.errors import UserError
from chiasm.scenes.sample import BadSample, Sample
from PIL import Image


@pytest.fixture(scope="module")
def samples():
    return list(scene_samples(40, "test", "description"))


def make(samples, out, backend=None, encoder=None, **config):
    return build_pairs(
        samples, out, backend=backend or SceneTruth(), encoder=encoder or SceneGraph(), judge=SceneJudge(),
        masker=SceneMasker(), config=PairConfig(**{"chunk": 8} | config), progress=False,
    )  # fmt: skip


def content(pairs):
    """Everything of a data set, pictures as bytes."""
    rows = []
    for row in pairs.dataset():
        for name in ("images", "rejected_images"):
            row[name] = [image.tobytes() for image in row[name]]
        rows.append(row)
    return rows


@pytest.fixture(scope="module")
def made(samples, tmp_path_factory):
    return make(samples, tmp_path_factory.mktemp("pairs") / "out")


def test_what_never_may_come_out(made, samples):
    scenes = {sample.id: sample.truth["scene"] for sample in samples}
    rows = content(made)
    assert len(rows) > 25
    for row in rows:
        said = {name: row[name][0]["content"] for name in ("prompt", "chosen", "rejected")}
        assert [row[name][0]["role"] for name in said] == ["user", "assistant", "assistant"]
        assert said["chosen"] != said["rejected"] and "MASK" not in said["rejected"] and "<image>" not in said["prompt"]
        assert row["rejected_id"] != row["id"] and row["images"] != row["rejected_images"]
        assert holds(said["chosen"], scenes[row["id"]]) and not holds(said["rejected"], scenes[row["id"]])
        assert not holds(said["chosen"], scenes[row["rejected_id"]])
        assert row["graph_distance"] >= 1 and 0 <= row["rank"] < 10 and abs(row["length_difference"]) <= 2
        spans = json.loads(row["spans"])
        assert {span["kind"] for span in spans} == {row["kind"]} and any(s["chosen"] != s["rejected"] for s in spans)
        assert (row["truth_chosen"], row["truth_rejected"], row["truth_rejected_image"]) == (1, 0, 0)
        assert row["backend"] == "scene-truth 1" and row["judge"] == "scene-graph" and row["seed"] == 0


def test_the_kinds_are_balanced_and_the_report_adds_up(made, samples):
    report = made.report
    assert report["read"] == len(samples) == report["n"] + sum(report["dropped"].values())
    assert set(report["kinds"]) == set(KINDS) and max(report["kinds"].values()) - min(report["kinds"].values()) <= 4
    assert report["kinds"] == dict(Counter(row["kind"] for row in made.dataset()))
    assert report["giveaway"]["low"] < 0.5 and report["giveaway"]["n"] == report["n"]
    lines = [json.loads(line) for line in (made.path / "dropped.jsonl").read_text().splitlines()]
    assert Counter(line["reason"] for line in lines) == report["dropped"] and set(report["dropped"]) <= set(REASONS)
    card = (made.path / "README.md").read_text()
    assert card.startswith("---\n") and f"{report['n']} pairs of {len(samples)} items" in card and "text-only" in card
    assert all(f"| {code} |" in card for code in report["dropped"]) and "scene-truth 1" in card


def test_the_same_seed_gives_the_same_pairs_and_another_gives_others(made, samples, tmp_path):
    assert content(make(samples, tmp_path / "again")) == content(made)
    assert content(make(samples, tmp_path / "other", seed=1)) != content(made)


def test_a_finished_set_is_returned_and_another_is_refused(made, samples, tmp_path):
    before = (made.path / "report.json").stat().st_mtime_ns
    assert make(samples, made.path).report == made.report and (made.path / "report.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"was begun with another config \(k 10, now k 5\)"):
        make(samples, made.path, k=5)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="holds no pairs"):
        make(samples, tmp_path / "mine")
    with pytest.raises(UserError, match="make them with `chiasm pairs`"):
        load_pairs(tmp_path)


class Stops(SceneTruth):
    """Dies at its n-th call."""

    def __init__(self, at):
        super().__init__()
        self.left = at

    def fill(self, *args):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().fill(*args)


@pytest.mark.parametrize("at", [0, 3, 7])
def test_a_stop_in_any_chunk_leads_to_the_same_pairs(at, made, samples, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make(samples, tmp_path / "out", Stops(at))
    with pytest.raises(UserError, match="go on"):
        load_pairs(tmp_path / "out")
    records = tmp_path / "out.incomplete" / "records.jsonl"
    if records.is_file():  # a line of which only a part reached the disk
        with records.open("a") as file:
            file.write('{"id": "half')
    pairs = make(samples, tmp_path / "out")
    assert content(pairs) == content(made) and not (tmp_path / "out.incomplete").exists()


_KILLED = """
import os, signal, sys
from chiasm.alignment.encoders import SceneGraph
from chiasm.alignment.judges import SceneJudge
from chiasm.alignment.masking import SceneMasker
from chiasm.alignment.pair_config import PairConfig
from chiasm.alignment.pairs import build_pairs
from chiasm.alignment.scene_truth import SceneTruth
from chiasm.scenes.benchmarks import scene_samples

def work(at):
    whole, left = os.fsync, [at]
    def fsync(handle):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        whole(handle)
    os.fsync = fsync
    build_pairs(
        list(scene_samples(40, "test", "description")), sys.argv[1], backend=SceneTruth(), encoder=SceneGraph(),
        judge=SceneJudge(), masker=SceneMasker(), config=PairConfig(chunk=8), progress=False,
    )
    os._exit(0)

kills = 0
while True:
    child = os.fork() or work(9 + kills)
    status = os.waitpid(child, 0)[1]
    if status != signal.SIGKILL:
        break
    kills += 1
print(kills, status)
"""


def test_kill_9_at_any_step_resumes_to_the_same_pairs(made, samples, tmp_path):
    """Real processes that are killed at their 9th write to the disk, at their 10th, …, while reading, searching or finishing."""
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, str(tmp_path / "out")], capture_output=True, text=True, timeout=120
    )
    kills, status = map(int, done.stdout.split())
    assert kills >= 5 and status == 0, done.stderr
    assert content(make(samples, tmp_path / "out")) == content(made)


@pytest.mark.parametrize("kind", REJECTED)
def test_every_kind_of_rejected_picture(kind, samples, tmp_path):
    pairs = make(samples[:12], tmp_path / "out", rejected_image=kind)
    rows = content(pairs)
    assert len(rows) >= 6 and all(row["images"] != row["rejected_images"] for row in rows)
    assert {row["rejected_image"] for row in rows} == {kind}
    if kind == "counterfactual":
        assert {row["graph_distance"] for row in rows} == {1} and {row["cosine"] for row in rows} == {None}


def test_items_that_give_no_pair_have_their_reason(samples, tmp_path):
    good, grey = samples[0], Image.new("RGB", (64, 64), "grey")
    lie = Sample("lie", "say", samples[1].images, "a kitchen with a cup and a pot and a bed .", samples[1].truth)
    items = [
        *samples[:12],
        BadSample("bad", "line 3 is no picture"),
        Sample("none", "say", (), "a cup ."),
        Sample("two", "say", (grey, grey), "a cup ."),
        Sample("odd", "say", good.images, "a lovely day", good.truth),
        Sample("twin", good.prompt, good.images, good.answer, good.truth),
        lie,
    ]
    pairs = make(items, tmp_path / "out")
    reasons = {}
    for line in (pairs.path / "dropped.jsonl").read_text().splitlines():
        record = json.loads(line)
        reasons[record["id"]] = record["reason"]
    assert {k: reasons.get(k) for k in ("bad", "none", "two", "odd", "lie")} == {
        "bad": "unreadable", "none": "no_image", "two": "several_images", "odd": "not_checkable", "lie": "chosen_false",
    }  # fmt: skip
    for row in pairs.dataset():  # a twin is never the other's rejected picture
        assert {row["id"], row["rejected_id"]} != {good.id, "twin"}
    with pytest.raises(UserError, match="no_neighbour 1"):
        make([good], tmp_path / "alone")


class Says(SceneTruth):
    """A backend that answers the same to everything."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def fill(self, masked, shown, prompts, n, seed):
        return [self.answer(text) for text in masked]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda m: InfillFailed("backend_failed"), "backend_failed"),
        (lambda m: [], "no_fill"),
        (lambda m: [Fill(m.text, m.originals)], "unchanged"),
        (lambda m: [Fill(m.masked, ("[MASK]",) * len(m.spans))], "mask_left"),
        (lambda m: [Fill("", ("x",) * len(m.spans))], "empty"),
        (lambda m: [Fill(m.text + " and a tail that is long", ("x",) * len(m.spans))], "length"),
        (lambda m: [Fill(m.text.replace("there", "dragon"), ("dragon",) * len(m.spans))], "not_checkable"),
    ],
)
def test_a_backend_that_is_useless_gives_reasons_and_no_pair(answer, reason, samples, tmp_path):
    some = [s for s in samples if "there is" in s.answer][:6]
    with pytest.raises(UserError, match=f"none of the {len(some)} items gave a pair .*{reason}"):
        make(some, tmp_path / "out", Says(answer), k=3)


def test_texts_are_written_where_the_data_have_none(samples, tmp_path):
    bare = [Sample(s.id, s.prompt, s.images, None, s.truth) for s in samples[:10]]
    pairs = make(bare, tmp_path / "out")
    assert pairs.report["n"] >= 5 and all(row["chosen"][0]["content"] for row in pairs.dataset())


def test_the_model_fills_and_the_collator_takes_the_pairs(samples, tmp_path):
    vlm = open_vlm("organism", device="cpu")
    short = list(scene_samples(6, "test", "caption", style="colour"))
    backend = ConstrainedInfill(vlm, SceneMasker())
    pairs = make(short, tmp_path / "out", backend, Tower(vlm), fills=2, k=3, fluency=0.3)
    assert pairs.report["n"] >= 2 and pairs.report["dropped"].get("disfluent", 0) >= 0
    rows = list(pairs.dataset())
    assert all(row["fill_logp"] < 0 for row in rows) and set(META) < set(rows[0])
    chat = VisualPreferenceCollator(vlm.processor, vlm.anatomy)(rows)
    assert chat["input_ids"].shape[0] == 3 * len(rows)
    plain = make(short, tmp_path / "plain", backend, Tower(vlm), fills=2, k=3, fluency=0.3, chat=False)
    strings = VisualPreferenceCollator(vlm.processor, vlm.anatomy)(list(plain.dataset()))
    assert (strings["completion_mask"].sum(1) == chat["completion_mask"].sum(1)).all()
    assert strings["input_ids"].tolist() == chat["input_ids"].tolist()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mask": "verbs"}, "mask 'verbs' is not known: use balanced, all, object"),
        ({"rejected_image": "dog"}, "rejected_image 'dog' is not known: use retrieved"),
        ({"k": 0}, "k 0 must be at least 1"),
        ({"rate": 0}, "rate 0 must be in 0..1"),
        ({"fluency": 1}, "fluency 1 in 0..1"),
    ],
)
def test_settings_that_cannot_be_are_one_line(options, words):
    with pytest.raises(UserError, match=words):
        PairConfig(**options)


def test_scene_kinds_need_scenes(photo, tmp_path):
    photos = [Sample(str(i), "say", (photo(n, 64),), "a red cup .") for i, n in enumerate(("coffee.png", "rocket.jpg"))]
    with pytest.raises(UserError, match="encoder 'graph' needs rendered scenes"):
        make(photos, tmp_path / "out")
