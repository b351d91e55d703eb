"""`chiasm evaluate` as it is typed."""

import json
from pathlib import Path

import pytest
from chiasm.experiments import options
from chiasm.experiments.methods import Greedy
from chiasm.experiments.run import load_run

from .test_cli import chiasm, refused  # noqa: F401 - fixtures

ASK = ["evaluate", "pope-scenes", "--limit", "6", "--batch-size", "4"]


def answers(path) -> list[dict]:
    return [json.loads(line) for line in (Path(path) / "answers" / "greedy.jsonl").read_text().splitlines()]


def test_evaluate_compares_methods_and_writes_a_run(chiasm):  # noqa: F811
    code, out, err = chiasm(*ASK, "--method", "greedy", "--method", "first-token")
    assert code == 0, err
    run = load_run(out.splitlines()[-1])
    assert run.finished and run.path.parent == Path("runs/evaluate") and run.manifest["n"] == len(answers(run.path))
    for word in ("random", "adversarial", "mean", "first-token", "yes_ratio", "difference", "p (Holm)", "n would show"):
        assert word in out, word
    assert f"{run.manifest['n']} questions" in err
    assert set(run.read_table("scores")["method"]) == {"greedy", "first-token"}
    assert "pope-scenes" in json.dumps(run.manifest["config"])
    assert str(run.path) in chiasm("runs")[1]


def test_stopped_by_the_user_and_resumed(chiasm, monkeypatch):  # noqa: F811
    code, out, _ = chiasm(*ASK, "--out", "whole")
    assert code == 0
    whole = answers(out.splitlines()[-1])
    answer, calls = Greedy.answer, []

    def stopped(self, *arguments, **named):
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return answer(self, *arguments, **named)

    monkeypatch.setattr(Greedy, "answer", stopped)
    code, out, err = chiasm(*ASK)
    assert code == 130 and "--resume latest" in err and "incomplete" in chiasm("runs")[1]
    (begun,) = Path("runs/evaluate").iterdir()
    assert answers(begun) == whole[:8]  # what was answered is there
    monkeypatch.setattr(Greedy, "answer", answer)
    code, out, err = chiasm("evaluate", "--resume", "latest")
    assert code == 0, err
    path = out.splitlines()[-1]
    assert answers(path) == whole
    code, out, err = chiasm("evaluate", "--resume", path)
    assert code == 0 and "nothing was asked again" in err and out.splitlines()[-1] == path


def test_answers_of_a_file_need_no_model(chiasm, refused, monkeypatch, tmp_path):  # noqa: F811
    for i in range(2):
        lines = [
            {"question_id": k, "image": "gone.jpg", "text": "Is there a cup in the image?", "label": "yes"}
            for k in (1, 2)
        ]
        (tmp_path / "pope.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
        said = [{"id": str(k), "answer": "yes" if k > i else "no"} for k in (1, 2)]
        (tmp_path / f"m{i}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in said))
    monkeypatch.setattr(options, "open_model", None)
    code, out, err = chiasm("evaluate", "pope", "pope.json", "--answers", "m0.jsonl", "--answers", "m1.jsonl")
    assert code == 0, err
    table = load_run(out.splitlines()[-1]).read_table("scores").set_index(["method", "metric"])
    assert table.loc["m0", "accuracy"]["mean"] == 1 and table.loc["m1", "accuracy"]["difference"] == -0.5
    (tmp_path / "m1.jsonl").write_text(json.dumps({"id": "1", "answer": "yes"}) + "\n")
    assert "'m1.jsonl' lacks answers to '2'" in refused("evaluate", "pope", "pope.json", "--answers", "m1.jsonl")
    assert "exclude each other" in refused(
        "evaluate", "pope", "pope.json", "--answers", "m1.jsonl", "--method", "greedy"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate"], ["needs a benchmark"]),
        (["evaluate", "popes"], ["'popes'", "pope-scenes"]),
        (["evaluate", "pope"], ["needs a path"]),
        (["evaluate", "pope", "nope.json"], ["nope.json", "does not exist"]),
        (["evaluate", "pope-scenes", "x"], ["takes no path"]),
        (["evaluate", "pope-scenes", "--method", "beam"], ["'beam'", "greedy"]),
        (["evaluate", "pope-scenes", "--rule", "mine"], ["--rule 'mine'", "official"]),
        (["evaluate", "pope-scenes", "--limit", "0"], ["limit 0"]),
        (["evaluate", "pope-scenes", "--batch-size", "0"], ["--batch-size 0"]),
        (["evaluate", "pope-scenes", "--max-new-tokens", "0"], ["--max-new-tokens 0"]),
        (["evaluate", "pope-scenes", "--read", "part"], ["--read 'part'"]),
        (["evaluate", "pope-scenes", "--resume", "latest"], ["no incomplete evaluation"]),
        (["evaluate", "pope-scenes", "--limit", "6", "--model", "organism/nope"], ["nope"]),
        (["evaluate", "pope-scenes", "--limit", "6", "--method", "sampling", "--seeds", "1"], ["seeds=1"]),
    ],
)
def test_arguments(refused, arguments, words):  # noqa: F811
    line = refused(*arguments)
    assert all(word in line for word in words), line


def test_not_on_several_processes(refused, monkeypatch):  # noqa: F811
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "one process" in refused(*ASK)
