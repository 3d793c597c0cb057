"""Cutting text for a voice: whole text into sentences, and a stream of text pieces into clauses that can be spoken.

A voice needs text in portions that make sense by themselves. For a finished text these are sentences; for text that a
language model is still writing, the first portion should leave early, so that speech can start, and later ones should
be larger, so that the melody is good. Nothing is lost: the portions joined equal the text, up to white space.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from vivavoce.errors import ConfigError

MAX_SENTENCE = 400

# Words whose dot does not end a sentence; the second group only before a number, as in "No. 5" and "Jan. 3".
_NEVER_END = frozenset(
    str.split("mr mrs ms dr prof st mt gen col capt lt sgt maj sen rep gov rev messrs vs e.g i.e cf approx ca viz")
)
_NUMBER_FOLLOWS = frozenset(
    str.split("no nos vol fig ch sec eq art p pp jan feb mar apr jun jul aug sep sept oct nov dec c ext pt est")
)
_CLOSERS = "\"'”’»)]}*_"
_OPENERS = "\"'“‘«([{*_"
_WIDE_END = "。！？｡"
_WIDE_MARK = "、，；：" + _WIDE_END
_END = re.compile(rf"(?:[.!?…]+|[{_WIDE_END}]+)[{re.escape(_CLOSERS)}]*")
_CLAUSE_END = re.compile(rf"(?:[,;:—–]|\s-)[{re.escape(_CLOSERS)}]*$")
_CLAUSE_MARK = re.compile(rf"[,;:—–][{re.escape(_CLOSERS)}]*(?=\s)|[{_WIDE_MARK}]")
_SPACE = re.compile(r"\s")
_CONNECTIVES = frozenset(
    str.split(
        "and but or so because although though while when where which who that if unless until since before after than"
    )
)
_BEFORE_CONNECTIVE = re.compile(rf"\s(?=(?:{'|'.join(sorted(_CONNECTIVES))})\b)", re.IGNORECASE)


def sentences(text: str, max_chars: int = MAX_SENTENCE) -> list[str]:
    """Sentences of ``text`` without white space around them, each at most ``max_chars`` long.

    Abbreviations, initials, decimals, quotes and ellipses do not cut; an empty line always does. A sentence over the
    bound is cut at its last clause mark within the bound, else before a joining word, else between words, else
    anywhere.
    """
    out = []
    for paragraph in re.split(r"\n[^\S\n]*\n\s*", text):
        start = 0
        for end in _sentence_ends(paragraph):
            out += _bounded(paragraph[start:end], max_chars)
            start = end
        out += _bounded(paragraph[start:], max_chars)
    return out


def _sentence_ends(text: str) -> Iterator[int]:
    """Places right after a sentence's last character."""
    for found in _END.finditer(text):
        if _ends_sentence(text, found.start(), found.end()):
            yield found.end()


def _ends_sentence(text: str, start: int, end: int) -> bool:
    """Whether the marks at ``start:end`` close a sentence, given at least the first character of the next word."""
    if text[start] in _WIDE_END:
        return True
    if not text[end : end + 1].isspace():
        return False
    opening = text[end : end + 200].lstrip().lstrip(_OPENERS)[:1]
    marks = text[start:end].rstrip(_CLOSERS)
    if marks in ("...", "…", "..") or (marks != "." and len(marks) < end - start):
        return not opening.islower()
    if marks != ".":
        return True
    before = text[max(0, start - 40) : start]
    word = re.split(r"[\s(\[\"“]", before)[-1].lstrip(_OPENERS)
    numbered = word.isdigit() and len(word) <= 3 and before[: -len(word)].rstrip(" ")[-1:] in ("", "\n")
    if numbered or word.lower() in _NEVER_END or (word.lower() in _NUMBER_FOLLOWS and opening.isdigit()):
        return False
    initials = (
        re.fullmatch(r"(?:[A-Za-z]\.)+[A-Za-z]|[A-Z]", word) and word != "I" and word.lower() not in ("a.m", "p.m")
    )
    return not initials and not opening.islower()


