"""The main job: look at a model through every probe and write one HTML page that opens anywhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from ..probes.measure import Measurement, measure
from ..scenes.errors import UserError
from ..scenes.sample import Sample
from .examples import examples
from .figures import Drawn, draw
from .lenses import LENSES, built_in, figures_of
from .lineage import is_organism
from .options import load_probe
from .page import SHOWN, Page, PageFigure, Section, packed_plotly, page_figure, shown_table, write_page
from .run import Run
from .studies import own_studies
from .study import DPI, Study, first_good, framed_scenes

logger = logging.getLogger("chiasm")

PAGE = "report.html"
"""The page's file in the report's run."""

SCENES, EXAMPLES = 200, 6
"""Scenes measured, and examples shown, where nothing else is asked."""

QUICK = 24
"""The limit of a quick report."""


def report(
    model="organism",
    data: str | Path | Iterable[Sample] | None = None,
    out: str | Path = "runs",
    *,
    limit: int | None = None,
    seed: int = 0,
    device=None,
    dtype=None,
    probes: Sequence | None = None,
    batch_size: int = 8,
    strict: bool = False,
    interactive: bool = True,
    progress: bool = True,
) -> Path:
    """Measures a model with every built-in probe, in one pass, and writes a page; returns the page's path.

    model: what `open_vlm` takes, or a VLM that is open. data: what `open_data` takes, or samples; default: `limit`, or 200,
    rendered scenes with text on both sides of the picture. out: folder of the runs; the page lies in the report's own run.
    probes: more probes (instances, or names as `--probe` takes them), beside the built-in ones. interactive: with plotly's
    script inside (2 MB). For the bundled model the experiments are run as well. Raises UserError, as `measure` does.
    """
    began = time.monotonic()
    vlm = _open(model, device, dtype)
    samples, described = _samples(data, limit, seed)
    first = first_good(samples, EXAMPLES, limit)
    instruments, left_out = built_in(vlm, *first[:1])
    known = {probe.name for probe in instruments}
    for one in probes or ():
        one = load_probe(one) if isinstance(one, str) else one
        if one.name not in known:
            known.add(one.name)
            instruments.append(one)
    config = {
        "model": vlm.name,
        "data": described,
        "limit": limit,
        "seed": seed,
        "batch_size": batch_size,
        "probes": sorted(known),
    }
    with Run.create("report", config, out) as run:
        logger.info(f"measuring {vlm.name} on {described}")
        result = measure(
            vlm,
            samples,
            instruments,
            run=run,
            batch_size=batch_size,
            limit=limit,
            strict=strict,
            progress=progress,
            seed=seed,
        )
        sections = [_section(probe, result, run) for probe in instruments]
        shown = examples(vlm, first)
        studies = own_studies(vlm, seed=seed, limit=limit, root=out, device=device, dtype=dtype)
        page = _page(
            vlm,
            described,
            result,
            run,
            sections,
            shown,
            studies,
            left_out,
            time.monotonic() - began,
            batch_size,
            interactive,
        )
        (run.path / PAGE).write_text(write_page(page), encoding="utf-8")
        run.log(f"page written after {time.monotonic() - began:.0f} s")
    return run.path / PAGE


def _open(model, device, dtype):
    from ..models import VLM, open_vlm

    return model if isinstance(model, VLM) else open_vlm(model, device=device, dtype=dtype)


def _samples(data, limit: int | None, seed: int):
    """The samples, and what they are called. Samples that can be read once only are kept up to the limit."""
    if limit is not None and limit < 1:
        raise UserError(f"limit {limit} must be at least 1, or left out to read everything")
    if data is None or data == "scenes":
        n = limit or SCENES
        return framed_scenes(
            n, seed
        ), f"{n} rendered scenes of the test split, described at length, text before and behind the picture"
    if isinstance(data, str | Path):
        from .options import open_samples

        data = open_samples(str(data), limit=limit, seed=seed)
    elif iter(data) is data:
        data = list(islice(data, limit))
    called = getattr(data, "called", None)
    return data, called() if called else type(data).__name__


def _section(probe, result: Measurement, run: Run) -> Section:
    """A probe's part of the page: its figures, or for a user's own probe what its `draw` draws, or its table."""
    table = result.tables[probe.name]
    section = "probe-" + probe.name.replace("_", "-")
    lens = LENSES.get(probe.name)
    title = lens.title if lens else probe.name
    figures = []
    for figure in figures_of(probe.name, table):
        figures.append(_kept(draw(figure), section, run, f"{probe.name}.{figure.name}"))
    tables = []
    drawing = getattr(probe, "draw", None)
    if drawing is not None:
        about = (type(probe).__doc__ or "").strip().split("\n")[0]
        own = Drawn(
            probe.name, title, about, f"Figure of probe {probe.name}", f"n = {result.n:,} samples",
            drawing(table), None,
        )  # fmt: skip
        figures.append(_kept(own, section, run, probe.name))
    elif not figures:
        tables.append(shown_table(f"Table of probe {probe.name}", table))
    about = [lens.intro] if lens else [(type(probe).__doc__ or "").strip().split("\n\n")[0]]
    return Section(section, title, [line for line in about if line], figures, tables)


def _kept(drawn: Drawn, section: str, run: Run, name: str) -> PageFigure:
    """Writes a figure into the run, and takes its picture from there: it is drawn once."""
    written = run.figure(name, drawn.picture, drawn.interactive, dpi=DPI)
    return page_figure(section, drawn, written[0].read_bytes() if written[0].exists() else None)


def _study_section(study: Study) -> Section:
    section = "experiment-" + study.path.parent.name
    figures = []
    for drawn in study.figures:
        png = study.path / "figures" / f"{drawn.name}.png"
        figures.append(page_figure(section, drawn, png.read_bytes() if png.exists() else None))
    notes = [*study.found, f"Run: {study.path.parent.name}/{study.path.name}"]
    return Section(section, study.title, study.intro, figures, (), notes)


def _page(vlm, described, result, run, sections, shown, studies, left_out, seconds, batch_size, interactive) -> Page:
    cards, claims = [], []
    for name, table in result.tables.items():
        if lens := LENSES.get(name):
            cards += lens.cards(table)
            claims += lens.claims(table)
    for study in studies:
        said = {claim.claim for claim in claims}
        claims += [
            claim for claim in study.claims if claim.claim not in said
        ]  # a lens has told the same of more samples
    anatomy, versions = vlm.anatomy, run.manifest["versions"]
    facts = [
        ("Model", f"{vlm.name} ({anatomy.family}, {vlm.n_parameters:,} parameters, {anatomy.n_layers} layers × {anatomy.n_heads} heads × {anatomy.hidden_size})"),
        ("Weights", f"hash {vlm.fingerprint()}" + (f", revision {vlm.revision}" if vlm.revision else "")),
        ("Data", described),
        ("Samples", f"{result.n:,} measured, {len(result.skipped):,} skipped"),
        ("Device, type", f"{vlm.device}, {str(vlm.dtype).removeprefix('torch.')}, batches of {batch_size}"),
        ("Seed", str(run.manifest.get("seed"))),
        ("Time", f"{result.seconds:.1f} s for the measurement, {seconds:.0f} s in all"),
        ("Memory", ", ".join(f"{kind} {value:,.0f} MiB at most" for kind, value in (run.manifest.get("peak_memory_mb") or {}).items())),
        ("Run", f"{run.path.parent.name}/{run.path.name.removesuffix('.partial')} (tables, figures, manifest and log are there)"),
        ("Command", run.manifest["command"]),
    ]  # fmt: skip
    every = [*sections, *[_study_section(study) for study in studies]]
    if not interactive:
        every = [replace(one, figures=[replace(figure, data="") for figure in one.figures]) for one in every]
    live = any(figure.data for section in every for figure in section.figures)
    return Page(
        title=f"Where vision meets language in {vlm.name}",
        lead=f"{result.n:,} samples, {len(result.tables)} {'probe' if len(result.tables) == 1 else 'probes'} in one pass, {datetime.now(UTC):%d %B %Y}. Every number has its n and a 95 % interval.",
        facts=facts,
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
        sections=every,
        limits=limits(vlm, result, studies, left_out),
        footer=f"Written by chiasm {versions.get('chiasm', '')} on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. The page is complete in itself and loads nothing.",
        cards=cards,
        claims=claims,
        examples=shown,
        examples_intro="The first samples as the model met them, with its greedy answer; ▣ is where the picture stands. Scenes are drawn larger here than the model sees them.",
        skipped=[(str(row.id), str(row.reason)) for row in result.skipped.head(SHOWN).itertuples()],
        skipped_total=len(result.skipped),
        plotly=packed_plotly() if live else "",
    )  # fmt: skip


def limits(vlm, result: Measurement, studies: Sequence[Study], left_out: dict[str, str]) -> list[str]:
    """What was not run and what these numbers cannot say."""
    notes = []
    if str(vlm.device).startswith("cpu"):
        notes.append(
            "Not run here: any GPU, half precision, several devices. Numbers are of this machine's CPU in the type named above."
        )
    if is_organism(vlm):
        notes.append(
            f"Not run here: large checkpoints. The bundled model has {vlm.n_parameters / 1e6:.1f} M parameters, was trained on rendered scenes "
            "only, and is a test case with known truth; what holds for it need not hold for a model people use, nor the reverse."
        )
    else:
        notes.append(
            "Not run here: the experiments on alignment across checkpoints and on forgetting, which need the stages of one model and are about the bundled family."
        )
    notes.append(
        "Intervals tell of other samples from the same source, not of other models, seeds or prompts. Verdicts are not corrected for there being several; "
        "treat a single one as a hint."
    )
    notes += [f"Not applicable: {title}: {reason}." for title, reason in left_out.items()]
    for study in studies:
        stages = [table["stage"] for table in study.tables.values() if "stage" in table]
        n = len(stages[0].unique()) if stages else None
        if n and n < 12:
            notes.append(
                f"{study.title}: n = {n} models. No correlation over so few decides anything, and none is claimed."
            )
    if result.n < 100:
        notes.append(
            f"Only n = {result.n} samples were measured: intervals are wide, and the permutation tests weak. Give a larger --limit."
        )
    notes.append("Numbers reported in papers are not shown beside these: other models, other data.")
    return notes
