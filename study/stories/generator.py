"""The embedded corpus: short children's stories whose exact probability is known.

A story is made by the grammar of `sentences.py` over the world of `words.py`; its text determines every random choice that made it,
so its log-probability is a sum over choices, and the corpus's entropy is known: a floor that no honest model can beat. Unlimited,
offline, free of licences, the same on every machine for the same seed. Reads and writes no file.

    corpus = build(train_chars=4_000_000, seed=0)
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from study.stories.grammar import Grammar, Sample, Table, parse_template, sample
from study.stories.sentences import RULES
from study.stories.words import tables

VERSION = 1  # raise it when the same seed would give other stories: rules, words, weights or the order of choices
VAL_CHARS = 400_000  # characters of validation text, whatever the size of the training text


@dataclass(frozen=True)
class Stories:
    """A generated corpus. `floor` is in nats per token; the tokens are the characters and one end-of-text token a story."""

    train: list[str]
    val: list[str]
    floor: float
    floor_se: float


@cache
def story_grammar() -> Grammar:
    """The grammar of the stories; template k of a rule has weight 1 / (k + 2)^0.4."""
    rules = {
        name: Table(tuple(map(parse_template, texts)), tuple((k + 2) ** -0.4 for k in range(len(texts)))) for name, texts in RULES.items()
    }
    return Grammar(rules, tables())


def generate(seed: int, part: str) -> Iterator[Sample]:
    """Yield stories without end, with their probabilities; `part` ("train", "val") names an independent random stream."""
    rng = random.Random(f"stories {VERSION} {seed} {part}")
    while True:
        yield sample(story_grammar(), rng)


def build(train_chars: int, seed: int = 0, val_chars: int = VAL_CHARS) -> Stories:
    """Make a training and a validation text of at least so many characters each, with no story in both.

    The validation text depends on the seed alone, so studies with different amounts of training text are scored on the same stories.
    A training story that is also a validation story is passed over (with about 10^80 stories this does not happen by chance).

    The floor is -sum(log p) / (characters + stories) over the validation stories: exactly the mean loss, on exactly those tokens, of a
    model that knows the generator and sees each story from its beginning. A real model's windows begin in the middle of a story and
    hide what came before, so its loss at a finite context lies above the floor even for the best model of all.
    """
    val = _take(generate(seed, "val"), val_chars, set())
    train = _take(generate(seed, "train"), train_chars, {story.text for story in val})
    return Stories([story.text for story in train], [story.text for story in val], *entropy_per_token(val))


def _take(source: Iterator[Sample], n_chars: int, forbidden: set[str]) -> list[Sample]:
    taken: list[Sample] = []
    n = 0
    while n < n_chars:
        story = next(source)
        if story.text not in forbidden:
            taken.append(story)
            n += len(story.text) + 1
    return taken


def entropy_per_token(stories: Sequence[Sample]) -> tuple[float, float]:
    """Nats per token of a sample of stories, a ratio of sums, and its standard error by the delta method."""
    tokens = [len(story.text) + 1 for story in stories]
    ratio = -math.fsum(story.log_p for story in stories) / sum(tokens)
    squares = math.fsum((-story.log_p - ratio * n) ** 2 for story, n in zip(stories, tokens, strict=True))
    return ratio, math.sqrt(squares) / sum(tokens)
