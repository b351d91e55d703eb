"""`chiasm measure`: probes over a data set."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options as o
from .options import say


def measure(
    context: typer.Context,
    probe: o.ProbeNames = None,
    model: o.Model = "organism",
    data: o.DataSpec = "scenes",
    device: o.Device = None,
    dtype: o.Dtype = None,
    limit: o.Limit = None,
    seed: o.Seed = 0,
    out: o.Out = o.RUNS,
    read: o.Read = None,
    batch_size: o.BatchSize = 8,
    checkpoint_every: Annotated[int, typer.Option(help="Batches between two checkpoints.", metavar="N")] = 20,
    strict: o.Strict = False,
    adapter: o.Adapter = None,
    revision: o.Revision = None,
    resume: o.Resume = None,
) -> None:
    """Run probes over a data set in one pass and write their tables."""
    from ..probes.measure import measure
    from ..probes.processes import join_processes
    from .lenses import chosen
    from .run import Run
    from .study import first_good

    join_processes()
    config, begun = o.begun_config(context, resume, "measure", out)
    for name in config["probe"] or ():
        o.load_probe(name)  # a name that is wrong is told before a model is opened
    opening = {name: config[name] for name in ("device", "dtype", "adapter", "revision")}
    vlm = o.open_model(config["model"], **opening)
    # Probes of the picture's place in the text need text on both sides of it.
    samples = o.open_samples(
        config["data"], limit=config["limit"], seed=config["seed"], read=config["read"], frame="long"
    )
    probes = chosen(config["probe"], vlm, *first_good(samples, limit=config["limit"]))
    how = {name: config[name] for name in ("limit", "seed", "batch_size", "checkpoint_every", "strict")}
    if begun is not None and begun.finished:
        result, path = measure(vlm, samples, probes, run=begun, **how), begun.path
        say("this run is complete: these are its tables, nothing was measured again", error=True)
    else:
        with begun.resume() if begun is not None else Run.create("measure", config, out) as kept:
            result = measure(vlm, samples, probes, run=kept, **how)
        path = kept.path
    for name, table in result.tables.items():
        say(f"{name}: {len(table)} rows\n{table.head(8).to_string(index=False)}\n")
    skipped = f", {len(result.skipped)} skipped (see tables/skipped.parquet)" if len(result.skipped) else ""
    say(f"{result.n} samples{skipped}, {result.seconds:.1f} s", error=True)
    say(str(path))
