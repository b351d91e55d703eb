"""The states that predict a word: what a model's residual stream holds at the moment before it says it.

For a word whose first token stands at index p of the sequence this is the state of position p - 1. Two passes a batch: the model
answers (greedy, left-padded), then reads its own answer in one forward pass in which hooks keep the selected positions alone.
Source: CoX-LMM (arXiv 2406.08074), section 3, whose right alignment of states and ids this is, with explicit positions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..models.inputs import Inputs
from ..models.trace import expand_sites
from ..scenes.errors import UserError
from ..scenes.sample import BadSample, Sample
from .loader import Data, Loader
from .reading import continued, read_positions

SITES = r"blocks\.\d+\.resid_post|final"


@dataclass(frozen=True)
class WordStates:
    """States (M, D), fp32 on the CPU, by site, of the samples in which the word was found, in the order of the data.

    words: the spellings looked for (none: the mean over the caption). index: (M,) positions of the samples in the data. ids: their
    names. captions: what the model said. target: (M,) id of the token the state predicts, -1 for a caption's mean. seen: samples
    that were captioned; without: those of them that do not hold the word; skipped: samples that could not be read.
    """

    states: dict[str, Tensor]
    words: tuple[str, ...]
    index: Tensor
    ids: tuple[str, ...]
    captions: tuple[str, ...]
    target: Tensor
    seen: int
    without: int
    skipped: int

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, site: str) -> Tensor:
        return self.states[site]


def extract(
    vlm, samples: Iterable[Sample | BadSample], word: str | Sequence[str] | None, *, sites: str | Sequence[str] = "final",
    in_answer: bool = False, max_new_tokens: int = 50, batch_size: int = 32, limit: int | None = None, **generation,
) -> WordStates:  # fmt: skip
    """The states from which the model predicts `word`, one for each sample whose caption holds it.

    word: a word, several spellings or words of which the first one said counts, or None for the mean of the states that predict the
    caption (up to its end token; where there is none the last is left out). Whole words are found, upper or lower case; a word of
    several tokens counts from its first. in_answer: keep a sample only if its own answer (the truth) holds a word, too. sites:
    `blocks.K.resid_post` (`*` for all) and `final`, after the final norm. generation: for the model's `generate`. Samples without the
    word are left out, as are those whose caption up to it holds an image token. Raises UserError, one line, when no sample is left.
    """
    words = () if word is None else (word,) if isinstance(word, str) else tuple(word)
    if word is not None and not all(one.strip() for one in words or ("",)):
        raise UserError(f"word {word!r} must be a word or several, or None for the mean over the caption")
    sites = _checked(vlm, sites)
    found, skipped, seen, read = [], [], 0, {site: [] for site in sites}
    for batch in Loader(vlm, Data(_asked(samples), limit), batch_size):
        skipped += batch.skipped
        seen += batch.n
        for inputs in batch.inputs:
            said = said_tokens(vlm, vlm.generate_ids(inputs, max_new_tokens=max_new_tokens, **generation))
            hits = [_hit(vlm, sample, ids, words, in_answer) for sample, ids in zip(inputs.samples, said, strict=True)]
            kept = [b for b, hit in enumerate(hits) if hit is not None]
            if not kept:
                continue
            states = _read(vlm, inputs, kept, [said[b] for b in kept], [hits[b].offsets for b in kept], sites)
            for site in sites:
                read[site].append(states[site].float().cpu())
            found += [hits[b] for b in kept]
    if not seen:
        raise UserError(
            f"none of the {len(skipped)} samples could be read; the first, {skipped[0].id!r}: {skipped[0].reason}"
        )
    if not found:
        raise UserError(_nothing(words, seen, in_answer))
    return WordStates(
        {site: torch.cat(values) for site, values in read.items()}, words, torch.tensor([hit.position for hit in found]),
        tuple(hit.id for hit in found), tuple(hit.caption for hit in found), torch.tensor([hit.target for hit in found]),
        seen, seen - len(found), len(skipped),
    )  # fmt: skip


def word_index(tokenizer, ids: Sequence[int], words: Sequence[str]) -> int | None:
    """Index in `ids` of the first token of the first whole word among `words` (any case); None where none is said.

    "cat" is not found in "category". Found in the text and traced back to the token in which it begins, so that leading
    spaces, capitals and sub-tokens need no list of forms.
    """

    def text(n: int) -> str:  # a character of which some bytes are still to come is no character yet
        return tokenizer.decode(ids[:n], clean_up_tokenization_spaces=False).rstrip("\N{REPLACEMENT CHARACTER}")

    match = _whole(words).search(text(len(ids)))
    return None if match is None else next(i for i in range(len(ids)) if len(text(i + 1)) > match.start())


def says(text: str, words: Sequence[str]) -> bool:
    """Whether a text holds one of the words, whole, in any case."""
    return _whole(words).search(text) is not None


def _whole(words: Sequence[str]) -> re.Pattern:
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, words))})(?!\w)", re.IGNORECASE)


def said_tokens(vlm, generated: Tensor) -> list[list[int]]:
    """Ids of each row up to and with its first end token; without padding."""
    ends = vlm.anatomy.model.generation_config.eos_token_id
    ends = {vlm.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
    rows = []
    for row in generated.tolist():
        end = next((i for i, token in enumerate(row) if token in ends), len(row) - 1)
        rows.append(row[: end + 1])
    return rows


def logit_check(vlm, states: WordStates) -> float:
    """Share of samples whose final-normed state has the token that came next as its largest logit: 1 under greedy decoding."""
    logits = vlm.anatomy.unembed(states["final"].to(vlm.device))
    return (logits.argmax(-1).cpu() == states.target).double().mean().item()


def matched(a: WordStates, b: WordStates) -> tuple[Tensor, Tensor]:
    """Rows of a and of b that are the same sample: those in which both models said the word. UserError when there are none."""
    rows = {position: row for row, position in enumerate(b.index.tolist())}
    pairs = [(row, rows[position]) for row, position in enumerate(a.index.tolist()) if position in rows]
    if not pairs:
        raise UserError(
            f"of {len(a)} and {len(b)} samples with the word none is the same: both models must say it of one picture"
        )
    return tuple(torch.tensor(column) for column in zip(*pairs, strict=True))


@dataclass(frozen=True)
class _Asked(Sample):
    """A sample without its answer, which must not be read with the prompt, and where it was in the data."""

    reference: str | None = None
    position: int = 0


@dataclass(frozen=True)
class _Hit:
    """offsets: indices in the answer of the tokens whose predicting states are averaged."""

    position: int
    id: str
    caption: str
    target: int
    offsets: Sequence[int]


def _asked(samples: Iterable[Sample | BadSample]) -> Iterator[Sample | BadSample]:
    for i, one in enumerate(samples):
        yield _Asked(one.id, one.prompt, one.images, None, one.truth, one.answer, i) if isinstance(one, Sample) else one


def _hit(vlm, sample: _Asked, ids: list[int], words: tuple[str, ...], in_answer: bool) -> _Hit | None:
    caption = vlm.tokenizer.decode(ids, skip_special_tokens=True).strip()
    if in_answer and not says(sample.reference or "", words):
        return None
    if words:
        at = word_index(vlm.tokenizer, ids, words)
        offsets = None if at is None else [at]
    else:
        offsets = list(range(len(ids) - 1)) or None
    if offsets is None or vlm.anatomy.image_token_id in ids[: offsets[-1]]:
        return None
    return _Hit(sample.position, sample.id, caption, ids[offsets[0]] if words else -1, offsets)


def _read(
    vlm, inputs: Inputs, kept: list[int], said: list[list[int]], offsets: list[Sequence[int]], sites
) -> dict[str, Tensor]:
    """The second pass, over the rows that hold the word, each answer fed no further than is read."""
    if len(kept) < len(inputs):
        chosen = [inputs.samples[b] for b in kept]
        inputs = replace(vlm.prepare([s.images for s in chosen], [s.prompt for s in chosen]), samples=tuple(chosen))
    fed = [ids[: at[-1]] for ids, at in zip(said, offsets, strict=True)]
    return read_positions(vlm, *continued(vlm, inputs, fed), offsets, sites)


def _checked(vlm, sites: str | Sequence[str]) -> list[str]:
    names = expand_sites(vlm.anatomy, [sites] if isinstance(sites, str) else list(sites))
    for name in names:
        if not re.fullmatch(SITES, name):
            raise UserError(f"site {name!r} holds no state that predicts a word: use blocks.K.resid_post or final")
    return names


def _nothing(words: tuple[str, ...], seen: int, in_answer: bool) -> str:
    if not words:
        return f"none of the {seen} samples was given a caption: look at what the model generates"
    also = " and answers at once" if in_answer else ""
    return f"the word {' / '.join(words)!r} is in none of the {seen} captions{also}: choose one this model says of these pictures"
