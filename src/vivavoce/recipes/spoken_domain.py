"""A closed domain of spoken questions and answers: what is asked, what is answered, in about four hundred words.

A skill is a few phrasings with slots, a rule that draws the slots and a rule that answers. The same phrasings, read as
patterns, take any question of the domain apart again (:func:`answer_to`), so every answer can be checked. Texts are
what a voice says: lower-case words, no digits, no punctuation but apostrophes. Numbers run from zero to twenty in
questions, to forty in answers.

Splits: a combination of numbers belongs to one split by a hash of the combination, whatever the skill and phrasing
(three and four digits in a row, pairs to add, subtract, compare and count between); one or two digits, single numbers
and everything that is listed in a table are too few for that and occur in all splits.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from vivavoce.errors import UnknownNameError, nearest
from vivavoce.text.numbers import number_words

Split = Literal["train", "dev", "test"]
Values = dict[str, str]

NUMBERS = [number_words(n).replace("-", " ") for n in range(41)]
DIGITS = NUMBERS[:10]
LARGEST = 20
_VALUE = {word: n for n, word in enumerate(NUMBERS[: LARGEST + 1])}
_DAYS = str.split("monday tuesday wednesday thursday friday saturday sunday")
_MONTHS = str.split("january february march april may june july august september october november december")
_SEASONS = str.split("spring summer autumn winter")

_OPPOSITES = str.split(
    "hot/cold big/small fast/slow old/young up/down left/right open/shut day/night black/white high/low happy/sad "
    "long/short hard/soft light/dark early/late full/empty loud/quiet wet/dry sweet/sour rich/poor clean/dirty "
    "near/far thick/thin in/out win/lose love/hate push/pull start/stop true/false good/bad first/last yes/no"
)
_SOUNDS = str.split(
    "dog/woof cat/meow cow/moo duck/quack sheep/baa pig/oink lion/roar bird/tweet snake/hiss horse/neigh owl/hoot "
    "mouse/squeak frog/croak wolf/howl"
)
_COLOURS = {
    "sky": "blue", "grass": "green", "snow": "white", "sun": "yellow", "night": "black", "blood": "red",
    "milk": "white", "coal": "black", "lemon": "yellow", "tomato": "red", "leaf": "green", "chocolate": "brown",
    "ocean": "blue", "carrot": "orange", "strawberry": "red", "banana": "yellow", "cloud": "grey",
}  # fmt: skip
_CAPITALS = {
    "france": "paris", "italy": "rome", "spain": "madrid", "germany": "berlin", "england": "london",
    "japan": "tokyo", "russia": "moscow", "egypt": "cairo", "greece": "athens", "austria": "vienna",
    "ireland": "dublin", "norway": "oslo",
}  # fmt: skip
_FACTS = {
    "how many days are in a week": "a week has seven days",
    "how many months are in a year": "a year has twelve months",
    "how many hours are in a day": "a day has twenty four hours",
    "how many minutes are in an hour": "an hour has sixty minutes",
    "how many legs does a spider have": "a spider has eight legs",
    "how many legs does a horse have": "a horse has four legs",
    "how many legs does a bird have": "a bird has two legs",
    "how many wheels does a car have": "a car has four wheels",
    "how many fingers are on a hand": "a hand has five fingers",
    "how many seasons are in a year": "a year has four seasons",
    "what do bees make": "bees make honey",
    "what does a cow give": "a cow gives milk",
    "where do fish live": "fish live in the water",
    "where does the sun rise": "the sun rises in the east",
    "where does the sun set": "the sun sets in the west",
    "what is frozen water": "frozen water is ice",
    "what is the largest planet": "jupiter is the largest planet",
    "which planet do we live on": "we live on planet earth",
    "what is the largest animal": "the blue whale is the largest",
}
_TALK = {
    "hello": "hello how can i help you",
    "hello there": "hello how can i help you",
    "good morning": "good morning to you",
    "good evening": "good evening to you",
    "good night": "good night and sleep well",
    "goodbye": "goodbye and take care",
    "how are you": "i am fine thank you",
    "how are you today": "i am fine thank you",
    "what is your name": "my name is viva",
    "tell me your name": "my name is viva",
    "who are you": "i am a small talking machine",
    "thank you": "you are very welcome",
    "thank you very much": "you are very welcome",
    "can you help me": "yes i can help you",
    "can you hear me": "yes i can hear you",
    "are you a person": "no i am a machine",
    "can you sing a song": "no i can only talk",
    "what can you do": "i can count and talk",
    "do you sleep": "no i never sleep",
    "do you like music": "yes i like music",
    "tell me a secret": "i have no secrets",
    "where do you live": "i live in a machine",
}


@dataclass(frozen=True)
class Question:
    """One question, the only right answer, and the skill that answers it."""

    text: str
    answer: str
    skill: str


@dataclass(frozen=True)
class Skill:
    """phrases: templates whose slots ``{a}``, ``{b}`` hold one number, ``{digits}`` digits in a row, ``{x}`` a word.

    draw: a generator -> values of the slots; reply: values and the phrase -> the answer, None where there is none;
    key: values -> the combination that decides the split, None where it may occur in all.
    """

    phrases: tuple[str, ...]
    draw: Callable[[random.Random], Values]
    reply: Callable[[Values, str], str | None]
    key: Callable[[Values], str | None] = lambda values: None


def _digits(fewest: int) -> Callable[[random.Random], Values]:
    def draw(rng: random.Random) -> Values:
        return {"digits": " ".join(rng.choice(DIGITS) for _ in range(rng.randint(fewest, 4)))}

    return draw


def _digits_key(values: Values) -> str | None:
    return values["digits"] if values["digits"].count(" ") >= 2 else None


def _pair(allowed: Callable[[int, int], bool]) -> Callable[[random.Random], Values]:
    def draw(rng: random.Random) -> Values:
        while True:
            a, b = rng.randint(0, LARGEST), rng.randint(0, LARGEST)
            if allowed(a, b):
                return {"a": NUMBERS[a], "b": NUMBERS[b]}

    return draw


def _pair_key(name: str) -> Callable[[Values], str]:
    return lambda values: f"{name} {' '.join(sorted(values.values()))}"


def _of_numbers(rule: Callable[..., str | None]) -> Callable[[Values, str], str | None]:
    """A reply from the numbers a (and b); none when a slot holds another word."""

    def reply(values: Values, phrase: str) -> str | None:
        if not all(word in _VALUE for word in values.values()):
            return None
        return rule(*(_VALUE[values[slot]] for slot in sorted(values)))

    return reply


def _one(lowest: int) -> Callable[[random.Random], Values]:
    return lambda rng: {"a": NUMBERS[rng.randint(lowest, LARGEST)]}


def _count(a: int, b: int) -> str | None:
    return " ".join(NUMBERS[a : b + 1]) if 1 <= b - a <= 5 else None


def _compare(values: Values, phrase: str) -> str | None:
    a, b = (_VALUE.get(values[slot]) for slot in "ab")
    if a is None or b is None or a == b:
        return None
    return f"{NUMBERS[max(a, b)]} is bigger" if "bigger" in phrase else f"{NUMBERS[min(a, b)]} is smaller"


def _neighbour(ring: Sequence[str]) -> Callable[[Values, str], str | None]:
    """What comes before or after in a ring of names; the phrase says which."""

    def reply(values: Values, phrase: str) -> str | None:
        if values["x"] not in ring:
            return None
        side, step = ("after", 1) if "after" in phrase else ("before", -1)
        return f"{ring[(ring.index(values['x']) + step) % len(ring)]} comes {side} {values['x']}"

    return reply


def _table(rows: dict[str, str]) -> Callable[[Values, str], str | None]:
    return lambda values, phrase: rows.get(values["x"])


def _any_of(words: Sequence[str]) -> Callable[[random.Random], Values]:
    return lambda rng: {"x": rng.choice(words)}


def _listed(phrases: tuple[str, ...], rows: dict[str, str]) -> Skill:
    return Skill(phrases, _any_of(list(rows)), _table(rows))


def _cyclic(phrases: tuple[str, ...], ring: Sequence[str]) -> Skill:
    return Skill(phrases, _any_of(ring), _neighbour(ring))


def _an(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _opposites() -> dict[str, str]:
    pairs = [pair.split("/") for pair in _OPPOSITES]
    return {a: f"the opposite of {a} is {b}" for one, two in pairs for a, b in ((one, two), (two, one))}


def _facts() -> dict[str, str]:
    capitals = {
        form.format(country): f"the capital of {country} is {city}"
        for country, city in _CAPITALS.items()
        for form in ("what is the capital of {}", "tell me the capital of {}")
    }
    ring = _neighbour(_SEASONS)
    seasons = {f"what season comes after {x}": ring({"x": x}, "after") or "" for x in _SEASONS}
    return {**_FACTS, **capitals, **seasons}


_SOUND_OF = dict(pair.split("/") for pair in _SOUNDS)

SKILLS: dict[str, Skill] = {
    "repeat": Skill(
        ("repeat {digits}", "say {digits}", "please repeat {digits}"),
        _digits(1), lambda values, phrase: f"you said {values['digits']}", _digits_key,
    ),
    "digits": Skill(("{digits}",), _digits(1), lambda values, phrase: f"you said {values['digits']}", _digits_key),
    "backwards": Skill(
        ("say {digits} backwards", "what is {digits} backwards", "{digits} backwards"),
        _digits(2), lambda values, phrase: "backwards it is " + " ".join(values["digits"].split()[::-1]), _digits_key,
    ),
    "add": Skill(
        ("what is {a} plus {b}", "add {a} and {b}", "how much is {a} and {b}", "{a} plus {b}"),
        _pair(lambda a, b: True), _of_numbers(lambda a, b: f"it is {NUMBERS[a + b]}"), _pair_key("plus"),
    ),
    "subtract": Skill(
        ("what is {a} minus {b}", "take {b} from {a}", "how much is {a} minus {b}", "{a} minus {b}"),
        _pair(lambda a, b: a >= b), _of_numbers(lambda a, b: f"it is {NUMBERS[a - b]}" if a >= b else None),
        _pair_key("minus"),
    ),
    "double": Skill(
        ("double {a}", "what is double {a}", "what is twice {a}"),
        _one(0), _of_numbers(lambda a: f"double {NUMBERS[a]} is {NUMBERS[2 * a]}"),
    ),
    "next": Skill(
        ("what number comes after {a}", "what comes after {a}", "which number follows {a}"),
        _one(0), _of_numbers(lambda a: f"{NUMBERS[a + 1]} comes after {NUMBERS[a]}"),
    ),
    "previous": Skill(
        ("what number comes before {a}", "what comes before {a}", "which number is before {a}"),
        _one(1), _of_numbers(lambda a: f"{NUMBERS[a - 1]} comes before {NUMBERS[a]}" if a else None),
    ),
    "count": Skill(
        ("count from {a} to {b}", "please count from {a} to {b}", "count up from {a} to {b}"),
        _pair(lambda a, b: 1 <= b - a <= 5), _of_numbers(_count), _pair_key("count"),
    ),
    "compare": Skill(
        ("which is bigger {a} or {b}", "which number is bigger {a} or {b}",
         "which is smaller {a} or {b}", "which number is smaller {a} or {b}"),
        _pair(lambda a, b: a != b), _compare, _pair_key("compare"),
    ),
    "days": _cyclic(("what day comes after {x}", "what day comes before {x}", "which day comes after {x}"), _DAYS),
    "months": _cyclic(
        ("what month comes after {x}", "what month comes before {x}", "which month comes after {x}"), _MONTHS
    ),
    "opposites": _listed(
        ("what is the opposite of {x}", "tell me the opposite of {x}", "opposite of {x}"), _opposites()
    ),
    "animals": _listed(
        ("what does {x} say", "what sound does {x} make", "how does {x} go"),
        {_an(animal): f"{_an(animal)} says {sound}" for animal, sound in _SOUND_OF.items()},
    ),
    "colours": _listed(
        ("what colour is {x}", "which colour is {x}", "tell me the colour of {x}"),
        {f"the {thing}": f"the {thing} is {colour}" for thing, colour in _COLOURS.items()},
    ),
    "talk": _listed(("{x}",), _TALK),
    "facts": _listed(("{x}",), _facts()),
}  # fmt: skip

# Sentences of the same words: each line is a pattern of word classes.
_CLASSES = {
    "animal": [*_SOUND_OF, "whale", "spider", "fish"],
    "thing": str.split("car house door window table book ship garden street hand leaf cloud banana lemon tomato"),
    "trait": str.split(
        "big small old young black white happy sad quiet loud clean dirty good bad long short dark soft hot cold wet "
        "dry rich poor thick thin sweet sour"
    ),
    "tint": sorted(set(_COLOURS.values())),
    "person": str.split("she he we you they i"),
    "single": str.split("she he"),
    "verb": str.split("like love hate hear push pull open start stop count make help"),
    "verbs": str.split("likes loves hates hears pushes pulls opens follows"),
    "place": str.split("near under behind"),
    "number": NUMBERS[2 : LARGEST + 1],
    "day": _DAYS,
    "month": _MONTHS,
    "season": _SEASONS,
    "country": list(_CAPITALS),
    "city": list(_CAPITALS.values()),
    "when": str.split("today tonight often never always early late"),
    "food": str.split("milk honey chocolate water music snow ice"),
}
_PATTERNS = (
    "the {trait} {animal} is {place} the {thing}",
    "the {tint} {thing} is very {trait}",
    "{single} {verbs} the {trait} {animal}",
    "{person} {verb} the {tint} {thing} {when}",
    "we live in {city} near the {thing}",
    "it is {trait} in {country} in {month}",
    "the {season} in {city} is {trait} and {trait}",
    "there are {number} hours in my {season} day",
    "please open the {trait} {thing} on {day}",
    "i like {food} and {single} {verbs} the {animal}",
    "the {animal} and the {animal} live {place} the {thing}",
    "my {trait} {thing} has {number} {tint} legs",
    "they never {verb} the {thing} in {season}",
    "on {day} we {verb} {food} and {food}",
    "is the {tint} {animal} {place} the {thing}",
    "can you {verb} the {trait} {thing} {when}",
    "where is my {trait} {tint} {thing}",
    "{single} {verbs} {food} on {day} in {month}",
    "{when} the {thing} is {trait} but the {thing} is {trait}",
    "{number} small and {number} big wheels",
)
_TITLED = {"i", *_DAYS, *_MONTHS, *_CAPITALS, *_CAPITALS.values(), "jupiter", "viva"}


def split_of(key: str, train: int = 80, dev: int = 8) -> Split:
    """The split of a combination or sentence, by a hash that never changes: ``train`` %, ``dev`` %, the rest test."""
    place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 100
    return "train" if place < train else "dev" if place < train + dev else "test"


def written(text: str) -> str:
    """The text as it is written, with capitals and a full stop or question mark, for voices that heed these."""
    words = [word.capitalize() if word in _TITLED else word for word in text.split()]
    asks = words[:1] and words[0] in ("what", "which", "how", "who", "where", "is", "can", "do", "does", "are")
    joined = " ".join(words)
    return joined[:1].upper() + joined[1:] + ("?" if asks else ".")


def questions(seed: int, n: int, skills: Sequence[str] | None = None, split: Split = "train") -> list[Question]:
    """``n`` questions of a split, equally many of each of ``skills`` (all by default), in random order.

    Questions may repeat. Raises :class:`UnknownNameError` for an unknown skill.
    """
    chosen = list(SKILLS) if skills is None else list(skills)
    for name in chosen:
        if name not in SKILLS:
            raise UnknownNameError(f"No skill {name!r}{nearest(name, SKILLS)}: give one of {', '.join(SKILLS)}")
    rng = random.Random(f"questions {seed} {split}")
    made = [_draw(chosen[i % len(chosen)], rng, split) for i in range(n)]
    rng.shuffle(made)
    return made


def _draw(name: str, rng: random.Random, split: Split) -> Question:
    skill = SKILLS[name]
    while True:
        values = skill.draw(rng)
        key = skill.key(values)
        if key is None or split_of(key) == split:
            phrase = rng.choice(skill.phrases)
            answer = skill.reply(values, phrase)
            assert answer is not None, (name, values)
            return Question(phrase.format(**values), answer, name)


@cache
def _readers() -> list[tuple[re.Pattern[str], str, str]]:
    """Every phrase as a pattern, with its skill; phrases of words only come before those that begin with a slot."""
    digit = "(?:" + "|".join(DIGITS) + ")"
    slots = {"a": "(?P<a>[a-z]+)", "b": "(?P<b>[a-z]+)", "x": "(?P<x>[a-z ]+)"}
    slots["digits"] = f"(?P<digits>{digit}(?: {digit}){{0,3}})"
    rows = [(phrase, name) for name, skill in SKILLS.items() for phrase in skill.phrases]
    return [(re.compile(phrase.format(**slots)), phrase, name) for phrase, name in rows]


def answer_to(text: str) -> Question | None:
    """The question that ``text`` asks, with its answer; None when it lies outside the domain."""
    for pattern, phrase, name in _readers():
        found = pattern.fullmatch(text)
        if found and (answer := SKILLS[name].reply(found.groupdict(), phrase)):
            return Question(text, answer, name)
    return None


def sentences(seed: int, n: int, split: Split = "train") -> list[str]:
    """``n`` different sentences of 3 to 9 words of the domain's vocabulary; those of one split occur in no other."""
    rng = random.Random(f"sentences {seed} {split}")
    made: dict[str, None] = {}
    while len(made) < n:
        text = re.sub(r"{(\w+)}", lambda slot: rng.choice(_CLASSES[slot[1]]), rng.choice(_PATTERNS))
        if split_of(text) == split and 3 <= len(text.split()) <= 9:
            made[text] = None
    return list(made)


