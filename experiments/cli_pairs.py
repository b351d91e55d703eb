"""`chiasm pairs`: preference pairs with rejected images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ..scenes.errors import UserError
from . import options as o
from .options import say

_BACKENDS = ("scene-truth", "self", "local", "http")  # of alignment.infill, which takes seconds to import


def pairs(
    backend: Annotated[
        str,
        typer.Option(
            help="What fills the masks: scene-truth (rendered scenes, no model), self (the model that is to be tuned), local (--other), "
            "http (--endpoint; pictures leave this machine).",
            metavar="NAME",
        ),
    ] = "scene-truth",
    model: o.Model = "organism",
    data: o.DataSpec = "scenes",
    n: Annotated[
        int | None,
        typer.Option(
            "--n", "-n", "--limit", help="Items to read, each at most one pair. Default: 200 scenes; other data: all."
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the data set.", metavar="FOLDER")] = Path("pairs"),
    mask: Annotated[
        str,
        typer.Option(
            help="balanced (one kind a text, in equal shares), all, object, attribute or relation.", metavar="KIND"
        ),
    ] = "balanced",
    rate: Annotated[
        float, typer.Option(help="Share of the words of that kind that are masked.", metavar="SHARE")
    ] = 0.5,
    rejected_image: Annotated[
        str,
        typer.Option(
            help="retrieved, counterfactual (scenes), random, crop, noise, patch-mask or blank.", metavar="KIND"
        ),
    ] = "retrieved",
    k: Annotated[int, typer.Option("--k", help="Similar pictures tried for each text.", metavar="K")] = 10,
    encoder: Annotated[
        str,
        typer.Option(
            help="What similar means: tower (the model's own), graph (scenes), or a CLIP, SigLIP or other vision model's name.",
            metavar="NAME",
        ),
    ] = "tower",
    other: Annotated[str | None, typer.Option(help="The VLM of --backend local.", metavar="NAME")] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Of --backend http: an OpenAI-style address up to /v1.", metavar="URL")
    ] = None,
    endpoint_model: Annotated[
        str | None, typer.Option(help="The model's name at the endpoint.", metavar="NAME")
    ] = None,
    key_variable: Annotated[
        str, typer.Option(help="Environment variable with the endpoint's key; may be unset.", metavar="NAME")
    ] = "OPENAI_API_KEY",
    timeout: Annotated[float, typer.Option(help="Seconds the endpoint has for an answer.", metavar="S")] = 60.0,
    retries: Annotated[int, typer.Option(help="Attempts after the first, each after a longer wait.", metavar="N")] = 4,
    price: Annotated[
        str | None,
        typer.Option(help="Of a million prompt and completion tokens, as IN,OUT; for --max-cost.", metavar="IN,OUT"),
    ] = None,
    max_cost: Annotated[float | None, typer.Option(help="Stop before more than this is spent.", metavar="COST")] = None,
    fluency: Annotated[
        float,
        typer.Option(
            help="Share of the pairs to drop, the rejected texts the model finds least likely.", metavar="SHARE"
        ),
    ] = 0.0,
    similarity: Annotated[
        str | None,
        typer.Option(
            help="A sentence encoder's name: texts with a cosine of 0.95 or more are refused, as in Re-Align.",
            metavar="NAME",
        ),
    ] = None,
    filters: Annotated[
        bool, typer.Option(help="Off: keep pairs that are not true or cannot be checked, as the published method does.")
    ] = True,
    plain: Annotated[
        bool, typer.Option("--plain", help="Strings, not conversations; for models without a chat template.")
    ] = False,
    device: o.Device = None,
    dtype: o.Dtype = None,
    seed: o.Seed = 0,
    read: o.Read = None,
    adapter: o.Adapter = None,
    revision: o.Revision = None,
    batch_size: o.BatchSize = 32,
) -> None:
    """Make preference pairs: a text, the same text with words that are false of its picture, and a similar picture of which they may be
    true. Call again with the same --out to go on after a stop."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("pairs runs on one process: start it without accelerate launch")
    if backend not in _BACKENDS:
        raise UserError(f"--backend {backend!r} is not known: use {', '.join(_BACKENDS)}")
    if backend == "local" and not other:
        raise UserError("--backend local needs a second model: name it with --other")
    if backend == "http" and not (endpoint and endpoint_model):
        raise UserError("--backend http needs --endpoint and --endpoint-model; pictures and texts are sent there")
    if batch_size < 1:
        raise UserError(f"--batch-size {batch_size} must be at least 1")
    prices = _prices(price)
    from ..alignment.encoders import open_encoder
    from ..alignment.judges import ModelJudge, SceneJudge
    from ..alignment.masking import SceneMasker, WordMasker
    from ..alignment.pair_config import PairConfig
    from ..alignment.pairs import build_pairs
    from ..alignment.sentences import SentenceSimilarity

    config = PairConfig(
        mask=mask,
        rate=rate,
        k=k,
        rejected_image=rejected_image,
        filters=filters,
        fluency=fluency,
        chat=not plain,
        seed=seed,
    )
    scenes = data == "scenes" or data.startswith("scenes:")
    n = 200 if scenes and n is None else n
    if scenes:  # what is tuned on is not what `evaluate` asks about; --read split=test makes held-out pairs
        read = ["split=train", *(read or ())]
    opened = o.open_samples("scenes:mixed" if data == "scenes" else data, limit=n, seed=seed, read=read)
    opening = {"device": device, "dtype": dtype}
    vlm = o.open_model(model, adapter=adapter, revision=revision, **opening)
    masker = SceneMasker() if scenes else WordMasker()
    if backend == "scene-truth":
        from ..alignment.scene_truth import SceneTruth

        filler = SceneTruth()
    elif backend == "http":
        from ..alignment.http_client import ChatEndpoint
        from ..alignment.http_infill import HttpInfill

        cache = out.with_name(f"{out.name}.responses")
        filler = HttpInfill(
            ChatEndpoint(
                endpoint, endpoint_model, key_variable, timeout, retries, cache=cache, prices=prices, max_cost=max_cost
            ),
            masker,
        )
    else:
        from ..alignment.self_infill import ConstrainedInfill

        filling = vlm if backend == "self" else o.open_model(other, **opening)
        filler = ConstrainedInfill(filling, masker, name=backend, batch_size=batch_size)

    def tokens(text: str) -> int:
        return len(vlm.tokenizer(text, add_special_tokens=False)["input_ids"])

    made = build_pairs(
        opened, out, backend=filler, encoder=open_encoder(encoder, vlm, device=device), masker=masker,
        judge=SceneJudge() if scenes else ModelJudge(vlm), config=config, length=(f"tokens of {vlm.name}", tokens), limit=n,
        similarity=(similarity, SentenceSimilarity(similarity, device=device), 0.95) if similarity else None,
    )  # fmt: skip
    _show(made.report)
    say(str(made.path))


def _prices(price: str | None) -> tuple[float, float]:
    try:
        into, out = (float(part) for part in (price or "0,0").split(","))
    except ValueError as error:
        raise UserError(f"--price {price!r} must be two numbers, e.g. --price 0.15,0.60") from error
    return into, out


def _show(report: dict) -> None:
    gave = report["giveaway"]
    say(f"{report['n']} pairs of {report['read']} items")
    say("  kinds: " + ", ".join(f"{kind} {count}" for kind, count in report["kinds"].items()))
    say("  dropped: " + (", ".join(f"{code} {count}" for code, count in report["dropped"].items()) or "none"))
    if gave["mean"] == gave["mean"]:
        say(f"  a classifier that sees the texts alone is right in {gave['mean']:.3f} ({gave['low']:.3f} to {gave['high']:.3f}, "
            f"n = {gave['n']}); 0.5 is wanted")  # fmt: skip
