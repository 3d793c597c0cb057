"""Whisper's text normalisers, with which word error rates are scored (Radford et al. 2022, appendix C).

Both sides of a comparison go through the same normaliser, so that "colour" and "color", "20 dollars" and "$20" or
"Mr." and "mister" do not count as errors. The rules are those of the published package, quirks included, because a
published error rate can only be reproduced with them. Not meant for reading aloud: see :mod:`vivavoce.text.normalize`.
"""

from __future__ import annotations

import gzip
import json
import re
import unicodedata
from fractions import Fraction
from functools import cache
from importlib import resources

# Letters that Unicode decomposition does not split into a base letter and a mark.
_UNSPLIT = {
    **{"œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "æ": "ae", "Æ": "AE", "ß": "ss", "ẞ": "SS", "đ": "d", "Đ": "D"},
    **{"ð": "d", "Ð": "D", "þ": "th", "Þ": "th", "ł": "l", "Ł": "L"},
}

_FILLERS = r"\b(hmm|mm|mhm|mmm|uh|um)\b"

# Applied in this order: later rules see what earlier ones wrote.
_CONTRACTED_WORDS = {
    **{"won't": "will not", "can't": "can not", "let's": "let us", "ain't": "aint", "y'all": "you all"},
    **{"wanna": "want to", "gotta": "got to", "gonna": "going to", "i'ma": "i am going to", "imma": "i am going to"},
    **{"woulda": "would have", "coulda": "could have", "shoulda": "should have", "ma'am": "madam"},
}
_TITLES = {
    **{"mr": "mister", "mrs": "missus", "st": "saint", "dr": "doctor", "prof": "professor", "capt": "captain"},
    **{"gov": "governor", "ald": "alderman", "gen": "general", "sen": "senator", "rep": "representative"},
    **{"pres": "president", "rev": "reverend", "hon": "honorable", "asst": "assistant", "assoc": "associate"},
    **{"lt": "lieutenant", "col": "colonel", "jr": "junior", "sr": "senior", "esq": "esquire"},
}
_CONTRACTED_ENDS = {
    **{"'d been": " had been", "'s been": " has been", "'d gone": " had gone", "'s gone": " has gone"},
    **{"'d done": " had done", "'s got": " has got"},
    **{"n't": " not", "'re": " are", "'s": " is", "'d": " would", "'ll": " will", "'t": " not", "'ve": " have"},
    **{"'m": " am"},
}
_REPLACEMENTS = [
    *((re.compile(rf"\b{word}\b"), full) for word, full in _CONTRACTED_WORDS.items()),
    *((re.compile(rf"\b{word}\b"), full + " ") for word, full in _TITLES.items()),
    *((re.compile(rf"{end}\b"), full) for end, full in _CONTRACTED_ENDS.items()),
]

_ZEROS = ("o", "oh", "zero")
_UNITS = str.split(
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
# "nineth" is the published table's spelling, so "ninth" stays a word.
_ORDINALS = str.split(
    "first second third fourth fifth sixth seventh eighth nineth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth"
)
_TENS = str.split("twenty thirty forty fifty sixty seventy eighty ninety")
_SCALES = (
    "thousand million billion trillion quadrillion quintillion sextillion septillion octillion nonillion decillion"
)

_UNIT_VALUE = {word: n for n, word in enumerate(_UNITS, start=1)}
_TEN_VALUE = {word: 10 * n for n, word in enumerate(_TENS, start=2)}
_SCALE_VALUE = {"hundred": 100, **{word: 1000**n for n, word in enumerate(_SCALES.split(), start=1)}}
_PLAIN_VALUE = {**_UNIT_VALUE, **_TEN_VALUE}
_ORDINAL_END = {"first": "st", "second": "nd", "third": "rd"}
_SUFFIXED_VALUE = {
    "zeroth": (0, "th"),
    **{"sixes" if word == "six" else word + "s": (n, "s") for word, n in _UNIT_VALUE.items()},
    **{word: (n, _ORDINAL_END.get(word, "th")) for n, word in enumerate(_ORDINALS, start=1)},
    **{word[:-1] + "ies": (n, "s") for word, n in _TEN_VALUE.items()},
    **{word[:-1] + "ieth": (n, "th") for word, n in _TEN_VALUE.items()},
}
_SUFFIXED_SCALE = {word + end: (n, end) for end in ("s", "th") for word, n in _SCALE_VALUE.items()}
_SIGN_BEFORE = {"minus": "-", "negative": "-", "plus": "+", "positive": "+"}
_SIGN_AFTER = {
    **{"pound": "£", "pounds": "£", "euro": "€", "euros": "€", "dollar": "$", "dollars": "$", "cent": "¢"},
    **{"cents": "¢"},
}
_SIGNS = {*_SIGN_BEFORE.values(), *_SIGN_AFTER.values()}
_NUMBER_WORDS = {
    *_ZEROS,
    *_PLAIN_VALUE,
    *_SUFFIXED_VALUE,
    *_SCALE_VALUE,
    *_SUFFIXED_SCALE,
    *_SIGN_BEFORE,
    *_SIGN_AFTER,
    *("per", "percent", "and", "double", "triple", "point"),
}
_DIGITS = re.compile(r"^\d+(\.\d+)?$")


def _strip_marks(text: str, keep: str = "") -> str:
    """Decompose, drop accents, turn symbols and punctuation into spaces except those in ``keep``."""

    def one(char: str) -> str:
        if char in keep:
            return char
        if char in _UNSPLIT:
            return _UNSPLIT[char]
        category = unicodedata.category(char)
        return "" if category == "Mn" else " " if category[0] in "MSP" else char

    return "".join(map(one, unicodedata.normalize("NFKD", text)))


def _strip_symbols(text: str) -> str:
    """Compose and turn marks, symbols and punctuation into spaces; accents on composed letters stay."""
    composed = unicodedata.normalize("NFKC", text)
    return "".join(" " if unicodedata.category(char)[0] in "MSP" else char for char in composed)


def _drop_asides(text: str) -> str:
    """Remove what stands in ``<>``, ``[]`` and ``()``: transcripts note noises there."""
    return re.sub(r"\(([^)]+?)\)", "", re.sub(r"[<\[][^>\]]*[>\]]", "", text))


def _letters(text: str) -> list[str]:
    """Cut into user-perceived letters (Unicode annex 29), for text from which combining marks are already gone."""
    pieces: list[str] = []
    for char in text:
        if pieces and _continues(pieces[-1][-1], char):
            pieces[-1] += char
        else:
            pieces.append(char)
    return pieces


def _continues(before: str, char: str) -> bool:
    """Joiners and the Thai and Lao AM vowels belong to the letter before them; Korean parts build a syllable."""
    if char in "\u200c\u200d\u0e33\u0eb3":
        return not (before.isspace() or unicodedata.category(before) == "Cc")
    kind, kind_before = _jamo(char), _jamo(before)
    return (kind_before, kind) in (("L", "L"), ("L", "V"), ("V", "V"), ("V", "T"), ("T", "T"))


def _jamo(char: str) -> str:
    """``L``, ``V`` or ``T`` for the leading, vowel and trailing parts of a Korean syllable, else an empty string."""
    if not "\u1100" <= char <= "\u11ff":
        return ""
    return "L" if char < "\u1160" else "V" if char < "\u11a8" else "T"


class NumberNormalizer:
    """Spelled-out numbers to digits: ``"two point five million dollars"`` becomes ``"$2500000"``.

    A run of number words is held as one value. It is an ``int`` while it can still grow by adding and scaling, and a
    ``str`` once digits were put side by side ("twenty nineteen" is ``"2019"``).
    """

    def __call__(self, text: str) -> str:
        words = self._before(text).split()
        return self._after(" ".join(_NumberRun().read(words)))

    @staticmethod
    def _before(text: str) -> str:
        segments = re.split(r"\band\s+a\s+half\b", text)
        pieces = []
        for index, segment in enumerate(segments):
            if not segment.strip():
                continue
            pieces.append(segment)
            if index < len(segments) - 1:
                last = segment.split()[-1]
                numeric = last in _PLAIN_VALUE or last in _ZEROS or last in _SCALE_VALUE
                pieces.append("point five" if numeric else "and a half")
        text = " ".join(pieces)
        text = re.sub(r"([a-z])([0-9])", r"\1 \2", text)
        text = re.sub(r"([0-9])([a-z])", r"\1 \2", text)
        return re.sub(r"([0-9])\s+(st|nd|rd|th|s)\b", r"\1\2", text)

    @staticmethod
    def _after(text: str) -> str:
        text = re.sub(
            r"([€£$])([0-9]+) (?:and )?¢([0-9]{1,2})\b",
            lambda found: f"{found[1]}{found[2]}.{int(found[3]):02d}",
            text,
        )
        text = re.sub(r"[€£$]0.([0-9]{1,2})\b", lambda found: f"¢{int(found[1])}", text)
        return re.sub(r"\b1(s?)\b", r"one\1", text)


class _NumberRun:
    """One left-to-right pass over words; ``value`` and ``sign`` hold the number being read."""

    def __init__(self) -> None:
        self.value: int | str | None = None
        self.sign = ""
        self.out: list[str] = []

    def read(self, words: list[str]) -> list[str]:
        skip = False
        for before, word, after in zip(["", *words], words, [*words[1:], ""], strict=False):
            if skip:
                skip = False
            else:
                skip = self._word(before, word, after)
        self._close()
        return self.out

    def _emit(self, text: str) -> None:
        self.out.append(self.sign + text)
        self.value, self.sign = None, ""

    def _close(self) -> None:
        if self.value is not None:
            self._emit(str(self.value))

    def _pass(self, word: str) -> None:
        self._close()
        self._emit(word)

    def _word(self, before: str, word: str, after: str) -> bool:
        """Read one word; True when the word after it was used up too."""
        if _DIGITS.match(word[1:] if word[0] in _SIGNS else word):
            self._digits(word)
        elif word not in _NUMBER_WORDS:
            self._pass(word)
        elif word in _ZEROS:
            self.value = str(self.value or "") + "0"
        elif word in _PLAIN_VALUE:
            self.value = self._grown(_PLAIN_VALUE[word], before)
        elif word in _SUFFIXED_VALUE:
            amount, end = _SUFFIXED_VALUE[word]
            self._emit(f"{self._grown(amount, before)}{end}")
        elif word in _SCALE_VALUE:
            self._scale(_SCALE_VALUE[word])
        elif word in _SUFFIXED_SCALE:
            amount, end = _SUFFIXED_SCALE[word]
            self._scale(amount)
            self._emit(f"{self.value}{end}")
        else:
            return self._special(before, word, after)
        return False

    def _digits(self, word: str) -> None:
        sign = word[0] if word[0] in _SIGNS else ""
        if isinstance(self.value, str) and self.value.endswith("."):
            self.value += word
            return
        self._close()
        self.sign = sign or self.sign
        bare = word[len(sign) :]
        exact = Fraction(bare)
        self.value = exact.numerator if exact.denominator == 1 else bare

    def _grown(self, amount: int, before: str) -> int | str:
        """The value with a number below one hundred said after it: added where a zero is free, else put beside it."""
        value = self.value
        if value is None:
            return amount
        if isinstance(value, str) or before in _UNIT_VALUE:
            if before in _TEN_VALUE and amount < 10:
                return str(value)[:-1] + str(amount)
            return f"{value}{amount}"
        room = 10 if amount < 10 else 100
        return value + amount if value % room == 0 else f"{value}{amount}"

    def _scale(self, amount: int) -> None:
        if self.value is None:
            self.value = amount
        elif isinstance(self.value, int):
            self.value = self.value // 1000 * 1000 + self.value % 1000 * amount
        else:
            try:
                product = Fraction(self.value) * amount
            except ValueError:
                product = None
            if product is not None and product.denominator == 1:
                self.value = product.numerator
            else:
                self._close()
                self.value = amount

    def _special(self, before: str, word: str, after: str) -> bool:
        numeric_after = after in _NUMBER_WORDS or bool(_DIGITS.match(after))
        if word in _SIGN_BEFORE:
            self._close()
            if numeric_after:
                self.sign = _SIGN_BEFORE[word]
            else:
                self._emit(word)
        elif word in _SIGN_AFTER:
            if self.value is not None:
                self.sign = _SIGN_AFTER[word]
                self._close()
            else:
                self._emit(word)
        elif word == "percent" or word == "per":
            if self.value is not None and (word == "percent" or after == "cent"):
                self._emit(f"{self.value}%")
                return word == "per"
            self._pass(word)
        elif not numeric_after:
            self._pass(word)
        elif word == "and":
            if before not in _SCALE_VALUE:
                self._pass(word)
        elif word == "point":
            if after in _PLAIN_VALUE or after in _ZEROS or _DIGITS.match(after):
                self.value = str(self.value or "") + "."
        elif after in _UNIT_VALUE or after in _ZEROS:
            digit = str(_UNIT_VALUE.get(after, 0))
            self.value = str(self.value or "") + digit * (2 if word == "double" else 3)
            return True
        else:
            self._pass(word)
        return False


@cache
def _american() -> dict[str, str]:
    packed = resources.files("vivavoce").joinpath("assets/american_spelling.json.gz").read_bytes()
    return json.loads(gzip.decompress(packed))


class SpellingNormalizer:
    """British to American spelling, word by word (a table of 1,739 words)."""

    def __call__(self, text: str) -> str:
        table = _american()
        return " ".join(table.get(word, word) for word in text.split())


class EnglishNormalizer:
    """Whisper's normaliser for English transcripts: ``str -> str``, possibly with a space at either end."""

    def __init__(self) -> None:
        self.numbers = NumberNormalizer()
        self.spelling = SpellingNormalizer()

    def __call__(self, text: str) -> str:
        text = _drop_asides(text.lower())
        text = re.sub(_FILLERS, "", text)
        text = re.sub(r"\s+'", "'", text)
        for pattern, full in _REPLACEMENTS:
            text = pattern.sub(full, text)
        text = re.sub(r"(\d),(\d)", r"\1\2", text)
        text = re.sub(r"\.([^0-9]|$)", r" \1", text)
        text = _strip_marks(text, keep=".%$¢€£")
        text = self.spelling(self.numbers(text))
        text = re.sub(r"[.$¢€£]([^0-9])", r" \1", text)
        text = re.sub(r"([^0-9])%", r"\1 ", text)
        return re.sub(r"\s+", " ", text)


class BasicNormalizer:
    """Whisper's normaliser for all other languages: ``str -> str``.

    ``remove_diacritics`` drops accents; ``split_letters`` puts a space between letters, which makes a word error rate a
    character error rate for languages written without spaces.
    """

    def __init__(self, remove_diacritics: bool = False, split_letters: bool = False) -> None:
        self.remove_diacritics = remove_diacritics
        self.split_letters = split_letters

    def __call__(self, text: str) -> str:
        text = _drop_asides(text.lower())
        text = (_strip_marks(text) if self.remove_diacritics else _strip_symbols(text)).lower()
        if self.split_letters:
            text = " ".join(_letters(text))
        return re.sub(r"\s+", " ", text)
