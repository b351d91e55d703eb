"""A tuned model against the model before: tables by hand and against each other, runs, mistakes in one line."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from chiasm.alignment.adapters import language_lora
from chiasm.experiments import against as module
from chiasm.experiments.against import Sizes, against, held_out_pairs, same_answers
from chiasm.experiments.against_words import claims, summary
from chiasm.experiments.before_after import (
    MEAN,
    answer_table,
    compared,
    hallucination_table,
    preference_tables,
    trainings,
)
from chiasm.experiments.benchmarks import open_benchmark
from chiasm.experiments.cli_against import named as adapter_names
from chiasm.experiments.evaluation import evaluate
from chiasm.experiments.figures.rows import pick
from chiasm.experiments.lens_changes import concept_tables, lens_tables
from chiasm.experiments.lens_values import CURVES, lens_values
from chiasm.experiments.lenses import LENSES
from chiasm.experiments.methods import Greedy
from chiasm.experiments.run import load_run
from chiasm.experiments.study import framed_scenes
from chiasm.models import open_vlm
from chiasm.probes.seeds import mean_tally
from chiasm.scenes.benchmarks import caption_set, skill_set
from chiasm.scenes.errors import UserError
from peft import get_peft_model

from ..alignment.pairs import tiny
from .test_cli import chiasm, refused  # noqa: F401 - fixtures


@pytest.fixture(scope="module")
def before():
    return open_vlm("organism", device="cpu")


@pytest.fixture(scope="module")
def colour():
    return open_vlm("organism/colour", device="cpu")


@pytest.fixture(scope="module")
def pairs(before, tmp_path_factory):
    return held_out_pairs(before, 8, tmp_path_factory.mktemp("pairs") / "pairs")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Folders: "zero", which changes nothing, and "a" and "b", which do."""
    folders = {}
    for name, size in (("zero", 0.0), ("a", 0.05), ("b", 0.05)):
        vlm = open_vlm("organism", device="cpu")
        model = get_peft_model(vlm.model, language_lora(vlm.model, rank=2, dropout=0.0))
        generator = torch.Generator().manual_seed(ord(name[0]))
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_" in key:
                    drawn = torch.randn(parameter.shape, generator=generator)
                    parameter.copy_(drawn * (0.3 if "lora_A" in key else size))
        folders[name] = tmp_path_factory.mktemp("adapters") / name
        model.save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="module")
def tuned(adapters):
    return {name: open_vlm("organism", adapter=adapters[name], device="cpu") for name in ("a", "b")}


def test_rows_of_the_mean_and_of_each_training():
    tallies = {name: mean_tally({"x": np.array(values, float)}) for name, values in (("a", [1, 1]), ("b", [1, 3]))}
    table = compared(tallies, mean_tally({"x": np.array([0.0, 1.0])}), kind="k")
    assert table["model"].tolist() == [MEAN, "a", "b"] and table["difference"].tolist() == [1, 0.5, 1.5]
    assert table["low"].isna().tolist() == [False, True, True] and set(table["kind"]) == {"k"}
    assert len(compared({"a": tallies["a"]})) == 1


def test_preferences_are_those_of_the_losses_and_of_held_out_scenes(before, tuned, pairs):
    assert len(pairs) == 8 and all(int(name.rsplit("-", 1)[1]) % 10 == 9 for name in pairs["id"])  # of the test split
    found = preference_tables(before, tuned, pairs)
    margins, likely = found["margins"], found["likelihood"]
    own = pick(margins, pictures="own", kind="all", model=MEAN).set_index("metric")
    parts = pick(margins, pictures="own", model=MEAN, metric="text_margin")
    parts = parts[parts["kind"] != "all"]
    assert own.loc["text_margin", "after"] == pytest.approx(np.average(parts["after"], weights=parts["n"]))
    assert own.loc["text_margin", "after"] == pytest.approx(
        own.loc["chosen_reward", "after"] - own.loc["rejected_reward", "after"]
    )
    assert own.loc["text_margin", "before"] == 0 and own.loc["text_accuracy", "before"] == 0.5
    assert set(margins["pictures"]) == {"own", "other", "blank"} and set(margins["model"]) == {MEAN, "a", "b"}
    assert "visual_margin" not in set(pick(margins, pictures="blank")["metric"])
    drift = pick(likely, pictures="own", kind="all", model=MEAN, metric="chosen_logp_a_token").iloc[0]
    assert drift["difference"] == pytest.approx(own.loc["drift", "after"], abs=1e-6)


