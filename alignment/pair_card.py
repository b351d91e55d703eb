"""The card of a set of pairs: what it is, how it was made, what was dropped, and what its texts give away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .filters import REASONS


def card(facts: Mapping[str, Any], setup: Mapping[str, Any]) -> str:
    """The data set's card: what it is, how it was made, what was dropped and why, and whether the texts give it away."""
    n, read, gave = facts["n"], facts["read"], facts["giveaway"]
    told = "not told: fewer than 20 pairs" if gave["mean"] != gave["mean"] else (
        f"{gave['mean']:.3f} (95 % interval {gave['low']:.3f} to {gave['high']:.3f}, n = {gave['n']})"
    )  # fmt: skip
    reasons = [f"| {code} | {REASONS[code]} | {count} |" for code, count in facts["dropped"].items()]
    kinds = [f"| {kind} | {count} | {count / max(n, 1):.3f} |" for kind, count in facts["kinds"].items()]
    made = [f"| {name} | {value} |" for name, value in setup.items() if name != "config"]
    made += [f"| {name} | {value} |" for name, value in setup["config"].items()]
    return "\n".join([
        "---", "task_categories:", "- image-text-to-text", "tags:", "- preference", "- dpo", "- rdpo", f"size_categories:\n- {_size(n)}", "---",
        "", "# Preference pairs with rejected images", "",
        f"{n} pairs of {read} items. Open with `datasets.load_from_disk`. `images` holds the picture, `rejected_images` the rejected one; "
        "`chosen` and `rejected` answer `prompt`. The rejected text differs from the chosen one in words for objects, attributes or "
        "relations, which were masked and filled as the rejected picture suggests (for pictures made worse: as a retrieved one does).",
        "", "Nothing was checked but that the texts differ." if not setup["config"]["filters"] else f"Checked by `{setup['judge']}`: the rejected text is false of the picture, the chosen text less true of the rejected picture.",
        "", "## Do the texts give it away?", "",
        f"Accuracy of a text-only classifier, cross-validated: {told}; 0.5 is wanted.",
        f"Mean length difference (rejected less chosen): {facts['length_difference']:+.3f} tokens.",
        "", "## Kinds", "", "| what differs | pairs | share |", "|---|---|---|", *kinds,
        "", "## Dropped", "", "| code | why | items |", "|---|---|---|", *reasons,
        "", "Each with its reason in `dropped.jsonl`.", "", "## How it was made", "", "| setting | value |", "|---|---|", *made, "",
    ])  # fmt: skip


def counts(values: Sequence[str], order: Sequence[str]) -> dict[str, int]:
    """How often each value occurs, those that do in the order given."""
    found = Counter(values)
    return {value: found[value] for value in order if found[value]}


def _size(n: int) -> str:
    for limit, name in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K")):
        if n < limit:
            return name
    return "100K<n<1M"
