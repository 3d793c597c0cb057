"""Sentences to phonemes for voices that were trained on espeak symbols (Piper's VITS voices and their kin).

Two phonemizers give the same symbols: :class:`EspeakPhonemizer` calls the espeak-ng library (an optional extra, GPL,
loaded at run time and never bundled), :class:`LexiconPhonemizer` is ours and needs nothing. Give them one sentence of
plain words: run :func:`vivavoce.text.normalize.normalize_english` and :func:`vivavoce.text.chunking.sentences` first.
"""

from __future__ import annotations

import ctypes
import re
import threading
import unicodedata
from typing import Protocol

from vivavoce.errors import UnknownNameError, require
from vivavoce.text import lexicon
from vivavoce.text.arpabet import to_ipa
from vivavoce.text.numbers import decimal_words

_MARKS = {
    **{mark: mark for mark in ".,:;?!"},
    **{"—": ";", "–": ";", "…": ",", "。": ".", "，": ",", "、": ",", "？": "?", "！": "!", "；": ";", "：": ":"},
}
_MARK_CLASS = "[" + "".join(_MARKS) + "]"


class Phonemizer(Protocol):
    """One sentence to one-character IPA symbols, spaces between words and punctuation included."""

    def __call__(self, sentence: str) -> list[str]: ...


def _symbols(clauses: list[tuple[str, str]]) -> list[str]:
    """Clauses of (phonemes, closing mark) as single code points in decomposed form, as these voices count symbols."""
    text = " ".join(phonemes + mark for phonemes, mark in clauses if phonemes)
    return list(unicodedata.normalize("NFD", text))


_espeak_lock = threading.Lock()
_espeak_library: ctypes.CDLL | None = None
_espeak_voice: str | None = None


def _load_espeak() -> ctypes.CDLL:
    """The library, initialised once for the process; call with the lock held."""
    global _espeak_library
    if _espeak_library is None:
        loader = require("espeakng_loader", "phonemes", "The espeak phonemizer")
        library = ctypes.CDLL(loader.get_library_path())
        library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        library.espeak_TextToPhonemes.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_int, ctypes.c_int]
        synchronous, stay_alive = 2, 0x8000
        if library.espeak_Initialize(synchronous, 0, str(loader.get_data_path()).encode(), stay_alive) < 0:
            raise UnknownNameError("espeak-ng cannot read its data folder: reinstall espeakng-loader")
        _espeak_library = library
    return _espeak_library


class EspeakPhonemizer:
    """espeak-ng's phonemes for ``voice`` (e.g. ``en-us``, ``de``, ``fr-fr``), by Piper's rules.

    A region that the library does not list falls back to its language (``en-gb`` is its plain ``en``).

    The library keeps one state a process: all instances share it behind a lock, so calls are thread-safe.
    Raises MissingExtraError without the ``phonemes`` extra and UnknownNameError for a voice espeak does not have.
    """

    def __init__(self, voice: str = "en-us") -> None:
        self.voice = voice
        with _espeak_lock:
            self._select(_load_espeak())

    def _select(self, library: ctypes.CDLL) -> None:
        global _espeak_voice
        if _espeak_voice != self.voice:
            names = (self.voice, self.voice.split("-")[0])
            if all(library.espeak_SetVoiceByName(name.encode()) != 0 for name in names):
                raise UnknownNameError(
                    f"espeak-ng has no voice {self.voice!r}: use a language code such as en-us or de"
                )
            _espeak_voice = self.voice

    def __call__(self, sentence: str) -> list[str]:
        clauses = []
        with _espeak_lock:
            library = _load_espeak()
            self._select(library)
            for text in _safe_texts(sentence.replace("\0", " ")):
                clauses += self._read(library, text)
        return _symbols(clauses)

    @staticmethod
    def _read(library: ctypes.CDLL, text: str) -> list[tuple[str, str]]:
        utf8, ipa = 1, 2
        raw = text.encode("utf-8", errors="ignore")
        buffer = ctypes.create_string_buffer(raw)
        start = ctypes.addressof(buffer)
        pointer = ctypes.c_void_p(start)
        clauses, place = [], 0
        while pointer.value is not None and place < len(raw):
            phonemes = (library.espeak_TextToPhonemes(ctypes.byref(pointer), utf8, ipa) or b"").decode()
            end = pointer.value - start if pointer.value is not None else len(raw)
            spoken = re.sub(r"\([^)]*\)", "", phonemes)
            mark = _closing_mark(raw[place:end].decode(errors="ignore"), pointer.value is None)
            clauses.append((spoken, mark))
            place = end
        return clauses


