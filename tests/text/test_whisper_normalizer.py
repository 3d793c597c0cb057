"""The rules that word error rates are scored with, on strings of our own."""

import pytest

from vivavoce.text.whisper_normalizer import BasicNormalizer, EnglishNormalizer, NumberNormalizer, SpellingNormalizer

ENGLISH = [
    ("It's 5 o'clock, Mr. Fox!", "it is 50 clock mister fox"),
    ("We won't pay twenty-three dollars and fifty cents", "we will not pay $23.50"),
    ("[laughter] Uh, (coughs) the colour grey", "the color gray"),
    ("one hundred and two people; one of them", "102 people one of them"),
    ("two thousand and five", "2005"),
    ("nineteen ninety four", "1994"),
    ("three and a half million pounds", "£3500000"),
    ("double seven three", "773"),
    ("five point two percent", "5.2%"),
    ("minus ten degrees and a plus", "-10 degrees and a plus"),
    ("the twenty first of may", "the 21st of may"),
    ("1,000,000 apples", "1000000 apples"),
    ("they'd been there, she's gone", "they had been there she has gone"),
    ("Café déjà-vu", "cafe deja vu"),
    ("ok.", "ok"),
    ("", ""),
]


@pytest.mark.parametrize(("text", "expected"), ENGLISH)
def test_english(text, expected):
    assert EnglishNormalizer()(text) == expected


def test_basic_keeps_or_drops_accents_and_splits_letters():
    assert BasicNormalizer()("Çà et là, (bruit) l'été!") == "çà et là l été "
    assert BasicNormalizer(remove_diacritics=True)("Çà et là!") == "ca et la "
    assert BasicNormalizer(split_letters=True)("今天 好") == "今 天 好"
    assert BasicNormalizer(split_letters=True)("한국") == "한 국"
    assert BasicNormalizer(True, True)("가나") == "가 나".replace("가", "\u1100\u1161").replace("나", "\u1102\u1161")


def test_numbers_and_spelling_alone():
    assert NumberNormalizer()("one oh one point five fm") == "101.5 fm"
    assert NumberNormalizer()("sixties and thirty-second ones") == "60s and thirty-second ones"
    assert SpellingNormalizer()("organise the neighbour") == "organize the neighbor"


def test_each_call_is_independent():
    normalize = EnglishNormalizer()
    assert normalize("twenty") == normalize("twenty") == "20"
