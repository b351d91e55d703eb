"""The objects a text mentions: CHAIR's matcher, from words to canonical names (Rohrbach et al. 2018, arXiv 1809.02156)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from ..scenes.errors import UserError
from ..scenes.words import PLURALS
from .coco_words import ANIMALS, COCO, NO_OBJECT, VEHICLES

MODES = ("nouns", "singular", "lemma")

IRREGULAR = {
    "tvs": "tv", "men": "man", "women": "woman", "people": "person", "persons": "person", "children": "child", "feet": "foot",
    "teeth": "tooth", "geese": "goose", "mice": "mouse", "oxen": "ox", "wolves": "wolf", "knives": "knife", "wives": "wife",
    "calves": "calf", "leaves": "leaf", "loaves": "loaf", "shelves": "shelf", "scarves": "scarf", "halves": "half",
    "lives": "life", "thieves": "thief", "buses": "bus", "gases": "gas", "lenses": "lens", "canvases": "canvas",
    "movies": "movie", "cookies": "cookie", "ties": "tie", "bowties": "bowtie", "neckties": "necktie", "pies": "pie",
    "potatoes": "potato", "tomatoes": "tomato", "heroes": "hero", "axes": "axe", "selfies": "selfie", "birdies": "birdie",
    "collies": "collie", "hoodies": "hoodie", "brownies": "brownie", "aircraft": "aircraft",
}  # fmt: skip
_COMPOUND = re.compile(r"(\w+)(men|women|people|children)$")  # policemen, sportspeople, grandchildren
_SIBILANT = re.compile(r"(?:s|x|z|ch|sh)es$")
_HELD = re.compile(r"(?:ss|us|tennis|this|chassis|news|scissors|shears|pants|jeans|shorts|trousers|series|species)$")
_WORD = re.compile(r"[^\W\d_]+")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


def singular(word: str) -> str:
    """The singular of a noun by rules of English spelling; words that are no plural mostly stay."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    if compound := _COMPOUND.match(word):
        return compound[1] + IRREGULAR[compound[2]]
    if len(word) < 4 or not word.endswith("s") or _HELD.search(word):
        return word
    if word.endswith("ies"):
        return f"{word[:-3]}y"
    if _SIBILANT.search(word):  # houses and vases keep their e, glasses and boxes do not
        return word[:-1] if re.search(r"[^s]ses$|[^tz]zes$|aches$", word) else word[:-2]
    return word[:-1]