def _safe_texts(text: str) -> list[str]:
    """The text cut where more than 200 characters stand between two clause marks, or 80 without a space: on denser text
    the library overruns its own buffers (1.52 aborts the process from about 300 characters of "a.a.a.")."""
    text = re.sub(r"(\S{80})(?=\S)", r"\1 ", text)
    out = [""]
    for stretch in re.findall(r"(?s).+?(?:[,;:?!]\s+(?=[A-Za-z])|\.\s+(?=[A-Z][a-z])|$)", text):
        if len(stretch) <= 200:
            out[-1] += stretch
        else:
            out += [*re.findall(r"(?s).{1,200}(?=\s|$)|.{1,200}", stretch), ""]
    return out


def _closing_mark(consumed: str, last: bool) -> str:
    """The mark that ended a clause, from the text espeak read for it: up to one character after the mark, or two
    where quotes stand between, because it looks ahead to see whether a new clause begins."""
    look_ahead = "" if last else r"[\w(\[\"'“‘]?"
    found = re.search(rf"({_MARK_CLASS}+)[^\w(]*{look_ahead}$", consumed[-40:])
    if not found:
        return ""
    return "," if found[1].startswith("..") else _MARKS[found[1][0]]


# Words that are said weakly inside a sentence, and how. At the end of a clause prepositions and auxiliaries get their
# full form from the dictionary; those in _ALWAYS_WEAK stay.
_WEAK = {
    **{"of": "ʌv", "and": "ænd", "in": "ɪn", "on": "ˌɔn", "at": "æt", "by": "baɪ", "for": "fɔːɹ", "from": "fɹʌm"},
    **{"with": "wɪð", "as": "æz", "is": "ɪz", "was": "wʌz", "were": "wɜː", "are": "ɑːɹ", "be": "biː", "been": "bˌɪn"},
    **{"am": "æm", "i": "aɪ", "you": "juː", "he": "hiː", "she": "ʃiː", "it": "ɪt", "we": "wiː", "they": "ðeɪ"},
    **{"me": "mˌiː", "him": "hˌɪm", "her": "hɜː", "us": "ˌʌs", "them": "ðˌɛm", "my": "maɪ", "your": "jʊɹ"},
    **{"his": "hɪz", "its": "ɪts", "our": "ˌaʊɚ", "their": "ðɛɹ", "this": "ðɪs", "that": "ðæt", "these": "ðiːz"},
    **{"those": "ðoʊz", "who": "hˌuː", "whose": "hˌuːz", "which": "wˌɪtʃ", "what": "wˌʌt", "when": "wˌɛn"},
    **{"where": "wˌɛɹ", "why": "wˌaɪ", "how": "hˌaʊ", "if": "ɪf", "or": "ɔːɹ", "but": "bˌʌt", "so": "sˌoʊ"},
    **{
        "an": "ɐn",
        "than": "ðɐn",
        "there": "ðɛɹ",
        "not": "nˌɑːt",
        "can": "kæn",
        "could": "kʊd",
        "will": "wɪl",
        "would": "wʊd",
    },
    **{"shall": "ʃˌæl", "should": "ʃˌʊd", "might": "mˌaɪt", "has": "hɐz", "have": "hæv", "had": "hæd"},
    **{"about": "ɐbˌaʊt", "into": "ˌɪntʊ", "over": "ˌoʊvɚ", "under": "ˌʌndɚ", "through": "θɹuː", "some": "sˌʌm"},
    **{"any": "ˌɛni", "up": "ˌʌp", "down": "dˌaʊn", "while": "wˌaɪl", "though": "ðˌoʊ", "before": "bᵻfˌɔːɹ"},
    **{"between": "bᵻtwˌiːn", "without": "wɪðˌaʊt", "within": "wɪðˌɪn", "upon": "əpˌɑːn", "because": "bɪkˈʌz"},
    **{"thirteen": "θˈɜːtiːn", "fourteen": "fˈɔːɹtiːn", "fifteen": "fˈɪftiːn", "sixteen": "sˈɪkstiːn"},
    **{"seventeen": "sˈɛvəntˌiːn", "eighteen": "ˈeɪtiːn", "nineteen": "nˈaɪntiːn"},
    **{"per": "pɜː", "i'm": "aɪm", "i'll": "aɪl", "i've": "aɪv", "i'd": "aɪd", "you're": "jʊɹ", "you'd": "juːd"},
    **{"you'll": "juːl", "you've": "juːv", "he'd": "hiːd", "he'll": "hiːl", "he's": "hiːz", "she's": "ʃiːz"},
    **{"she'd": "ʃiːd", "she'll": "ʃiːl", "we'd": "wiːd", "we'll": "wiːl", "we're": "wɪɹ", "we've": "wiːv"},
    **{"they'd": "ðeɪd", "they'll": "ðeɪl", "they're": "ðɛɹ", "they've": "ðeɪv", "it's": "ɪts", "that's": "ðæts"},
    **{"there's": "ðɛɹz", "what's": "wˌʌts", "got": "ɡɑːt", "just": "dʒˈʌst", "yourself": "jɔːɹsˈɛlf"},
}
_ALWAYS_WEAK = set(
    str.split(
        "i you he she it we they me him her us them my your his its our their and or but if than an "
        "thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
    )
)
# A weak word runs into a following "the", as it does in speech.
_JOINS_THE = set(str.split("of in on for from that with was"))
_READ_AS_LETTERS = {"us", "it", "am", "ok", "ai", "aaa"}
_VOWEL_SOUNDS = "aæɐɑɒɔəɚɛɜeɪiᵻoʊuʌ"