def test_scores_are_those_of_an_evaluation_of_each_model(before, tuned):
    benchmark, kept = open_benchmark("pope-scenes", limit=12), {}
    table = hallucination_table(before, tuned, benchmark, kept=kept.__setitem__)
    assert list(kept) == ["before", "a", "b"]
    alone = evaluate(tuned["a"], benchmark, [Greedy()], progress=False).table
    for split in ("random", "adversarial", "mean"):
        one = pick(table, model="a", split=split, metric="accuracy").iloc[0]
        assert one["after"] == pick(alone, split=split, metric="accuracy").iloc[0]["mean"]
    mean = pick(table, model=MEAN, split="mean", metric="accuracy").iloc[0]
    each = table[(table["model"] != MEAN) & (table["split"] == "mean") & (table["metric"] == "accuracy")]
    assert mean["after"] == pytest.approx(each["after"].mean()) and mean["seeds"] == 2


def test_descriptions_are_compared_at_equal_length_and_with_recall(before, colour):
    table = hallucination_table(before, colour, open_benchmark("chair-scenes", limit=4))
    assert set(table["split"]) == {"all", "same length"}
    assert {"chair_i", "chair_s", "recall", "mean_length"} <= set(table["metric"])


def test_skill_is_paired_over_questions(before, colour):
    found = answer_table(before, colour, {"number": skill_set("number", 8), "colour": skill_set("colour", 8)})
    right = found[found["metric"] == "accuracy"].set_index("kind")
    assert right.loc["all", "after"] == pytest.approx(right.loc[["number", "colour"], "after"].mean())
    assert right["n"].tolist() == [8, 8, 16] and set(found["metric"]) == {"accuracy", "loss"}
    same = answer_table(before, before, {"number": skill_set("number", 4)})
    assert not same["difference"].any()


def test_every_lens_has_a_curve_and_the_numbers_are_the_means_of_theirs(before):
    assert set(CURVES) == set(LENSES)
    found = lens_values(before, [list(framed_scenes(8))])
    assert (
        {lens for lens, _ in found.numbers}
        == {lens for lens, _, _ in found.curves}
        == {lens.title for lens in LENSES.values()}
    )
    for quantity in ("attention on the picture", "attention on the sink"):
        along = [values[0] for (_, name, _), values in found.curves.items() if name == quantity]
        assert np.mean(along) == pytest.approx(found.numbers["Attention shift", quantity][0])


def test_lenses_before_and_after(before, tuned):
    found = lens_tables(before, tuned, list(framed_scenes(8)))
    lenses, layers = found["lenses"], found["layers"]
    mean = pick(lenses, model=MEAN)
    assert set(mean["lens"]) == {lens.title for lens in LENSES.values()} and (mean["seeds"] == 2).all()
    each = lenses[lenses["model"] != MEAN].groupby("quantity")["change"].mean()
    pd.testing.assert_series_equal(
        mean.set_index("quantity")["change"].sort_index(), each.sort_index(), check_names=False
    )
    first = pick(layers, model=MEAN, layer=0)
    inputs = first[~first["lens"].isin(["Attention shift", "Outliers", "Shared weights"])]
    assert len(inputs) and not inputs["change"].any()  # what enters the decoder is not changed by an adapter in it


def test_a_model_against_itself_moves_nothing(before):
    found = lens_tables(before, open_vlm("organism", device="cpu"), list(framed_scenes(8)))
    assert not found["lenses"]["change"].any() and not found["layers"]["change"].any()
    states = concept_tables(before, open_vlm("organism", device="cpu"), caption_set(24))
    assert not states["state_shift"]["move"].any() and not states["concept_shift"]["magnitude"].any()


def test_states_are_matched_by_sample(before, tuned):
    found = concept_tables(before, tuned, caption_set(24), k=2)
    sites, concepts = found["state_shift"], found["concept_shift"]
    assert list(pick(sites, model=MEAN)["site"])[-1] == "final" and (sites["common"] <= sites["move"] + 1e-9).all()
    assert pick(concepts, model="a")["n"].sum() == pick(sites, model="a", site="final")["n"].item()


