"""Sentences and clauses: the marks that cut, those that do not, and the law that nothing is lost."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vivavoce.errors import ConfigError
from vivavoce.text.chunking import ClauseChunker, sentences

SENTENCES = [
    ("Hello there. How are you? Fine!", ["Hello there.", "How are you?", "Fine!"]),
    ("Dr. Smith met Mr. Jones at St. Paul's. They talked.", ["Dr. Smith met Mr. Jones at St. Paul's.", "They talked."]),
    ("Pi is 3.14 or so. Yes.", ["Pi is 3.14 or so.", "Yes."]),
    ("J. R. R. Tolkien wrote it. Great.", ["J. R. R. Tolkien wrote it.", "Great."]),
    ('He said "Stop!" and ran. She stayed.', ['He said "Stop!" and ran.', "She stayed."]),
    ('"Is it true?" she asked. "It is." He left.', ['"Is it true?" she asked.', '"It is."', "He left."]),
    ("Well... maybe not. Wait… What?", ["Well... maybe not.", "Wait…", "What?"]),
    ("See No. 5 and Jan. 3 for it, e.g. This one. Done.", ["See No. 5 and Jan. 3 for it, e.g. This one.", "Done."]),
    ("We met at 9 a.m. The day was hot.", ["We met at 9 a.m.", "The day was hot."]),
    ("It was I. He left.", ["It was I.", "He left."]),
    ("The U.S. Army came.", ["The U.S. Army came."]),
    ("Nice 😀! Really 👍🏽. Yes.", ["Nice 😀!", "Really 👍🏽.", "Yes."]),
    ("What?! No!! Ok.", ["What?!", "No!!", "Ok."]),
    ("First line\n\nSecond line", ["First line", "Second line"]),
    ("1. Wash it. 2. Dry it.", ["1. Wash it.", "2.", "Dry it."]),
    ("今天天气很好。我们走吧！", ["今天天气很好。", "我们走吧！"]),
    ("no end", ["no end"]),
    ("   ", []),
    ("", []),
]


@pytest.mark.parametrize(("text", "expected"), SENTENCES)
def test_sentences(text, expected):
    assert sentences(text) == expected


def test_long_sentences_are_cut_at_clauses_then_words_then_anywhere():
    clauses = "this is one clause of many words, " * 40
    assert all(piece.endswith(",") for piece in sentences(clauses, 100))
    words = sentences("word " * 100, 50)
    assert set(" ".join(words).split()) == {"word"}
    assert [len(piece) for piece in sentences("x" * 100, 40)] == [40, 40, 20]


@pytest.mark.parametrize("unit", ["a", "a. ", ".", "\n", " ", "é́", "👩‍👩‍👧", "a.b.", '"', "one, two ", "。", "Mr. "])
def test_hundred_thousand_characters_of_anything(unit):
    text = (unit * (100_000 // len(unit)))[:100_000]
    pieces = sentences(text, 300)
    assert all(0 < len(piece) <= 300 for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())


def _chunk(chunker, pieces):
    return [clause for piece in pieces for clause in chunker.push(piece)] + chunker.flush()


PARTS = [*"ab. ,;:!?—-\n\"'Iand3é。，👍", " and ", "Dr. ", "Yes", " because "]
TEXT = st.lists(st.sampled_from(PARTS), max_size=200).map("".join)


@given(TEXT, st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_any_cutting_gives_the_same_clauses_and_nothing_is_lost(text, seed, first, later):
    whole = _chunk(ClauseChunker(first, later, 60), [text])
    generator = random.Random(seed)
    pieces, place = [], 0
    while place < len(text):
        size = generator.randint(1, 9)
        pieces.append(text[place : place + size])
        place += size
    chunker = ClauseChunker(first, later, 60)
    assert _chunk(chunker, pieces) == whole
    assert _chunk(chunker, [text]) == whole, "after flush the chunker is as new"
    assert "".join("".join(whole).split()) == "".join(text.split())
    assert all(0 < len(clause) <= 60 for clause in whole)


def test_first_clause_leaves_early_and_later_ones_are_bigger():
    text = "Of course, I can help you with that. First open the lid, then press the button, and wait. " * 4
    clauses = _chunk(ClauseChunker(), [text])
    assert clauses[0] == "Of course, I can help you with that."
    assert all(len(clause) >= 60 for clause in clauses[1:-1])
    chunker = ClauseChunker(first_min_chars=8)
    assert chunker.push("Of course, I") == ["Of course,"]


def test_a_long_first_clause_without_marks_is_cut_before_a_joining_word():
    clauses = _chunk(ClauseChunker(), ["The quick brown fox from the northern hills jumped because the dog was asleep"])
    assert clauses == ["The quick brown fox from the northern hills jumped", "because the dog was asleep"]


def test_numbers_and_titles_are_not_cut():
    assert _chunk(ClauseChunker(5, 5), ["It costs 3,000.50 at Dr. Smith's"]) == ["It costs 3,000.50 at Dr. Smith's"]


def test_impossible_sizes_are_refused():
    with pytest.raises(ConfigError):
        ClauseChunker(first_min_chars=0)
    with pytest.raises(ConfigError):
        ClauseChunker(min_chars=500)
