"""The evaluation pass: what is asked and kept, stopped and resumed, drawn with seeds, and scored without a model."""

import json
from dataclasses import dataclass, replace

import pandas as pd
import pytest
import torch
from chiasm.experiments.answers import read_answers
from chiasm.experiments.benchmarks import Benchmark, open_benchmark
from chiasm.experiments.decoding import Steered
from chiasm.experiments.evaluation import evaluate, evaluate_answers
from chiasm.experiments.methods import FirstToken, Greedy, Sampling
from chiasm.experiments.run import Run, load_run
from chiasm.models import open_vlm
from chiasm.probes.hallucination import pope_metrics
from chiasm.scenes.errors import UserError
from chiasm.scenes.sample import BadSample
from chiasm.steering import AddDirection, Direction


def message(function, *arguments, **options):
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def vlm():
    return open_vlm("organism")


@pytest.fixture(scope="module")
def pope():
    """24 questions: 8 of each sampling."""
    return open_benchmark("pope-scenes", limit=8)


@dataclass
class Stopped:
    """Greedy, stopped by Ctrl-C at the call after `calls`."""

    calls: int
    name: str = "greedy"
    sampled: bool = False

    def answer(self, vlm, inputs, *, max_new_tokens, seeds):
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return Greedy().answer(vlm, inputs, max_new_tokens=max_new_tokens, seeds=seeds)


