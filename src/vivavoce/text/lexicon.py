"""Pronunciations of English words: the CMU dictionary, rules for endings, and a small network for all other words.

The packed dictionary is ``assets/cmudict.txt.gz``: comment lines with ``#``, a line naming the phones, then one word
a line with one character a phone. It leaves out possessives that the ending rules give. Licence beside it.
"""

from __future__ import annotations

import gzip
from functools import cache
from importlib import resources

_VOICELESS = ("P", "T", "K", "F", "TH")
_SIBILANT = ("S", "Z", "SH", "ZH", "CH", "JH")
_FIRST_CODE = 0x21
_LETTER_NAMES = {
    **{"a": "EY1", "b": "B IY1", "c": "S IY1", "d": "D IY1", "e": "IY1", "f": "EH1 F", "g": "JH IY1", "h": "EY1 CH"},
    **{"i": "AY1", "j": "JH EY1", "k": "K EY1", "l": "EH1 L", "m": "EH1 M", "n": "EH1 N", "o": "OW1", "p": "P IY1"},
    **{"q": "K Y UW1", "r": "AA1 R", "s": "EH1 S", "t": "T IY1", "u": "Y UW1", "v": "V IY1", "x": "EH1 K S"},
    **{"w": "D AH1 B AH0 L Y UW0", "y": "W AY1", "z": "Z IY1"},
}

# Entries of the dictionary that miss a sound or put the rarer reading first.
_CORRECTIONS = {
    **{"stronger": "S T R AO1 NG G ER0", "strongest": "S T R AO1 NG G AH0 S T", "longer": "L AO1 NG G ER0"},
    **{"ai": "EY2 AY1", "gonna": "G AO1 N AH0", "emoji": "IH0 M OW1 JH IY0", "wifi": "W AY1 F AY2"},
    **{"email": "IY1 M EY2 L", "thirty": "TH ER1 T IY0", "read": "R IY1 D", "lives": "L IH1 V Z"},
}
# Spelled alike, said apart: (as a noun or adjective, as a verb).
_HETERONYMS = {
    **{"use": ("Y UW1 S", "Y UW1 Z"), "close": ("K L OW1 S", "K L OW1 Z"), "live": ("L AY1 V", "L IH1 V")},
    **{"lead": ("L IY1 D", "L IY1 D"), "tear": ("T IH1 R", "T EH1 R"), "wind": ("W IH1 N D", "W AY1 N D")},
    **{"wound": ("W UW1 N D", "W UW1 N D"), "house": ("HH AW1 S", "HH AW1 Z"), "bow": ("B OW1", "B AW1")},
    **{"excuse": ("IH0 K S K Y UW1 S", "IH0 K S K Y UW1 Z"), "record": ("R EH1 K ER0 D", "R IH0 K AO1 R D")},
    **{"present": ("P R EH1 Z AH0 N T", "P R IY0 Z EH1 N T"), "object": ("AA1 B JH EH0 K T", "AH0 B JH EH1 K T")},
    **{
        "subject": ("S AH1 B JH EH0 K T", "S AH0 B JH EH1 K T"),
        "project": ("P R AA1 JH EH0 K T", "P R AH0 JH EH1 K T"),
    },
    **{"permit": ("P ER1 M IH0 T", "P ER0 M IH1 T"), "perfect": ("P ER1 F IX0 K T", "P ER0 F EH1 K T")},
    **{"produce": ("P R OW1 D UW0 S", "P R AH0 D UW1 S"), "conduct": ("K AA1 N D AH0 K T", "K AH0 N D AH1 K T")},
    **{
        "contract": ("K AA1 N T R AE0 K T", "K AH0 N T R AE1 K T"),
        "contest": ("K AA1 N T EH0 S T", "K AH0 N T EH1 S T"),
    },
    **{
        "content": ("K AA1 N T EH0 N T", "K AH0 N T EH1 N T"),
        "conflict": ("K AA1 N F L IH0 K T", "K AH0 N F L IH1 K T"),
    },
    **{"increase": ("IH1 N K R IY0 S", "IH0 N K R IY1 S"), "decrease": ("D IY1 K R IY0 S", "D IH0 K R IY1 S")},
    **{"import": ("IH1 M P AO0 R T", "IH0 M P AO1 R T"), "export": ("EH1 K S P AO0 R T", "IH0 K S P AO1 R T")},
    **{"insult": ("IH1 N S AH0 L T", "IH0 N S AH1 L T"), "progress": ("P R AA1 G R EH0 S", "P R AH0 G R EH1 S")},
    **{"protest": ("P R OW1 T EH0 S T", "P R AH0 T EH1 S T"), "rebel": ("R EH1 B AH0 L", "R IH0 B EH1 L")},
    **{"refund": ("R IY1 F AH0 N D", "R IH0 F AH1 N D"), "reject": ("R IY1 JH EH0 K T", "R IH0 JH EH1 K T")},
    **{"suspect": ("S AH1 S P EH0 K T", "S AH0 S P EH1 K T"), "desert": ("D EH1 Z ER0 T", "D IH0 Z ER1 T")},
    **{
        "estimate": ("EH1 S T AH0 M AH0 T", "EH1 S T AH0 M EY2 T"),
        "separate": ("S EH1 P R AH0 T", "S EH1 P ER0 EY2 T"),
    },
    **{"graduate": ("G R AE1 JH UW0 AH0 T", "G R AE1 JH UW0 EY2 T"), "minute": ("M IH1 N IX0 T", "M IH1 N IX0 T")},
}
_BEFORE_VERBS = frozenset(
    str.split(
        "to will would can could shall should may might must do does did don't doesn't didn't can't couldn't won't "
        "wouldn't shouldn't i you we they who i'll you'll we'll they'll he'll she'll let's please not never always"
    )
)
_CONTRACTIONS = {"n't": "AH0 N T", "'ve": "AH0 V", "'ll": "AH0 L", "'re": "ER0", "'d": "D"}


