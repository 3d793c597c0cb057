"""Pronunciations without espeak, and espeak's own where it is installed."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vivavoce.errors import UnknownNameError
from vivavoce.text import lexicon
from vivavoce.text.arpabet import to_ipa
from vivavoce.text.phonemes import EspeakPhonemizer, LexiconPhonemizer

say = LexiconPhonemizer()

SENTENCES = [
    ("Hello, world.", "həlˈoʊ, wˈɜːld."),
    ("How are you? Fine; thanks: yes!", "hˌaʊ ɑːɹ juː? fˈaɪn; θˈæŋks: jˈɛs!"),
    ("the cat and the other apple", "ðə kˈæt ænd ðɪ ˈʌðɚɹ ˈæpəl"),
    ("I go to Italy to see it again", "aɪ ɡˈoʊ tʊ ˈɪɾəli tə sˈiː ɪɾ ɐɡˈɛn"),
    ("one of the best", "wˈʌn ʌvðə bˈɛst"),
    ("a city of water", "ɐ sˈɪɾi ʌv wˈɔːɾɚ"),
    ("FBI and NASA", "ˌɛfbiːˈaɪ ænd nˈæsə"),
    ("two GPUs", "tˈuː dʒˌiːpiːjˈuːz"),
    ("OpenAI's GPT's", "ˈoʊpəneɪˈaɪz dʒˌiːpiːtˈiːz"),
    ("they'd've couldn't've", "ðˈeɪdəv kˈʊdəntəv"),
    ("PyTorch at McDonald's", "pˈaɪtˈɔːɹtʃ æt mɪkdˈɑːnəldz"),
    ("to record a record", "tə ɹᵻkˈɔːɹd ɐ ɹˈɛkɚd"),
    ("We live to use it", "wiː lˈɪv tə jˈuːz ɪt"),
    ("the US, not us", "ðə juːˈɛs, nˌɑːt ˌʌs"),
    ("twenty-three", "twˈɛntiθɹˈiː"),
    ("Is it A or B?", "ɪz ɪɾ ˈeɪ ɔːɹ bˈiː?"),
    ("12 naïve cafés", "twˈɛlv naɪˈiːv kæfˈeɪz"),
    ("wait… what?!", "wˈeɪt, wˈʌt?"),
    ("...", ""),
    ("", ""),
]


@pytest.mark.parametrize(("sentence", "ipa"), SENTENCES)
def test_sentences(sentence, ipa):
    assert "".join(say(sentence)) == ipa


@pytest.mark.parametrize(
    ("word", "ipa"),
    [
        *(("button", "bˈʌʔn̩"), ("certainly", "sˈɜːʔn̩li"), ("positive", "pˈɑːzᵻtɪv"), ("think", "θˈɪŋk")),
        *(("general", "dʒˈɛnɚɹəl"), ("years", "jˈɪɹz"), ("soft", "sˈɔft"), ("water", "wˈɔːɾɚ"), ("jury", "dʒˈʊɹɹi")),
        *(("unhappy", "ʌnhˈæpi"), ("another", "ɐnˈʌðɚ"), ("carry", "kˈæɹi"), ("escape", "ɛskˈeɪp")),
    ],
)
def test_american_rules(word, ipa):
    assert to_ipa(lexicon.pronounce(word)) == ipa


@pytest.mark.parametrize(
    ("word", "phones"),
    [
        ("gizmos's", "G IH1 Z M OW0 Z IH0 Z"),
        ("zippering", "Z IH1 P ER0 IH0 NG"),
        ("unzip", "AH2 N Z IH1 P"),
        ("keyboardlessness", None),
        ("wallpaperwindow", None),
        ("bcdfg", "B IY2 S IY2 D IY2 EH2 F JH IY1"),
        ("walkin'", "W AO1 K IH0 N"),
    ],
)
def test_words_the_dictionary_lacks_are_built(word, phones):
    found = lexicon.pronounce(word)
    assert found and (phones is None or found == phones.split())


def test_dictionary_packs_and_unpacks():
    assert lexicon.look_up("secret") == ["S", "IY1", "K", "R", "IX0", "T"]
    assert lexicon.look_up("qqq") is None
    assert len(lexicon.words()) > 110_000
    assert lexicon.plural(["K", "AE1", "T"])[-1] == "S" and lexicon.plural(["B", "AH1", "S"])[-2:] == ["IH0", "Z"]
    assert lexicon.past(["N", "IY1", "D"])[-2:] == ["IH0", "D"] and lexicon.past(["W", "AO1", "K"])[-1] == "T"


def test_network_says_unknown_words():
    heard = {word: " ".join(lexicon.pronounce(word)) for word in ("blorptastic", "snorfle", "zanthium")}
    assert heard["snorfle"].startswith("S N AO1 R F")
    for phones in heard.values():
        assert sum(phone.endswith("1") for phone in phones.split()) == 1


@given(st.text(max_size=60))
@settings(max_examples=100, deadline=None)
def test_any_text_gives_single_symbols(text):
    symbols = say(text)
    assert all(len(symbol) == 1 for symbol in symbols)
    assert not any(symbol.isdigit() for symbol in symbols)


def test_long_words_and_many_words_are_bounded():
    assert 0 < len(say("x" * 5000 + "a")) < 20_000
    assert len(say("word " * 2000)) > 8000


def test_espeak_matches_pipers_rules():
    pytest.importorskip("espeakng_loader")
    espeak = EspeakPhonemizer()
    heard = "".join(espeak('Hello, world. How are you? Fine; thanks: yes! "well," he said.'))
    assert heard == "həlˈoʊ, wˈɜːld. hˈaʊ ɑːɹ juː? fˈaɪn; θˈæŋks: jˈɛs! wˈɛl, hiː sˈɛd."
    assert "".join(espeak("one — two … three")) == "wˌʌn; tˈuː, θɹˈiː"
    assert espeak("") == []
    with pytest.raises(UnknownNameError, match="no voice"):
        EspeakPhonemizer("xx-nowhere")


def test_espeak_survives_long_text_without_spaces():
    pytest.importorskip("espeakng_loader")
    espeak = EspeakPhonemizer()
    for unit in ("a.", "é", "?!", "-"):
        assert len(espeak(unit * 3000)) < 60_000


def test_espeak_voices_do_not_mix_between_threads():
    pytest.importorskip("espeakng_loader")
    english, german = EspeakPhonemizer("en-us"), EspeakPhonemizer("de")
    expected = english("the word"), german("das Wort")
    seen = []

    def work(phonemizer, text, right):
        seen.append(all(phonemizer(text) == right for _ in range(30)))

    threads = [
        threading.Thread(target=work, args=job)
        for job in [(english, "the word", expected[0]), (german, "das Wort", expected[1])] * 2
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 4
    assert expected[0] != expected[1]


def test_accents_are_single_code_points():
    pytest.importorskip("espeakng_loader")
    assert all(len(symbol) == 1 for symbol in EspeakPhonemizer("fr-fr")("un bon vin français"))
