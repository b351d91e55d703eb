"""`chiasm generate`: a model's answers, and beside them what a change at inference makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..scenes.errors import UserError
from . import options as o
from .options import say


def generate(
    image: Annotated[
        list[Path] | None, typer.Argument(help="Pictures to show together; none: samples of --data.")
    ] = None,
    image_option: Annotated[
        list[Path] | None,
        typer.Option("--image", help="A picture, as the argument. May be given again.", metavar="FILE"),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="What to ask. <image> says where a picture goes.")
    ] = None,
    decode: o.Decode = "plain",
    alpha: o.Alpha = None,
    beta: o.Beta = 0.1,
    steer: o.Steer = None,
    scale: o.Scale = 1.0,
    positions: o.PositionsOf = "all",
    prune: o.Prune = None,
    exit_after: o.ExitAfter = None,
    boost: o.Boost = None,
    model: o.Model = "organism",
    data: o.DataSpec = "scenes",
    device: o.Device = None,
    dtype: o.Dtype = None,
    limit: o.Limit = 3,
    seed: o.Seed = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the answers here too, as JSON Lines.")] = None,
    read: o.Read = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.", metavar="N")] = 64,
    sample: Annotated[
        bool, typer.Option("--sample", help="Draw tokens at random instead of taking the likeliest.")
    ] = False,
    adapter: o.Adapter = None,
    revision: o.Revision = None,
) -> None:
    """Let a model answer about pictures, plain and changed: steered, contrasted, with tokens taken out."""
    from itertools import islice

    from ..probes.files import write_whole
    from ..scenes.pictures import open_picture
    from ..scenes.readers import DEFAULT_PROMPT
    from ..scenes.sample import BadSample, Sample

    if max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {max_new_tokens} must be at least 1")
    images = [*(image or ()), *(image_option or ())]
    if images:
        pictures = tuple(open_picture(path) for path in images)
        samples = [Sample(", ".join(map(str, images)), prompt or DEFAULT_PROMPT, pictures)]
    else:
        samples = islice(o.open_samples(data, limit=limit, seed=seed, read=read), limit)
    vlm = o.open_model(model, device=device, dtype=dtype, adapter=adapter, revision=revision)
    import torch

    from .changing import change_of

    change = change_of(
        decode=decode, alpha=alpha, beta=beta, steer=steer or (), scale=scale, positions=positions, prune=prune,
        exit_after=exit_after, boost=boost,
    )  # fmt: skip
    lines = []
    for item in samples:
        if isinstance(item, BadSample):
            say(f"{item.id}: skipped: {item.reason}", error=True)
            continue
        asked = prompt or item.prompt
        inputs = vlm.prepare([list(item.images)], [asked])
        options = {"max_new_tokens": max_new_tokens, "do_sample": sample}
        torch.manual_seed(seed)
        (answer,) = vlm.generate(inputs, **options)
        record = {"id": item.id, "prompt": asked, "answer": answer}
        say(f"{item.id}\n  {asked}")
        if change is None:
            say(f"  {answer}")
        else:
            torch.manual_seed(seed)
            (changed,) = change.generate(vlm, inputs, **options)
            record |= {"changed": changed, "change": change.name}
            say(f"  {'plain:':<10}{answer}\n  {'changed:':<10}{changed}")
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    if change is not None:
        say(f"changed: {change.name}", error=True)
    if out is not None:
        write_whole(out, "".join(lines).encode())
