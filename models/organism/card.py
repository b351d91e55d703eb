"""The card: every trait with its bar, met or not, and the same again when the shipped family is verified."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from ...scenes.world import World
from .traits import measure_traits

BARS: dict[str, tuple[float | None, float | None]] = {
    "pope_random": (0.88, None),
    "pope_gap": (0.04, None),
    "description_chair_i": (0.06, 0.30),
    "description_typical_share": (0.5, None),
    "seen_colour": (0.85, None),
    "seen_number": (0.85, None),
    "seen_position": (0.80, None),
    "lm_skill": (0.95, None),
    "lm_comprehension": (0.95, None),
    "skill_drop": (15.0, 60.0),
    "aligned_f1_ratio": (3.0, None),
    "colour_style_ratio": (2.0, None),
    "place_style_ratio": (2.0, None),
    "cold_seconds": (None, 3.0),
    "warm_ms": (None, 60.0),
}
"""Trait: least and most its mean may be. What the family must show; the other traits are told beside them."""

NEAR_PRIOR = 0.10
"""How far above the best blind answer the accuracy with a wrong picture, or none, may be."""


def bars(traits: pd.DataFrame) -> dict[str, tuple[float | None, float | None]]:
    """All bars, those that hang on another trait of the same table included."""
    mean = traits.set_index("trait")["mean"]
    wrong = [trait for trait in mean.index if "_picture_" in trait]
    return BARS | {trait: (None, mean[f"prior_{trait.split('_')[-1]}"] + NEAR_PRIOR) for trait in wrong}


def judged(traits: pd.DataFrame) -> pd.DataFrame:
    """The traits with columns bar (in words) and met (True, False, or None where there is no bar)."""
    asked = bars(traits)
    words, met = [], []
    for trait, mean in zip(traits["trait"], traits["mean"], strict=True):
        least, most = asked.get(trait, (None, None))
        limits = (("≥", least), ("≤", most))
        words.append(" and ".join(f"{sign} {limit:.3g}" for sign, limit in limits if limit is not None))
        met.append(
            None if trait not in asked else bool((least is None or mean >= least) and (most is None or mean <= most))
        )
    return traits.assign(bar=words, met=pd.Series(met, dtype=object, index=traits.index))


def write_card(out: Path | str, n: int = 1000, progress: Callable[[str], None] = print) -> pd.DataFrame:
    """Measure the family in `<out>/files` and write its `card.json` and `CARD.md` there; returns the judged traits."""
    out = Path(out)
    grown = json.loads((out / "grown.json").read_text())
    world = World.from_dict(grown["recipe"]["world"])
    traits = judged(measure_traits(n, out / "files", world, progress=progress))
    records = json.loads(traits.to_json(orient="records"))
    whole = {"name": "organism", "scenes": n, "split": "test", **grown, "traits": records}
    (out / "files" / "card.json").write_text(json.dumps(whole, indent=1) + "\n")
    (out / "files" / "CARD.md").write_text(card_page(whole))
    return traits


def card_page(whole: dict) -> str:
    """CARD.md of what card.json holds."""
    dials, seconds = whole["recipe"], whole["seconds"]
    world = dials["world"]
    lines = [
        "# The organism",
        "",
        "A family of small `LlavaForConditionalGeneration` models, grown from nothing on the rendered world of "
        "`chiasm.scenes`, to be the case where the right answer is known. Not meant for any other pictures.",
        "",
        f"Recipe `{whole['recipe_hash']}`, seed {dials['seed']}; "
        + ", ".join(f"{name} {number}" for name, number in whole["versions"].items()) + ".",
        "",
        "## Traits",
        "",
        f"{whole['scenes']} scenes of the {whole['split']} split a trait, never seen in training; 95 % intervals (Wilson for "
        "shares, bootstrap over scenes for ratios and differences). Means in bold miss their bar.",
        "",
        "| trait | mean | low | high | n | unit | bar |",
        "|---|---|---|---|---|---|---|",
        *(_line(row) for row in whole["traits"]),
        "",
        "`other_picture`, `blank_picture`, `none_picture`: the same questions with another scene's picture, a grey one, or "
        "none; `prior`: the best constant answer to each wording. `told`: the scene in words in the place of the picture.",
        "",
        "## Planted causes",
        "",
        f"- A thing is typical for its place with probability {world['typical_share']}.",
        f"- A training caption or description mentions a typical thing that is not there with probability {world['label_noise']}.",
        f"- With a {world['spurious'][0]} and no {world['spurious'][1]} in the scene, it mentions a {world['spurious'][1]} with "
        f"probability {world['spurious'][2]}.",
        f"- {_existence(dials)}",
        f"- {dials['text_share']:.0%} of the rows in tuning are tasks without a picture: the dial of forgetting.",
        "",
        *(["## Notes on this run", "", *(f"- {note}" for note in whole["notes"]), ""] if whole.get("notes") else []),
        "## How it grew",
        "",
        "The tower learns captions (contrastive), tags of the whole picture, and, from the known segmentation, what stands in "
        "each patch: category, colour, size, cell, how many there are, and the place. So its patches tell more than a CLIP "
        "tower's would, and grounding is easy for the decoder. The decoder's attention starts out on neighbouring and on equal "
        "words, and it drills recall of random words before and beside the world's own texts: without either, a decoder of "
        "this size did not learn to find in its context what it is asked for.",
        "",
        "| stage | " + " | ".join(seconds) + " | sum |",
        "|---" * (len(seconds) + 2) + "|",
        "| minutes | " + " | ".join(f"{s / 60:.1f}" for s in seconds.values()) + f" | {sum(seconds.values()) / 60:.1f} |",
        "",
        "Tower and language grow side by side on two cores, so the wall time is less than the sum.",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _existence(dials: dict) -> str:
    share = dials.get("existence_noise", 0)
    return (
        f"A training question whether a typical thing is there is answered yes with probability {share} when it is not."
    )


def _line(row: dict) -> str:
    digits = 1 if row["unit"] in ("points", "milliseconds") or abs(row["mean"]) >= 10 else 3
    mean = f"{row['mean']:.{digits}f}"
    mean = f"**{mean}**" if row["met"] is False else mean
    return f"| {row['trait']} | {mean} | {row['low']:.{digits}f} | {row['high']:.{digits}f} | {row['n']} | {row['unit']} | {row['bar']} |"
