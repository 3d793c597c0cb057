"""Cutting text for a voice: whole text into sentences, and a stream of text pieces into clauses that can be spoken.

A voice needs text in portions that make sense by themselves. For a finished text these are sentences; for text that a
language model is still writing, the first portion should leave early, so that speech can start, and later ones should
be larger, so that the melody is good. Nothing is lost: the portions joined equal the text, up to white space.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

MAX_SENTENCE = 400

# A dot after these does not end a sentence when a capital or a number follows.
_TITLES = frozenset(
    str.split(
        "mr mrs ms dr prof st mt ft gen col capt lt sgt maj cpl sen rep gov pres rev hon messrs fr sr jr no nos vol fig "
        "ch sec eq art vs pp approx ca cf viz inc ltd co corp dept univ ave blvd rd jan feb mar apr jun jul aug sep sept "
        "oct nov dec mon tue tues wed thu thurs fri sat sun"
    )
)
_NEVER_END = frozenset(str.split("mr mrs ms dr prof st mt gen col capt lt sgt maj sen rep gov rev messrs vs e.g i.e cf"))
_CLOSERS = "\"'”’»)]}*_"
_END = re.compile(rf"(?:[.!?…]+|[。！？｡]+)[{re.escape(_CLOSERS)}]*")
_WIDE_END = "。！？｡"
_CLAUSE_MARK = re.compile(r"[,;:—–、，；：][\"'”’)]*(?=\s|$)|[、，；：]|\s[-–—]+(?=\s)")
_CONJUNCTION = re.compile(
    r"\s(?=(?:and|but|or|so|because|although|though|while|when|where|which|who|that|if|unless|until|since|before|after|"
    r"as|than|then|with|without|for|from|into|to|in|on|at|by)\b)",
    re.IGNORECASE,
)
_CONNECTIVE = re.compile(
    r"\s(?=(?:and|but|or|so|because|although|though|while|when|where|which|who|that|if|unless|until|since|before|after)\b)",
    re.IGNORECASE,
)


def sentences(text: str, max_chars: int = MAX_SENTENCE) -> list[str]:
    """Sentences of ``text`` without white space around them, each at most ``max_chars`` long.

    Abbreviations, initials, decimals, quotes and ellipses do not cut; an empty line always does. A sentence over the
    bound is cut at its last clause mark within the bound, else before a joining word, else between words, else anywhere.
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
    """Places right after a sentence's last character; those that need what follows are decided by it."""
    for found in _END.finditer(text):
        if _ends_sentence(text, found.start(), found.end()):
            yield found.end()


def _ends_sentence(text: str, start: int, end: int) -> bool:
    """Whether the marks at ``start:end`` close a sentence, given at least the next word after them."""
    if text[start] in _WIDE_END:
        return True
    if not text[end : end + 1].isspace():
        return False
    following = text[end : end + 200].lstrip()
    opening = following.lstrip("\"'“‘«([{*_")[:1]
    marks = text[start:end].rstrip(_CLOSERS)
    if marks in ("...", "…", "..") or (end - start > len(marks) and marks != "."):
        return not opening.islower()
    if marks != ".":
        return True
    word = re.split(r"[\s(\[\"'“‘]", text[max(0, start - 40) : start])[-1]
    plain = word.lower()
    if plain in _NEVER_END or (plain in _TITLES and (opening.isupper() or opening.isdigit()) and _needs_more(plain, opening)):
        return False
    if len(word) == 1 and word.isalpha() and word.isupper() and word != "I":
        return False
    return not opening.islower()


def _needs_more(plain: str, opening: str) -> bool:
    """"No. 5" and "Jan. 3" go on; "Acme Inc. They" and "in Jan. They" may end, and a short pause there does no harm."""
    company = plain in ("inc", "ltd", "co", "corp", "jr", "sr", "ave", "blvd", "rd", "dept", "univ")
    return not company and (opening.isdigit() or plain in ("fig", "vol", "no", "ft", "fr", "hon", "pres", "cpl"))


def _bounded(piece: str, max_chars: int) -> list[str]:
    """A sentence as one or more stripped pieces of at most ``max_chars`` characters; blank ones are dropped."""
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
    for pattern in (_CLAUSE_MARK, _CONJUNCTION, re.compile(r"\s")):
        places = [found.end() for found in pattern.finditer(window) if least <= found.end() <= max_chars]
        if places:
            return places[-1]
    # Never part a letter from its accent or an emoji from its modifier: step back to a plain character.
    cut = max_chars
    while cut > least and not (window[cut].isascii() or window[cut].isalpha() and window[cut] < "\U0001f000"):
        cut -= 1
    return cut if cut > least else max_chars


class ClauseChunker:
    """Text pieces as they arrive to clauses as soon as each can be spoken; the cutting of the input does not matter.

    The first clause leaves at the first sentence or clause mark after ``first_min_chars`` characters, or before a joining
    word once twice that many stand before it. Later ones hold at least ``min_chars`` and prefer sentence ends. None
    is longer than ``max_chars``.
    """

    def __init__(self, first_min_chars: int = 12, min_chars: int = 60, max_chars: int = 240) -> None:
        if not 0 < first_min_chars <= max_chars or not 0 < min_chars <= max_chars:
            raise ValueError("a clause needs 0 < first_min_chars, min_chars <= max_chars")
        self.first_min_chars = first_min_chars
        self.min_chars = min_chars
        self.max_chars = max_chars
        self._text = ""
        self._first = True

    def push(self, piece: str) -> list[str]:
        """Add text; the clauses that are now complete, without white space around them."""
        out = []
        for char_run in re.findall(rf"(?s).{{1,{self.max_chars}}}", piece):
            self._text += char_run
            while (cut := self._cut()) is not None:
                out += self._take(cut)
        return out

    def flush(self) -> list[str]:
        """The rest as clauses; the chunker is then as new."""
        self._text += "\n"
        out = []
        while (cut := self._cut()) is not None:
            out += self._take(cut)
        out += self._take(len(self._text))
        self._first = True
        return out

    def _take(self, cut: int) -> list[str]:
        clause, self._text = self._text[:cut].strip(), self._text[cut:].lstrip()
        self._first = self._first and not clause
        return [clause] if clause else []

    def _cut(self) -> int | None:
        """Where the next clause ends, or None while that is not certain. Decided at the earliest place that is certain,
        and only by text up to a fixed look-ahead, so that it is the same however the text arrives."""
        text = self._text
        least = self.first_min_chars if self._first else self.min_chars
        ends = sorted((*self._marks(text, least), *self._joints(text, least)))
        if ends and ends[0] <= self.max_chars:
            return ends[0]
        if len(text) > self.max_chars + 1:
            return _last_cut(text[: self.max_chars + 1], self.max_chars)
        return None