def pack(entries: dict[str, list[str]], note: str) -> bytes:
    """The compressed file for a dictionary of word to phones; ``note`` becomes its comment lines."""
    phones = sorted({phone for entry in entries.values() for phone in entry})
    code = {phone: chr(_FIRST_CODE + index) for index, phone in enumerate(phones)}
    lines = [f"# {line}" for line in note.splitlines()]
    lines.append(" ".join(phones))
    lines += [f"{word} {''.join(code[phone] for phone in entries[word])}" for word in sorted(entries)]
    return gzip.compress("\n".join(lines).encode(), 9, mtime=0)


@cache
def _table() -> tuple[list[str], dict[str, str]]:
    packed = resources.files("vivavoce").joinpath("assets/cmudict.txt.gz").read_bytes()
    lines = [line for line in gzip.decompress(packed).decode().split("\n") if not line.startswith("# ")]
    return lines[0].split(), dict(line.split(" ", 1) for line in lines[1:])


def words() -> list[str]:
    """All words of the packed dictionary, sorted."""
    return list(_table()[1])


def look_up(word: str) -> list[str] | None:
    """ARPAbet phones of a lower-case word as the dictionary has it, or None."""
    phones, table = _table()
    entry = table.get(word)
    return None if entry is None else [phones[ord(char) - _FIRST_CODE] for char in entry]


def plural(phones: list[str]) -> list[str]:
    """A word with the ending of plurals, possessives and third persons."""
    if phones[-1] in _SIBILANT:
        return [*phones, "IH0", "Z"]
    return [*phones, "S" if phones[-1] in _VOICELESS else "Z"]


def past(phones: list[str]) -> list[str]:
    """A word with the ending of the past tense."""
    if phones[-1] in ("T", "D"):
        return [*phones, "IH0", "D"]
    return [*phones, "T" if phones[-1] in (*_VOICELESS, "S", "SH", "CH") else "D"]


