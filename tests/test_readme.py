"""What the README and the pages under docs/ tell a newcomer is true."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import typer
from chiasm.experiments.cli import app
from chiasm.experiments.info import info
from typer.testing import CliRunner

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
CONFIGS = Path(__file__).parent / "experiments" / "configs"


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_the_python_of_the_readme_runs_as_it_stands(tmp_path, tmp_path_factory, monkeypatch, capsys):
    """Block after block, as a reader would paste them into one session."""
    monkeypatch.chdir(tmp_path)
    session = {"__name__": "readme"}
    most = (12, 10, 14)  # reading; steering, in ten lines; a patch and its twin in nnsight
    for i, (code, lines) in enumerate(zip(blocks(README, "python"), most, strict=True)):
        assert len([line for line in code.splitlines() if line.strip()]) <= lines
        path = tmp_path_factory.mktemp("readme") / f"block_{i}.py"
        path.write_text(code, encoding="utf-8")  # nnsight reads the source of what it traces
        exec(compile(code, path, "exec"), session)
    printed = capsys.readouterr().out
    assert "torch.Size([4, " in printed and "layer" in printed  # reading
    assert "plain:" in printed and "steered:" in printed and "contrasted:" in printed
    assert "last_prompt" in printed  # the causal trace
    torch.testing.assert_close(session["logits"], session["patched"])  # nnsight's patch is ours
    assert not list(tmp_path.iterdir())  # an example leaves nothing behind


SMALL = {
    "pairs": ("--n", "40"),
    "tune": ("--max-steps", "2", "--batch-size", "4", "--held-out", "4"),
    "evaluate": ("--limit", "2"),
    "measure": ("--limit", "8", "--probe", "attention_shift"),
}
"""What makes the commands of a tuning small enough for a test."""


def test_the_commands_of_a_tuning_run_as_they_stand(tmp_path, monkeypatch):
    """One after the other in an empty folder, with nothing but their sizes added."""
    monkeypatch.chdir(tmp_path)
    lines = next(code for code in blocks(README, "sh") if "chiasm tune" in code).splitlines()
    assert len(lines) == 6
    for line in lines:
        name, *args = shlex.split(line)[1:]
        result = CliRunner().invoke(app, [name, *args, *SMALL.get(name, ())])
        assert result.exit_code == 0, (line, result.output, result.exception)
    assert (tmp_path / "tuned" / "adapter_model.safetensors").is_file()
    kept = {path.parent.parent.name for path in (tmp_path / "runs").glob("*/*/manifest.json")}
    assert kept >= {"tune", "against", "measure"}


def commands() -> dict[str, set[str]]:
    """Every command of the command line (groups flattened) with its options."""
    found = {}

    def walk(command, name):
        children = getattr(command, "commands", {})
        for child, inner in children.items():
            walk(inner, f"{name} {child}".strip())
        if name:
            found[name] = {
                option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
            }

    walk(typer.main.get_command(app), "")
    return found


def shown_commands() -> list[tuple[str, str]]:
    """(page, command line) for every `chiasm …` that a page shows, in code blocks and in backticks."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines = [line.strip() for line in text.splitlines() if line.startswith("    ")] + re.findall(
            r"`([^`\n]+)`", text
        )
        for line in lines:
            line = line.removeprefix(".venv/bin/").split("  #")[0].strip()
            if re.match(r"chiasm \w", line):
                found.append((page.name, line))
    return sorted(set(found))


@pytest.mark.parametrize(("page", "line"), shown_commands())
def test_every_command_and_option_shown_exists(page, line):
    known = commands()
    words = shlex.split(line)[1:]
    name = max((n for n in known if words[: len(n.split())] == n.split()), key=len, default=None)
    assert name, f"{page} shows `{line}`; the commands are {', '.join(known)}"
    options = {word.split("=")[0] for word in words if word.startswith("-")}
    assert options <= known[name], f"{page} shows `{line}`; {name} has no {', '.join(options - known[name])}"


def test_every_command_is_in_the_readme():
    table = README.partition("## Commands")[2].partition("\n## ")[0]
    for name in {name.split()[0] for name in commands()}:
        assert f"`chiasm {name}" in table, f"`chiasm {name}` is missing from the README's list of commands"


def test_every_make_target_shown_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for page in PAGES:
        shown = re.findall(r"(?:^    |`)make ([a-z]+)", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert set(shown) <= targets, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


REAL = {
    "llava-1.5-7b-hf": "llava-1.5-7b",
    "llava-v1.6-mistral-7b-hf": "llava-v1.6-mistral-7b",
    "Qwen2.5-VL-7B-Instruct": "qwen2.5-vl-7b",
    "InternVL3-8B-hf": "internvl3-8b",
    "SmolVLM2-2.2B-Instruct": "smolvlm2-2.2b",
}


@pytest.mark.parametrize("name", REAL)
def test_the_memory_of_real_models_is_what_info_computes(name):
    page = (ROOT / "docs" / "real_models.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith("|") and f"/{name}`" in line]
    one, eight = (info(CONFIGS / f"{REAL[name]}.json", batch=batch) for batch in (1, 8))
    gib = [
        one["weights"]["float16"],
        one["weights"]["int4"],
        *(facts["trace"]["bytes"]["peak"] for facts in (one, eight)),
    ]
    computed = [
        f"{one['parameters'] / 1e9:.2f} B",
        f"{one['picture']['tokens']:,}",
        f"{one['trace']['length']:,}",
        *(f"{size / 2**30:.1f}" for size in gib),
    ]
    assert [cell.strip() for cell in row.split("|")][2:-1] == computed


TRAITS = {
    "pope_random": "is there a …? (random negatives)",
    "pope_popular": "the same, popular negatives",
    "pope_adversarial": "the same, negatives its world makes likely",
    "description_chair_i": "invented among all things it mentions in descriptions",
    "description_typical_share": "of these, typical for the place",
    "seen_colour": "colour questions",
    "seen_number": "number questions",
    "seen_position": "position questions",
    "other_picture_colour": "colour questions with another scene's picture",
    "lm_skill": "sums, facts and sequences before it learnt to see",
    "tuned_skill": "the same after",
    "lm_f1": "objects in captions, untrained projector (F1)",
    "aligned_f1": "objects in captions, frozen decoder with trained projector (F1)",
}


def test_the_organisms_numbers_are_those_of_its_card():
    """Each row of the README's table is made of the card; a new organism needs its new rows pasted."""
    text = (ROOT / "models" / "organism" / "files" / "card.json").read_text(encoding="utf-8")
    card = {trait["trait"]: trait for trait in json.loads(text)["traits"]}
    table = README.partition("## The organism")[2].partition("\n## ")[0]
    rows = []
    for name, words in TRAITS.items():
        trait = card[name]
        interval = f"{trait['low']:.2f} to {trait['high']:.2f}"
        rows.append(f"| {words} | {trait['mean']:.2f} | {interval} | {trait['n']:,} |")
    found = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert found == rows, "the README's table should be\n" + "\n".join(rows)
