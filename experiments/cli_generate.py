"""`chiasm generate`: a model's answers, and beside them what a change at inference makes of them."""

from __future__ import annotations

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
    steer: o.SteerOrReady = None,
    layer: o.LayerOf = None,
    scale: o.Scale = 1.0,
    positions: o.PositionsOf = "all",
    prune: o.Prune = None,
    skip: o.Skip = None,
    exit_after: o.ExitAfter = None,
    boost: o.Boost = None,
    model: o.Model = "organism",
    data: o.DataSpec = "scenes",
    device: o.Device = None,
    dtype: o.Dtype = None,
    limit: o.Limit = 3,
    seed: o.Seed = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the answers here too, as JSON Lines, each as it comes.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on behind the answers that the same command left in --out.")
    ] = False,
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

    from ..probes.record_file import RecordFile
    from ..scenes.pictures import open_picture
    from ..scenes.readers import DEFAULT_PROMPT
    from ..scenes.sample import BadSample, Sample

    if max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {max_new_tokens} must be at least 1")
    if resume and out is None:
        raise UserError("--resume goes on with a file of answers: add --out FILE")
    images = [*(image or ()), *(image_option or ())]
    if images:
        pictures = tuple(open_picture(path) for path in images)
        samples = [Sample(", ".join(map(str, images)), prompt or DEFAULT_PROMPT, pictures)]
    else:
        samples = islice(o.open_samples(data, limit=limit, seed=seed, read=read), limit)
    vlm = o.open_model(model, device=device, dtype=dtype, adapter=adapter, revision=revision)
    import torch

    from .changing import change_of
    from .ready_directions import ready_or_file

    change = change_of(
        decode=decode, alpha=alpha, beta=beta, steer=[ready_or_file(vlm, one, layer) for one in steer or ()], layer=layer,
        scale=scale, positions=positions, prune=prune, skip=skip or (), exit_after=exit_after, boost=boost,
    )  # fmt: skip
    if change is not None:
        change.check(vlm)
    if out is not None and not resume:
        out.unlink(missing_ok=True)
    kept = RecordFile(out, batch_size=1)
    before = iter(list(kept.records))
    for item in samples:
        if isinstance(item, BadSample):
            say(f"{item.id}: skipped: {item.reason}", error=True)
            continue
        asked = prompt or item.prompt
        record = {"id": item.id, "prompt": asked} | ({} if change is None else {"change": change.name})
        if (there := next(before, None)) is not None:
            if not record.items() <= there.items() or ("change" in there) != ("change" in record):
                raise UserError(f"{str(out)!r} was begun by another command, at {item.id!r}: leave out --resume")
            continue
        inputs = vlm.prepare([list(item.images)], [asked])
        options = {"max_new_tokens": max_new_tokens, "do_sample": sample}
        torch.manual_seed(seed)
        (answer,) = vlm.generate(inputs, **options)
        record |= {"answer": answer}
        say(f"{item.id}\n  {asked}")
        if change is None:
            say(f"  {answer}")
        else:
            torch.manual_seed(seed)
            (changed,) = change.generate(vlm, inputs, **options)
            record |= {"changed": changed}
            say(f"  {'plain:':<10}{answer}\n  {'changed:':<10}{changed}")
        kept.add([record])
    if change is not None:
        say(f"changed: {change.name}", error=True)