def lines(run, name):
    return [json.loads(line) for line in (run.path / "answers" / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(vlm, pope, tmp_path_factory):
    """A complete evaluation by three methods, with its run."""
    with Run.create("evaluate", {}, tmp_path_factory.mktemp("runs")) as run:
        result = evaluate(vlm, pope, [Greedy(), Sampling(), FirstToken()], run=run, seeds=2, batch_size=8)
    return result, run


def test_every_question_is_asked_and_kept(vlm, pope, whole):
    result, run = whole
    records = lines(run, "greedy")
    assert [r["id"] for r in records] == [s.id for s in pope.samples] and result.n == len(records)
    assert result.answers["greedy"] == [records] and 18 <= result.n <= 24
    sample, record = pope.samples[0], records[0]
    assert record["split"] == "random" and record["image"] == f"scene-{sample.truth['scene'].seed}"
    assert record["label"] == sample.answer and record["seed"] == 0
    inputs = vlm.prepare([s.images for s in pope.samples], [s.prompt for s in pope.samples])
    assert [r["answer"] for r in records] == vlm.generate(inputs, max_new_tokens=16)
    manifest = load_run(run.path).manifest
    assert (
        manifest["n"] == result.n and manifest["benchmark"] == "pope-scenes" and manifest["model"]["name"] == "organism"
    )
    pd.testing.assert_frame_equal(run.read_table("scores"), result.table, check_dtype=False)
    first = lines(run, "first-token")[0]
    assert 0 <= first["p_yes"] <= 1 and first["answer"] == ("yes" if first["p_yes"] > first["p_no"] else "no")


def test_the_table(whole):
    table = whole[0].table.set_index(["split", "method", "metric"])
    records = [r for r in whole[0].answers["greedy"][0] if r["split"] == "popular"]
    direct = pope_metrics(
        [r["answer"] for r in records], [r["label"] for r in records], images=[r["image"] for r in records]
    )
    row = table.loc["popular", "greedy", "f1"]
    assert row["mean"] == direct["f1"]["mean"] and row["n"] == len(records)
    by_split = [table.loc[split, "greedy", "f1"]["mean"] for split in ("random", "popular", "adversarial")]
    assert table.loc["mean", "greedy", "f1"]["mean"] == pytest.approx(sum(by_split) / 3)
    assert table.loc["mean", "greedy", "accuracy"]["n"] == whole[0].n
    sampled = table.loc["mean", "sampling", "accuracy"]
    per_seed = [
        sum(table_of(one, split)["accuracy"]["mean"] for split in ("random", "popular", "adversarial")) / 3
        for one in whole[0].answers["sampling"]
    ]
    assert sampled["mean"] == pytest.approx(sum(per_seed) / 2)
    assert sampled["sd"] == pytest.approx(pd.Series(per_seed).std())
    greedy = table.loc["mean", "greedy", "accuracy"]["mean"]
    assert sampled["difference"] == pytest.approx(sampled["mean"] - greedy) and 0 < sampled["p"] <= 1
    assert table.loc["random", "first-token", "auc"]["mean"] >= 0.9
    assert table[table.index.get_level_values("method") == "greedy"]["difference"].isna().all()


def table_of(records, split):
    some = [r for r in records if r["split"] == split]
    return pope_metrics([r["answer"] for r in some], [r["label"] for r in some])


def test_stopped_and_resumed_to_the_same_answers(vlm, pope, whole, tmp_path):
    run = Run.create("evaluate", {}, tmp_path)
    with pytest.raises(KeyboardInterrupt), run:
        evaluate(vlm, pope, [Stopped(2)], run=run, batch_size=8)
    expected = lines(whole[1], "greedy")
    assert lines(run, "greedy") == expected[:16]  # partial results, readable as they are
    path = run.path / "answers" / "greedy.jsonl"
    with path.open("a") as file:  # a third batch of which only a part reached the disk
        file.write(json.dumps(expected[16]) + "\n" + json.dumps(expected[17])[:30])
    run = load_run(run.path)
    with run.resume():
        counted = Stopped(100)
        result = evaluate(vlm, pope, [counted], run=run, batch_size=8)
    assert counted.calls == 100 - len(range(16, len(expected), 8))  # nothing was asked again
    assert lines(run, "greedy") == expected == result.answers["greedy"][0]
    again = evaluate(vlm, pope, [Stopped(0)], run=load_run(run.path), batch_size=8)
    pd.testing.assert_frame_equal(again.table, result.table)


def test_a_run_is_not_resumed_as_another(vlm, pope, tmp_path):
    run = Run.create("evaluate", {}, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        evaluate(vlm, pope, [Stopped(1)], run=run, batch_size=8)
    assert "another batch_size (8, now 4)" in message(evaluate, vlm, pope, [Greedy()], run=run, batch_size=4)
    assert "another methods" in message(evaluate, vlm, pope, [Greedy(), FirstToken()], run=run, batch_size=8)
    other = replace(pope, samples=pope.samples[:-1])
    assert "another data" in message(evaluate, vlm, other, [Greedy()], run=run, batch_size=8)
    (run.path / "answers" / "greedy.jsonl").write_text("{\n")
    assert "is damaged" in message(evaluate, vlm, pope, [Greedy()], run=run, batch_size=8)


def test_drawn_answers_depend_on_the_seed_and_the_question_alone(vlm, pope, whole):
    some = replace(pope, samples=pope.samples[::-1][:11])
    result = evaluate(vlm, some, [Sampling()], seeds=2, batch_size=3)
    assert all(len(one) == 11 for one in result.answers["sampling"])
    for k, one in enumerate(result.answers["sampling"]):
        expected = {r["id"]: r["answer"] for r in whole[0].answers["sampling"][k]}
        assert {r["id"]: r["answer"] for r in one} == {r["id"]: expected[r["id"]] for r in one}
    assert "needs 2 or more" in message(evaluate, vlm, pope, [Sampling()], seeds=1)


def test_what_cannot_be_asked_is_skipped_and_listed(vlm, pope, tmp_path):
    bad = [
        BadSample("broken", "picture 'x.png' does not exist"),
        replace(pope.samples[0], id="two", prompt="<image> <image> ?"),
    ]
    mixed = replace(pope, samples=[*pope.samples[:5], *bad, *pope.samples[5:]])
    run = Run.create("evaluate", {}, tmp_path)
    result = evaluate(vlm, mixed, [Greedy(), FirstToken()], run=run, batch_size=4)
    assert list(result.skipped["id"]) == ["broken", "two"] and "x.png" in result.skipped["reason"][0]
    assert result.n == len(pope.samples) and run.manifest["skipped"] == 2
    assert len(lines(run, "greedy")) == len(pope.samples) + 2
    assert "'broken'" in message(evaluate, vlm, mixed, [Greedy()], strict=True)
    assert "none of the 2 questions" in message(evaluate, vlm, replace(pope, samples=bad), [Greedy()])
    assert "has no questions" in message(evaluate, vlm, replace(pope, samples=[]), [Greedy()])
    doubled = replace(pope, samples=[pope.samples[0]] * 2)
    assert "occurs twice" in message(evaluate, vlm, doubled, [Greedy()])


def test_what_does_not_go_together(vlm, pope):
    assert "no method" in message(evaluate, vlm, pope, [])
    assert "two methods are called 'greedy'" in message(evaluate, vlm, pope, [Greedy(), Greedy()])
    assert "'a/b' names a file" in message(evaluate, vlm, pope, [replace(Greedy(), name="a/b")])
    assert "batch_size 0" in message(evaluate, vlm, pope, [Greedy()], batch_size=0)
    captions = open_benchmark("chair-scenes", limit=2)
    assert "asks for descriptions" in message(evaluate, vlm, captions, [FirstToken()])
    short = evaluate(vlm, captions, [Greedy()], max_new_tokens=4)
    assert "rule 'opera' is of pope" in message(evaluate, vlm, captions, [Greedy()], max_new_tokens=4, rule="opera")
    assert set(short.table["metric"]) >= {"chair_s", "chair_i", "recall", "f1", "mean_length", "objects_per_caption"}
    assert set(short.table["n"]) == {2}
    assert short.answers["greedy"][0][0]["truth"] == captions.samples[0].truth["scene"].categories()


def test_descriptions_by_two_methods_are_compared_at_one_length(tmp_path):
    captions = open_benchmark("chair-scenes", limit=3)
    for name, said in (("long", "there is a cup . there is a fish ."), ("short", "there is a cup .")):
        write(tmp_path / f"{name}.jsonl", [{"id": s.id, "answer": said} for s in captions.samples])
    result = evaluate_answers(captions, [tmp_path / "long.jsonl", tmp_path / "short.jsonl"])
    table = result.table.set_index(["split", "method", "metric"])
    assert table.loc["all", "short", "mean_length"]["difference"] == -5
    assert table.loc["same length", "short", "mean_length"]["difference"] == 0
    assert table.loc["same length", "short", "chair_i"]["p"] == 1


# -- answers that were made elsewhere ----------------------------------------------------------------------------------


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_own_answers_score_the_same_without_a_model(pope, whole, tmp_path):
    result, run = whole
    again = evaluate_answers(pope, [run.path / "answers" / "greedy.jsonl"])
    expected = result.table[result.table["method"] == "greedy"]
    columns = ["split", "metric", "mean", "n"]
    pd.testing.assert_frame_equal(again.table[columns], expected[columns].reset_index(drop=True), check_dtype=False)
    back = list(reversed(lines(run, "greedy")))  # the order of the file is free
    other = evaluate_answers(pope, [write(tmp_path / "back.jsonl", back)])
    pd.testing.assert_frame_equal(other.table.drop(columns="method"), again.table.drop(columns="method"))


def test_a_run_keeps_the_answers_that_were_made_elsewhere_with_their_questions(pope, whole, tmp_path):
    _, run = whole
    mine = write(tmp_path / "mine.jsonl", [{"id": r["id"], "answer": r["answer"]} for r in lines(run, "greedy")])
    with Run.create("evaluate", {"benchmark": pope.name}, tmp_path) as kept:
        evaluate_answers(pope, [mine], run=kept)
    wanted = [{name: value for name, value in record.items() if name != "seed"} for record in lines(run, "greedy")]
    assert lines(kept, "mine") == wanted


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r[1:], ["'mine.jsonl' lacks answers to 'pope-random-"]),
        (lambda r: r[6:], ["and 3 more", "each of the"]),
        (lambda r: [*r, {"id": "new", "answer": "yes"}], ["answers what is not asked: 'new'"]),
        (lambda r: [*r, r[0]], ["answers 'pope-random-", "again"]),
        (lambda r: [*r, {"id": "x", "said": "yes"}], ["has no 'answer', it has 'id', 'said'"]),
        (lambda r: [*r, {"id": "x", "answer": None}], ["'answer' is null"]),
        (lambda r: [*r, {"id": "x", "answer": 1}], ["'answer' is 1, must be text"]),
        (lambda r: [{"answer": "yes"}], ["line 1 has no 'id'"]),
        (lambda r: [], ["is empty"]),
        (lambda r: [[1]], ["JSON list"]),
    ],
)
def test_an_answer_file_that_does_not_fit(pope, whole, tmp_path, change, words):
    records = [{"id": r["id"], "answer": r["answer"]} for r in whole[0].answers["greedy"][0]]
    told = message(evaluate_answers, pope, [write(tmp_path / "mine.jsonl", change(records))])
    assert all(word in told for word in words), told


