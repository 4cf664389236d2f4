"""WordNet -> pairs: a word and its gloss, a gloss and a sentence that names it, an example and the gloss.

https://wordnet.princeton.edu/documentation/wndb5wn describes the files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pairs import Pair, choice, hashed

FILES = {"n": "noun", "v": "verb", "a": "adj"}
PERSON, PLACE = 18, 15  # lexicographer files noun.person and noun.location

OF_NOUN = ["what is {}?", "what is a {}?", "define {}", "explain {}", "meaning of {}", "what does {} mean?"]
OF_OTHER = ["what does {} mean?", "meaning of {}", "define {}", "to {}", "another word for {}"]
OF_PERSON = ["who was {}?", "who is {}?", "what is {} known for?"]
OF_PLACE = ["where is {}?", "what is {}?", "tell me about {}"]


@dataclass(frozen=True)
class Synset:
    """A meaning: its words, what it is a kind of, and its gloss with examples.

    Args:
        key: Its part of speech and offset, which names it in WordNet.
        field: Its lexicographer file's number: the field it belongs to.
        words: Its words, the commonest first.
        kinds: The keys of what it is a kind of.
        instance: Whether it is a single thing (Paris), not a kind of thing (city).
        gloss: Its definition.
        examples: Sentences and phrases that use it.
    """

    key: str
    field: int
    words: tuple[str, ...]
    kinds: tuple[str, ...]
    instance: bool
    gloss: str
    examples: tuple[str, ...]


def read(folder: Path) -> dict[str, Synset]:
    """Return all synsets by their keys."""
    synsets = {}
    for part, name in FILES.items():
        for line in (folder / f"data.{name}").read_text(encoding="utf-8").splitlines():
            if not line.startswith(" "):  # the licence
                synset = _parse(part, line)
                synsets[synset.key] = synset
    return synsets


def pairs(synsets: dict[str, Synset]) -> Iterator[Pair]:
    """Yield two pairs for each synset, by its word and by its gloss, and one for each of its examples.

    Names of genera are left out: 8,000 of them, in Latin, all with the gloss "type genus of ...".
    """
    for synset in synsets.values():
        if re.search(r"\bgenus\b", synset.gloss) or not 8 < len(synset.gloss) < 200:
            continue
        word = synset.words[0]
        # Documents name their subject in three of ten: both retrieval by meaning and by name are learned.
        named = hashed(synset.key + "named") % 10 < 3
        form = choice(synset.key + "form", ["{}: {}", "{} is {}", "{} - {}"])
        document = form.format(word, synset.gloss) if named else synset.gloss
        yield Pair("gloss", synset.key, _query(synset, synsets), document)
        yield Pair("name", synset.key, synset.gloss, _sentence(synset, synsets))
        for example in synset.examples:
            if len(example) > 12:
                yield Pair("example", synset.key, example, document)


def _query(synset: Synset, synsets: dict[str, Synset]) -> str:
    """Return a query for a synset: its words, a word and its kind, or a question."""
    word, kind = synset.words[0], _kind(synset, synsets)
    way = hashed(synset.key + "way") % 10
    if synset.key[0] == "n" and synset.instance and way < 6:
        questions = OF_PERSON if synset.field == PERSON else OF_PLACE if synset.field == PLACE else OF_NOUN
        return choice(synset.key, questions).format(word)
    if way < 4:
        return choice(synset.key, OF_NOUN if synset.key[0] == "n" else OF_OTHER).format(word)
    if way < 7 and kind:
        return choice(synset.key, ["{} ({})", "{1} {0}", "{}, a kind of {}"]).format(word, kind)
    return ", ".join(synset.words[: 1 + hashed(synset.key + "words") % 3])


def _kind(synset: Synset, synsets: dict[str, Synset]) -> str:
    """Return the word of what a synset is a kind of, or ""."""
    return synsets[synset.kinds[0]].words[0] if synset.kinds else ""


def _sentence(synset: Synset, synsets: dict[str, Synset]) -> str:
    """Return a sentence that names a synset, and its kind, but nothing of its gloss."""
    kind = _kind(synset, synsets)
    if not kind:
        return ", ".join(synset.words)
    name = " or ".join(synset.words[: 1 + hashed(synset.key + "names") % 2])
    if synset.key[0] == "n":
        form = choice(synset.key + "name", ["A {} is a {}.", "{} is a kind of {}.", "{} ({})"])
        return form.format(name, kind)
    return f"To {name} is to {kind}."


def _parse(part: str, line: str) -> Synset:
    """Parse a line of a data file."""
    data, _, text = line.partition("|")
    fields = data.split()
    count = int(fields[3], 16)
    words = tuple(re.sub(r"\([a-z]+\)$", "", w).replace("_", " ") for w in fields[4 : 4 + 2 * count : 2])
    pointers = fields[5 + 2 * count :]
    kinds, instance = [], False
    for symbol, offset, of in zip(pointers[0::4], pointers[1::4], pointers[2::4], strict=False):
        if symbol in ("@", "@i"):
            kinds.append(of + offset)
            instance |= symbol == "@i"
    examples = re.findall(r'"([^"]+)"', text)
    gloss = re.split(r';\s*"', text)[0].strip().strip(";").strip()
    return Synset(part + fields[0], int(fields[1]), words, tuple(kinds), instance, gloss, tuple(examples))


def word_pairs(synsets: dict[str, Synset], count: int) -> list[tuple[str, str, float]]:
    """Return pairs of nouns and their path similarity: 1 / (1 + the steps between them by their kinds).

    Half are of nouns with a kind in common two steps up, half of any two.
    """
    nouns = [
        s for s in synsets.values() if s.key[0] == "n" and s.kinds and not s.instance and len(s.words) > 1
    ]
    nouns.sort(key=lambda synset: hashed(synset.key + "pair"))
    by_kind: dict[str, list[Synset]] = {}
    for noun in nouns:
        for kind in _above(noun, synsets, 2):
            by_kind.setdefault(kind, []).append(noun)
    found = []
    for number, noun in enumerate(nouns[:count]):
        near = by_kind[max(_above(noun, synsets, 2), key=lambda k: _above(noun, synsets, 2)[k])]
        other = near[hashed(noun.key) % len(near)] if number % 2 else nouns[-1 - number]
        a, b = _above(noun, synsets, 30), _above(other, synsets, 30)
        steps = min((a[kind] + b[kind] for kind in a.keys() & b.keys()), default=60)
        if noun.words[0] != other.words[0]:
            found.append((noun.words[0], other.words[0], 1 / (1 + steps)))
    return found


def _above(synset: Synset, synsets: dict[str, Synset], most: int) -> dict[str, int]:
    """Return a synset and what it is a kind of, up to so many steps, with the steps."""
    steps, level = {synset.key: 0}, [synset]
    for step in range(1, most + 1):
        level = [synsets[kind] for lower in level for kind in lower.kinds if kind not in steps]
        for upper in level:
            steps.setdefault(upper.key, step)
    return steps