class LexiconPhonemizer:
    """English phonemes from the CMU dictionary, ending rules and a small network; no espeak anywhere. Thread-safe.

    Unknown words load torch at their first occurrence; all others need only the standard library.
    """

    def __call__(self, sentence: str) -> list[str]:
        sentence = sentence.replace("’", "'").replace("‘", "'").replace("...", "…")
        sentence = re.sub(r"\d+", lambda found: f" {decimal_words(found[0])} ", sentence)
        clauses = re.findall(rf"([^{_MARK_CLASS[1:-1]}]*)({_MARK_CLASS}*)", sentence)
        return _symbols([(_clause(text), _MARKS[marks[0]] if marks else "") for text, marks in clauses])


def _clause(text: str) -> str:
    """Phonemes of text without punctuation: words joined by spaces, except across hyphens and before a weak "the"."""
    found = re.findall(r"([^\W_]+(?:'[^\W_]+)*'?)(-(?=\w))?", text)
    words = [word for word, _ in found]
    if len(words) > 1 and all(word.isupper() for word in words):
        words = [word.lower() for word in words]
    before = ["", *(word.lower() for word in words)]
    sounds = [_word(word, before[index], index == len(words) - 1) for index, word in enumerate(words)]
    said = [(words[i].lower(), sound, found[i][1]) for i, sound in enumerate(sounds) if sound]
    out = []
    for (word, sound, hyphen), (after, following, _) in zip(said, [*said[1:], ("", "", "")], strict=False):
        joins = word in _JOINS_THE and after == "the"
        linked = "fɚ" if joins and word == "for" else _linked(word, sound, following.lstrip("ˈˌ")[:1])
        out.append(linked + ("" if joins or hyphen or not following else " "))
    return "".join(out)


def _word(word: str, before: str, last: bool) -> str:
    """One word's phonemes: letters, weak form or dictionary form, by its capitals, the word before it and its place."""
    lower = unicodedata.normalize("NFKD", word.lower())
    plain = "".join(char for char in lower if char in "abcdefghijklmnopqrstuvwxyz'")
    if plain == "a":
        return "ɐ" if not last and (word == "a" or not before) else to_ipa(lexicon.spell("a"))
    parts = re.split(r"(?<=[a-z])(?=[A-Z])", word)
    if len(parts) > 1 and lexicon.look_up(plain) is None:
        return "".join(_word(part, before, False) for part in parts)
    if word.isupper() and len(plain) > 1 and _is_acronym(plain):
        return to_ipa(lexicon.spell(plain))
    letters, end = (plain.removesuffix("'s"), "'s") if plain.endswith("'s") else (plain[:-1], "s")
    if word.endswith(end) and word.removesuffix(end).isupper() and 2 <= len(letters) <= 5:
        return to_ipa(lexicon.plural(lexicon.spell(letters)))
    if plain in _WEAK and (not last or plain in _ALWAYS_WEAK):
        return _WEAK[plain]
    return to_ipa(lexicon.heteronym(plain, before) or lexicon.pronounce(plain.strip("'") or plain))


def _is_acronym(plain: str) -> bool:
    """Capitals are spelled unless they make a word: "FBI" and "US" are letters, "NASA" and "NOT" are words."""
    if plain in _READ_AS_LETTERS:
        return True
    if plain in _WEAK or plain in ("the", "to"):
        return False
    known = lexicon.look_up(plain)
    return len(plain) == 2 or (known is None and len(plain) <= 5)


def _linked(word: str, sound: str, following: str) -> str:
    """What the next word's first sound does to a word: "the" and "to" before vowels, a linking r, a flapped t."""
    before_vowel = following != "" and following in _VOWEL_SOUNDS
    if word == "the":
        return "ðɪ" if before_vowel else "ðə"
    if word == "to" and following:
        return "tʊ" if before_vowel else "tə"
    if before_vowel and sound.endswith(("ɚ", "ɜː")):
        return sound + "ɹ"
    if before_vowel and sound in ("ɪt", "æt"):
        return sound[:-1] + "ɾ"
    return sound
