"""An evaluation's answers one by one: what is wrong with each, by the rules of the scores; files that are damaged or being written."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from chiasm.dashboards.samples import ANY, FAULTS, failing, fault_table, invented_words, read_run_answers, told_way
from chiasm.experiments.figures.rows import pick
from chiasm.experiments.run import load_run
from chiasm.scenes.errors import UserError

from .evaluation_runs import write_answers

POPE = {"benchmark": "pope"}


def question(name, label, answer, split="random"):
    return {"id": name, "split": split, "image": name, "label": label, "answer": answer}


def description(name, truth, answer):
    return {"id": name, "split": "all", "image": name, "truth": truth, "answer": answer}


def faults(answers, way="greedy"):
    return {one.id: one.said[way].faults for one in answers.asked}


def test_a_question_is_answered_right_or_falsely_yes_or_missed_or_unclear(tmp_path):
    records = [
        question("a", "yes", "Yes."),
        question("b", "no", "yes, it is"),
        question("c", "yes", "No"),
        question("d", "no", "a dog"),
    ]
    answers = read_run_answers(write_answers(tmp_path, greedy=records), POPE)
    assert faults(answers) == {"a": (), "b": ("false_yes",), "c": ("missed",), "d": ("unclear",)}
    assert answers.faults == ["false_yes", "missed", "unclear"] and set(answers.faults) < set(FAULTS)


def test_yes_and_no_are_read_by_the_rule_of_the_run(tmp_path):
    path = write_answers(tmp_path, greedy=[question("a", "no", "It is not a cat, yes")])
    assert faults(read_run_answers(path, POPE)) == {"a": ("false_yes",)}
    assert faults(read_run_answers(path, POPE | {"rule": "official"})) == {"a": ()}  # "not" is a no there
    path = write_answers(tmp_path / "mme", greedy=[question("a", "no", "not sure")])
    assert faults(read_run_answers(path, {"benchmark": "mme"})) == {"a": ()}  # a no within the first four letters


def test_made_up_words_are_marked_where_they_stand_and_what_is_left_out_is_named(tmp_path):
    text = "two men with a Stop Sign and a dog"
    path = write_answers(
        tmp_path, greedy=[description("a", ["person", "cat"], text), description("b", ["cat"], "a cat")]
    )
    one, other = read_run_answers(path, {"benchmark": "chair"}).asked
    said = one.said["greedy"]
    assert said.faults == ("made_up", "left_out") and said.made_up == ("stop sign", "dog") and said.left_out == ("cat",)
    assert [text[start:end] for start, end in said.marks] == ["Stop Sign", "dog"]
    assert other.said["greedy"].faults == ()


def test_failures_are_those_of_a_method_that_another_one_does_not_share(tmp_path):
    greedy = [
        question("a", "no", "yes"),
        question("b", "no", "yes", "popular"),
        question("c", "yes", "no"),
        question("d", "yes", "yes"),
    ]
    other = [{**record, "answer": "no"} for record in greedy]
    answers = read_run_answers(write_answers(tmp_path, greedy=greedy, vcd=other), POPE)

    def ids(**how):
        return "".join(one.id for one in failing(answers, **how))

    assert ids() == "abcd" and ids(split="popular") == "b"
    assert ids(fault=ANY) == "abcd" and ids(fault=ANY, ways=["greedy"]) == "abc"
    assert ids(fault="false_yes") == "ab" and ids(fault="false_yes", ways=["vcd"]) == "" and ids(fault="missed") == "cd"
    assert (
        ids(fault=ANY, ways=["greedy"], better="vcd") == "ab" and ids(fault=ANY, ways=["vcd"], better="greedy") == "d"
    )
    assert ids(ways=["greedy"], better="vcd") == "abcd"  # nothing to fail by: every question
    assert fault_table(answers).to_dict("records") == [
        {"method": "greedy", "answers": 4, "false yes": 2, "missed": 1},
        {"method": "vcd", "answers": 4, "false yes": 0, "missed": 2},
    ]


def test_made_up_objects_are_counted_by_method_and_can_be_looked_for(tmp_path):
    greedy = [description("a", ["cat"], "a cat, a dog, a dog"), description("b", ["cat"], "a cat and a bus")]
    other = [description("a", ["cat"], "a cat"), description("b", ["cat"], "a cat and a dog")]
    answers = read_run_answers(write_answers(tmp_path, greedy=greedy, vcd__seed0=other), {"benchmark": "chair"})
    assert invented_words(answers).to_dict("index") == {
        "dog": {"greedy": 2, "vcd, seed 0": 1},
        "bus": {"greedy": 1, "vcd, seed 0": 0},
    }
    assert answers.words == ["bus", "dog"]
    assert [one.id for one in failing(answers, word="dog", ways=["vcd.seed0"])] == ["b"]
    assert [one.id for one in failing(answers, word="bus")] == ["b"]


def test_damaged_lines_and_answers_are_told_and_the_rest_goes_on(tmp_path):
    path = write_answers(
        tmp_path, greedy=[question("a", "yes", "yes"), question("b", "yes", None), {"id": "c", "answer": "yes"}]
    )
    file = path / "answers" / "greedy.jsonl"
    file.write_bytes(
        file.read_bytes() + b"{broken\n[1]\n" + json.dumps(question("d", "no", "no")).encode() + b"\n" + b'{"id": "half'
    )
    before = file.read_bytes()
    (path / "answers" / "vcd.jsonl").mkdir()
    answers = read_run_answers(path, POPE)
    assert [one.id for one in answers.asked] == ["a", "d"]
    assert file.read_bytes() == before  # a file that is being written is never touched
    told = "\n".join(answers.problems)
    assert (
        len(answers.problems) == 4
        and "'greedy.jsonl' has 2 damaged lines" in told
        and "'b'" in told
        and "'c'" in told
        and "'vcd.jsonl'" in told
    )


def test_what_could_not_be_asked_is_counted_and_a_run_without_answers_is_told(tmp_path):
    path = write_answers(tmp_path, greedy=[{"id": "a", "skipped": "no picture"}, question("b", "no", "no")])
    assert read_run_answers(path, POPE).skipped == 1
    with pytest.raises(UserError, match="keeps no answers"):
        read_run_answers(tmp_path / "none", POPE)


def test_ambers_words_are_of_its_lists_and_without_them_texts_are_shown_unmarked(tmp_path):
    path = write_answers(tmp_path / "run", greedy=[description("1", ["cat"], "a cat and a dog")])
    answers = read_run_answers(path, {"benchmark": "amber", "config": {"source": str(tmp_path / "gone")}})
    assert answers.asked[0].said["greedy"].faults == () and "AMBER" in answers.problems[0]


def test_every_fault_is_one_that_the_scores_count(evaluations):
    for name, metric in (("pope-scenes", "accuracy"), ("chair-scenes", "chair_s")):
        run = load_run(evaluations[name])
        answers = read_run_answers(run.path, run.manifest)
        assert answers.ways == ["greedy", "sampling-t3.seed0", "sampling-t3.seed1"] and not answers.problems
        rows = pick(run.read_table("scores"), metric=metric).set_index(["split", "method"])["mean"]
        for split in answers.splits:
            said = [one.said["greedy"] for one in answers.asked if one.split == split]
            failed = sum(bool(one.faults) if metric == "accuracy" else "made_up" in one.faults for one in said) / len(
                said
            )
            wanted = 1 - rows[split, "greedy"] if metric == "accuracy" else rows[split, "greedy"]
            assert failed == pytest.approx(wanted)


def test_marks_do_not_overlap_and_lie_in_the_text(evaluations):
    run = load_run(evaluations["chair-scenes"])
    answers = read_run_answers(run.path, run.manifest)
    marked = [said for one in answers.asked for said in one.said.values() if said.marks]
    assert marked  # drawing at temperature 3 makes things up
    for said in marked:
        assert all(a < b for a, b in said.marks) and all(
            first[1] <= second[0] for first, second in pairwise(said.marks)
        )
        assert len(said.marks) == len(said.made_up) and max(b for _, b in said.marks) <= len(said.text)


def test_a_file_of_a_sampled_method_is_named_for_people():
    assert told_way("sampling-t0.5.seed3") == "sampling-t0.5, seed 3" and told_way("greedy") == "greedy"