def test_the_whole_of_it_writes_a_run_and_goes_on_behind_its_last_part(before, colour, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "concept_tables", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        against(before, colour, limit=2, root=tmp_path)
    (path,) = (tmp_path / "against").iterdir()
    begun = load_run(path)
    assert begun.manifest["parts"].keys() == {"preferences", "kl", "scores", "knowledge", "lenses"}
    monkeypatch.undo()
    for part in ("preference_tables", "kl_table", "lens_tables"):
        monkeypatch.setattr(module, part, None)  # not asked again
    with pytest.raises(UserError, match="another seed"):
        against(before, colour, limit=2, seed=1, run=begun.resume())
    study = against(before, colour, limit=2, run=load_run(path).resume())
    kept = load_run(study.path)
    assert kept.finished and {"margins", "kl", "scores", "retention", "skill", "lenses", "layers", "summary"} <= {
        file.stem for file in (study.path / "tables").iterdir()
    }
    assert {figure.name for figure in study.figures} == {
        "margins",
        "changes",
        "divergence",
        "layers_changed",
        "states_moved",
    }
    assert all("n =" in figure.note and "interval" in figure.note for figure in study.figures)
    assert (study.path / "answers" / "chair-scenes.after.jsonl").is_file()
    assert kept.manifest["trainings"] == 1 and len(study.claims) == 8 and not kept.manifest["same_answers"]
    assert "n = " in " ".join(study.found)


def test_verdicts_by_hand():
    def row(group, quantity, change, low, high, n=100):
        return dict(
            group=group, quantity=quantity, before=0.0, after=change, change=change, low=low, high=high, sd=0.0, n=n
        )

    table = pd.DataFrame([
        row("made up", "CHAIR_i, mentions made up", -0.1, -0.2, -0.05), row("made up", "Accuracy, adversarial", -0.1, -0.2, 0.1),
        row("preferences", "log-probability of the chosen answer a token", -0.1, -0.2, -0.05),
        row("text alone", "all questions", 0.0, 0.0, 0.0), row("skill elsewhere", "all questions", 0.0, 0.0, 0.0, 200),
    ])  # fmt: skip
    verdicts = [claim.holds for claim in claims({"summary": table})]
    assert verdicts == [False, True, None, None, True]  # of 100 equal answers three in a hundred may yet be lost
    assert summary({}).empty


def test_the_same_model_is_told(before, adapters, tuned):
    zero = open_vlm("organism", adapter=adapters["zero"], device="cpu")
    assert same_answers(before, {"zero": zero, "a": tuned["a"]}) == ["zero"]


def test_models_that_cannot_be_compared(before, tuned):
    for after, words in (({}, "give one or more"), ({"mean": tuned["a"]}, "none called mean"), (open_vlm(model=tiny("qwen2_vl")[0]), "compare a model with what it was tuned from")):  # fmt: skip
        with pytest.raises(UserError, match=words) as caught:
            trainings(before, after)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="limit 0"):
        against(before, tuned, limit=0)


def test_sizes_follow_the_limit():
    assert (Sizes(100).asked, Sizes(100).pairs, Sizes(100).lenses) == (60, 60, 48)
    assert (Sizes(1).asked, Sizes(1).pairs, Sizes(1).lenses) == (2, 6, 8)


def test_adapters_are_named_by_the_end_of_their_path():
    assert adapter_names(["x/one", "x/two"], "m") == {"one": "x/one", "two": "x/two"}
    assert adapter_names(["1/dpo", "2/dpo"], "m") == {"1-dpo": "1/dpo", "2-dpo": "2/dpo"}
    assert adapter_names([None], "organism/colour") == {"colour": None}
    assert adapter_names(["x/before"], "m") == {"tuned-before": "x/before"}
    with pytest.raises(UserError, match="given twice"):
        adapter_names(["x", "x"], "m")


# -- as it is typed ----------------------------------------------------------------------------------------------------


def test_a_benchmark_alone_over_trainings(chiasm, adapters):  # noqa: F811
    told = [part for name in ("a", "b") for part in ("--adapter", str(adapters[name]))]
    code, out, err = chiasm("evaluate", "pope-scenes", *told, "--against", "organism", "--limit", "6")
    assert code == 0, err
    run = load_run(out.splitlines()[-1])
    assert run.path.parent.name == "against" and run.manifest["parts"] == {"scores": ["scores"]}
    assert "Accuracy, adversarial" in out and "s.d. of trainings" in out and "a" in run.manifest["against"]["weights"]
    lines = (run.path / "answers" / "pope-scenes.b.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["id"] and len(lines) == run.read_table("scores").query("split == 'mean'")["n"].iloc[0]
    code, out, err = chiasm("evaluate", "--resume", str(run.path))
    assert code == 0 and "nothing was measured again" in err and "Accuracy" in out


def test_an_adapter_that_changes_nothing_is_told(chiasm, adapters):  # noqa: F811
    code, _, err = chiasm(
        "evaluate", "pope-scenes", "--adapter", str(adapters["zero"]), "--against", "organism", "-n", "6"
    )
    assert code == 0 and "zero computes what the model before computes, bit for bit" in err


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (["--against", "organism", "--method", "damro"], "--method and --against exclude each other"),
        (["--against", "organism", "--pairs", "nowhere"], "holds no finished pairs"),
        (["--against", "organism", "--adapter", "nowhere"], "'nowhere' cannot be put on"),
        (["--against", "organism", "--limit", "0"], "--limit 0"),
        (["pope-scenes", "--against", "organism", "--pairs", "nowhere"], "only that is asked"),
        (["pope-scenes", "--pairs", "nowhere"], "name the model before tuning"),
        (["pope-scenes", "--adapter", "x", "--adapter", "y"], "name that with --against"),
    ],
)
def test_mistakes(refused, told, words):  # noqa: F811
    assert words in refused("evaluate", *told)