class Matcher:
    """Text -> the canonical name of every object mentioned, in order, repetitions kept.

    Words are lower-cased and reduced; words that belong together are joined, the longest first, from left to right, and a
    joined one that names nothing (home plate) is no object, nor are its parts. baby or adult before an animal, passenger
    before a vehicle, and seat in a text with a toilet are no objects of their own.

    synonyms: canonical name -> its words (default: `COCO`); the name itself is one of them. mode: how words are reduced.
    nouns: plurals of nouns by rules and exceptions, words of the table left as they are. singular: the same rules on every
    word (the release of 2018). lemma: WordNet's lemma by part of speech (the forks since), which misses "men" and takes
    "skiing" for skis; it needs nltk with its data. no_object: phrases that say something else than the words in them.
    Raises UserError.
    """

    def __init__(
        self,
        synonyms: Mapping[str, Iterable[str]] | None = None,
        mode: str = "nouns",
        *,
        no_object: Iterable[str] = NO_OBJECT,
    ):
        if mode not in MODES:
            raise UserError(f"mode {mode!r} is not known: use {', '.join(MODES)}")
        self.mode = mode
        self.names = frozenset(COCO if synonyms is None else synonyms)
        self._lemmas = _nltk_lemmas() if mode == "lemma" else None
        spoken: dict[tuple[str, ...], str] = {}
        for name, words in (COCO if synonyms is None else synonyms).items():
            if isinstance(words, str):
                raise UserError(f"synonyms of {name!r} are the text {words!r}: give a list of words")
            for phrase in dict.fromkeys([name, *words]):
                key = _words(phrase)
                if spoken.setdefault(key, name) != name:
                    raise UserError(f"{phrase!r} stands for {spoken[key]!r} and for {name!r}: give it to one of them")
        self._meant: dict[tuple[str, ...], str | None] = dict(spoken)
        for phrase in [*spoken, *(tuple(pair.split()) for pair in no_object)]:  # "skis" is found by "ski" too
            self._meant.setdefault(_singulars(phrase), spoken.get(phrase))
        self._longest = max(map(len, self._meant), default=1)

    def __call__(self, text: str) -> list[str]:
        return [name for name, _, _ in self.places(text)]

    def places(self, text: str) -> list[tuple[str, int, int]]:
        """(canonical name, start, end) of every object mentioned, in order; its words are text[start:end]."""
        if not isinstance(text, str):
            raise UserError(f"a caption is text, got {text!r}: give an empty text where the model said nothing")
        forms, at = self._forms(text), [match.span() for match in _WORD.finditer(text.lower())]
        toilet, n, i = "toilet" in forms[-1], len(forms[-1]), 0
        found: list[tuple[tuple[str, ...], str | None, int]] = []
        while i < n:
            # the longest phrase first, each as written before it is reduced
            phrases = (form[i : i + size] for size in range(min(self._longest, n - i), 0, -1) for form in forms)
            phrase = next((phrase for phrase in phrases if phrase in self._meant), forms[-1][i : i + 1])
            found.append((phrase, self._meant.get(phrase), i))
            i += len(phrase)
        return [
            (name, at[i][0], at[i + len(phrase) - 1][1])
            for (phrase, name, i), (_, after, _) in zip(found, [*found[1:], ((), None, n)], strict=False)
            if name is not None
            and not (phrase in (("baby",), ("adult",)) and after in ANIMALS)
            and not (phrase == ("passenger",) and after in VEHICLES)
            and not (phrase == ("seat",) and toilet)
        ]

    def _forms(self, text: str) -> list[tuple[str, ...]]:
        """A text's words in every form in which they are looked up; reduced in the last."""
        if self._lemmas is not None:
            return [self._lemmas(text)]
        words = _words(text)
        return [words, _singulars(words)] if self.mode == "nouns" else [_singulars(words)]


def scene_synonyms() -> dict[str, tuple[str, str]]:
    """The words for the categories of the rendered world: each and its plural."""
    return {category: (category, plural) for category, plural in PLURALS.items()}


def first_sentences(text: str, n: int) -> str:
    """A text up to its n-th sentence."""
    return " ".join(_sentences(text)[:n])


def same_length(systems: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Captions of several systems for the same images, each cut to as many sentences as the shortest has for that image.

    CHAIR falls when captions get shorter; what is left of a difference after this is not due to length. Raises UserError.
    """
    sizes = {name: len(captions) for name, captions in systems.items()}
    if len(set(sizes.values())) != 1:
        raise UserError(f"captions are cut image by image, got {sizes}: give one of each system for every image")
    shortest = [min(len(_sentences(text)) for text in texts) for texts in zip(*systems.values(), strict=True)]
    return {
        name: [first_sentences(text, n) for text, n in zip(captions, shortest, strict=True)]
        for name, captions in systems.items()
    }


def _sentences(text: str) -> list[str]:
    return [sentence for sentence in _SENTENCE.split(text.strip()) if sentence]


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.lower()))


def _singulars(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(singular, words))


def _nltk_lemmas():
    """text -> lemmas, by part of speech. Raises UserError where nltk or its data is missing."""
    try:
        from nltk import pos_tag
        from nltk.stem import WordNetLemmatizer
    except ImportError:
        raise UserError(
            "mode 'lemma' needs nltk, which is not installed: pip install 'chiasm[lemma]', or use mode 'nouns'"
        ) from None
    lemmatizer, part = WordNetLemmatizer(), {"J": "a", "V": "v", "R": "r"}

    def lemmas(text: str) -> tuple[str, ...]:
        # sentence by sentence, since the tagger looks at its neighbours
        tagged = [pair for sentence in _sentences(text) for pair in pos_tag(_words(sentence))]
        return tuple(lemmatizer.lemmatize(word, part.get(tag[:1], "n")) for word, tag in tagged)

    try:
        lemmas("two dogs")
    except LookupError:
        raise UserError(
            "mode 'lemma' needs nltk's tagger and WordNet, which are not downloaded: "
            "python -m nltk.downloader averaged_perceptron_tagger_eng wordnet, or use mode 'nouns'"
        ) from None
    return lemmas