def every_listed() -> Iterator[Question]:
    """All questions of the skills that are tables, in every phrasing."""
    tables: dict[str, list[str]] = {"days": _DAYS, "months": _MONTHS, "talk": list(_TALK), "facts": list(_facts())}
    tables |= {"opposites": list(_opposites()), "animals": [_an(a) for a in _SOUND_OF]}
    tables |= {"colours": [f"the {thing}" for thing in _COLOURS]}
    for name, words in tables.items():
        for phrase in SKILLS[name].phrases:
            for word in words:
                answer = SKILLS[name].reply({"x": word}, phrase)
                assert answer is not None, (name, word)
                yield Question(phrase.format(x=word), answer, name)


def _vocabulary() -> list[str]:
    texts = [text for question in every_listed() for text in (question.text, question.answer)]
    texts += [re.sub(r"{\w+}", "", phrase) for skill in SKILLS.values() for phrase in skill.phrases]
    texts += [re.sub(r"{\w+}", "", pattern) for pattern in _PATTERNS]
    texts += [word for words in _CLASSES.values() for word in words]
    texts += [*NUMBERS, "you said", "it is", "backwards it is", "comes before", "comes after", "bigger smaller"]
    return sorted({word for text in texts for word in text.split()})


VOCABULARY: tuple[str, ...] = tuple(_vocabulary())