def spell(letters: str) -> list[str]:
    """The names of the letters, the last one stressed most, as in "F B I"."""
    phones: list[str] = []
    for letter in letters:
        phones += _LETTER_NAMES.get(letter, "").split()
    last = max((index for index, phone in enumerate(phones) if phone[-1] == "1"), default=-1)
    return [p[:-1] + "2" if p[-1] == "1" and index != last else p for index, p in enumerate(phones)]


def pronounce(word: str) -> list[str]:
    """ARPAbet phones for any word of a to z and apostrophes, lower case; an empty list only for no letters."""
    if word in _CORRECTIONS:
        return _CORRECTIONS[word].split()
    phones = look_up(word) or (None if word.endswith(tuple(_CONTRACTIONS)) else _by_ending(word) or _compound(word))
    if phones:
        return phones
    for end, sounds in _CONTRACTIONS.items():
        if word.endswith(end) and len(word) > len(end):
            return pronounce(word[: -len(end)]) + sounds.split()
    letters = word.replace("'", "")
    if not letters:
        return []
    if not any(vowel in letters for vowel in "aeiouy") or len(letters) == 1:
        return spell(letters)
    from vivavoce.text.letter_to_sound import guess

    if word.endswith("'s"):
        return plural(pronounce(word[:-2]))
    return guess(letters)


def heteronym(word: str, before: str) -> list[str] | None:
    """Phones of a word like "record" by the word ``before`` it ("to" and "we" call for the verb), or None."""
    readings = _HETERONYMS.get(word)
    return readings[before in _BEFORE_VERBS].split() if readings else None


def _stem(*spellings: str) -> list[str] | None:
    """The first spelling that is a known word of at least three letters."""
    for spelling in spellings:
        if len(spelling) >= 3 and (phones := look_up(spelling)):
            return phones
    return None


def _by_ending(word: str) -> list[str] | None:
    """A known word plus ``'s``, ``s``, ``ed``, ``ing``, ``ly``, ``ness``, ``er``, or minus an apostrophe."""
    if word.endswith("'s") and (phones := look_up(word[:-2])):
        return plural(phones)
    bare = word.replace("'", "")
    if bare != word and (phones := look_up(bare) or _by_ending(bare)):
        return phones
    doubled = len(word) > 5 and word[:-2].endswith(word[-4:-2]) and word[-4:-3] == word[-3:-2]
    if word.endswith("ies") and (phones := _stem(word[:-3] + "y")):
        return [*phones, "Z"]
    if (
        word.endswith("s")
        and not word.endswith("ss")
        and (phones := _stem(word[:-1], word[:-2] if word[-2] == "e" else ""))
    ):
        return plural(phones)
    if word.endswith("ied") and (phones := _stem(word[:-3] + "y")):
        return [*phones, "D"]
    if word.endswith("ed") and (phones := _stem(word[:-2], word[:-1], word[:-3] if doubled else "")):
        return past(phones)
    if word.endswith("ing") and (phones := _stem(word[:-3], word[:-3] + "e", word[:-4])):
        return [*phones, "IH0", "NG"]
    if word.endswith("ly") and (phones := _stem(word[:-2])):
        return [*phones, "IY0"] if phones[-1] == "L" else [*phones, "L", "IY0"]
    if word.endswith("ness") and (phones := _stem(word[:-4])):
        return [*phones, "N", "AH0", "S"]
    if word.startswith("un") and (phones := _stem(word[2:])):
        return ["AH2", "N", *phones]
    return None


def _compound(word: str) -> list[str] | None:
    """Two known words of at least four letters each, cut where the shorter is longest; the second is stressed less."""
    cuts = sorted(range(4, len(word) - 3), key=lambda cut: abs(cut - len(word) / 2))
    for cut in cuts:
        first, second = look_up(word[:cut]), look_up(word[cut:])
        if first and second:
            return first + [phone[:-1] + "2" if phone[-1] == "1" else phone for phone in second]
    return None