def test_numbers_as_ids_and_empty_answers(tmp_path):
    assert read_answers(write(tmp_path / "a.jsonl", [{"id": 1, "answer": ""}, {"id": "b", "answer": " yes"}])) == {
        "1": "", "b": " yes",
    }  # fmt: skip
    assert "does not exist" in message(read_answers, tmp_path / "none.jsonl")


def test_two_files_of_one_name(pope, tmp_path):
    (tmp_path / "x").mkdir()
    records = [{"id": s.id, "answer": "yes"} for s in pope.samples]
    files = [write(tmp_path / "a.jsonl", records), write(tmp_path / "x" / "a.jsonl", records)]
    assert "two files of answers are called 'a'" in message(evaluate_answers, pope, files)


def test_a_question_that_cannot_be_read_is_told(pope):
    broken = Benchmark("mine", "pope", [BadSample("3", "line 3 is not JSON")], 16, pope.facts)
    assert "question '3' cannot be read: line 3" in message(evaluate_answers, broken, ["a.jsonl"])


def test_a_run_is_not_resumed_with_another_direction_of_the_same_name(vlm, pope, tmp_path):
    def steered(seed):
        vector = torch.randn(vlm.anatomy.hidden_size, generator=torch.Generator().manual_seed(seed))
        return Steered("mine", (AddDirection(Direction(vector / vector.norm(), 1), scale=0.1),))

    with Run.create("evaluate", {}, tmp_path) as run:
        evaluate(vlm, pope, [steered(0)], run=run)
        assert "begun with another interventions" in message(evaluate, vlm, pope, [steered(1)], run=run)
        evaluate(vlm, pope, [steered(0)], run=run)