def _bounded(piece: str, max_chars: int) -> list[str]:
    """A sentence as stripped pieces of at most ``max_chars`` characters; blank ones are dropped."""
    piece = piece.strip()
    out = []
    while len(piece) > max_chars:
        cut = _last_cut(piece[: max_chars + 1], max_chars)
        out.append(piece[:cut].rstrip())
        piece = piece[cut:].lstrip()
    return [part for part in [*out, piece] if part]


def _last_cut(window: str, max_chars: int) -> int:
    """The best place to cut a window that is one character longer than allowed; at least a third of it is used."""
    least = max_chars // 3
    for pattern in (_CLAUSE_MARK, _BEFORE_CONNECTIVE, _SPACE):
        places = [found.end() for found in pattern.finditer(window) if least < found.end() <= max_chars]
        if places:
            return places[-1]
    cut = max_chars
    while cut > least and _belongs_to_previous(window[cut - 1], window[cut]):
        cut -= 1
    return cut if cut > least else max_chars


def _belongs_to_previous(before: str, char: str) -> bool:
    """Accents, joiners, variation selectors and skin tones are never parted from their letter or emoji."""
    return before == "\u200d" or unicodedata.category(char) in ("Mn", "Mc", "Me", "Cf", "Sk")


class ClauseChunker:
    """Text pieces as they arrive to clauses as soon as each can be spoken; how the text is cut up does not matter.

    A clause ends at a sentence mark once ``least`` characters stand before it, at a clause mark, or before a joining
    word. For the first clause ``least`` is ``first_min_chars``, clause marks count as sentence marks and joining words
    need three times as much; for later clauses ``least`` is ``min_chars``, twice for clause marks, three times for
    joining words. None is longer than ``max_chars``.
    """

    def __init__(self, first_min_chars: int = 12, min_chars: int = 60, max_chars: int = 240) -> None:
        if not 0 < first_min_chars <= max_chars or not 0 < min_chars <= max_chars:
            raise ConfigError("a clause chunker needs first_min_chars and min_chars between 1 and max_chars")
        self.first_min_chars = first_min_chars
        self.min_chars = min_chars
        self.max_chars = max_chars
        self._text = ""
        self._first = True

    def push(self, piece: str) -> list[str]:
        """Add text; the clauses that are now complete, without white space around them."""
        out = []
        for char in piece:
            self._text += char
            cut = self._cut()
            if cut:
                out += self._take(cut)
        return out

    def flush(self) -> list[str]:
        """The rest as a clause, or nothing when no text is left; the chunker is then as new."""
        out = self._take(len(self._text))
        self._first = True
        return out

    def _take(self, cut: int) -> list[str]:
        clause, self._text = self._text[:cut].strip(), self._text[cut:].lstrip()
        self._first = self._first and not clause
        return [clause] if clause else []

    def _cut(self) -> int:
        """Where a clause ends now that one more character is known, or 0. A mark is judged when the next word begins,
        a joining word when it is complete."""
        text = self._text
        last, before = text[-1], text[-2:-1]
        least, mark_factor = (self.first_min_chars, 1) if self._first else (self.min_chars, 2)
        if not last.isspace() and before.isspace():
            end = len(text[:-1].rstrip())
            if end >= least and self._after_sentence(end):
                return end
            if end >= mark_factor * least and _CLAUSE_END.search(text[max(0, end - 8) : end]):
                return end
        elif last.isspace() and not before.isspace():
            words = text.rsplit(maxsplit=1)
            end = len(words[0]) if len(words) == 2 else 0
            if end >= 3 * least and words[-1].lower() in _CONNECTIVES:
                return end
        elif before and before in _WIDE_MARK and len(text) > least and last not in _WIDE_MARK:
            return len(text) - 1
        return _last_cut(text, self.max_chars) if len(text) > self.max_chars else 0

    def _after_sentence(self, end: int) -> bool:
        text = self._text
        found = re.search(rf"[.!?…]+[{re.escape(_CLOSERS)}]*$", text[max(0, end - 12) : end])
        if "\n" in text[end:]:
            return True
        return found is not None and _ends_sentence(text, max(0, end - 12) + found.start(), end)
