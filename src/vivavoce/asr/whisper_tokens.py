"""Whisper's vocabulary above the text: start sequences, languages, timestamps, and which ids may never be written.

The ids follow from the vocabulary's size alone for the published checkpoints; a tokenizer file that lists them wins.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from vivavoce.errors import UnknownNameError, nearest
from vivavoce.text.tokenizer import Tokenizer

LANGUAGES = {
    "en": "english", "zh": "chinese", "de": "german", "es": "spanish", "ru": "russian", "ko": "korean", "fr": "french",
    "ja": "japanese", "pt": "portuguese", "tr": "turkish", "pl": "polish", "ca": "catalan", "nl": "dutch",
    "ar": "arabic",
    "sv": "swedish", "it": "italian", "id": "indonesian", "hi": "hindi", "fi": "finnish", "vi": "vietnamese",
    "he": "hebrew", "uk": "ukrainian", "el": "greek", "ms": "malay", "cs": "czech", "ro": "romanian", "da": "danish",
    "hu": "hungarian", "ta": "tamil", "no": "norwegian", "th": "thai", "ur": "urdu", "hr": "croatian",
    "bg": "bulgarian",
    "lt": "lithuanian", "la": "latin", "mi": "maori", "ml": "malayalam", "cy": "welsh", "sk": "slovak", "te": "telugu",
    "fa": "persian", "lv": "latvian", "bn": "bengali", "sr": "serbian", "az": "azerbaijani", "sl": "slovenian",
    "kn": "kannada", "et": "estonian", "mk": "macedonian", "br": "breton", "eu": "basque", "is": "icelandic",
    "hy": "armenian", "ne": "nepali", "mn": "mongolian", "bs": "bosnian", "kk": "kazakh", "sq": "albanian",
    "sw": "swahili", "gl": "galician", "mr": "marathi", "pa": "punjabi", "si": "sinhala", "km": "khmer", "sn": "shona",
    "yo": "yoruba", "so": "somali", "af": "afrikaans", "oc": "occitan", "ka": "georgian", "be": "belarusian",
    "tg": "tajik", "sd": "sindhi", "gu": "gujarati", "am": "amharic", "yi": "yiddish", "lo": "lao", "uz": "uzbek",
    "fo": "faroese", "ht": "haitian creole", "ps": "pashto", "tk": "turkmen", "nn": "nynorsk", "mt": "maltese",
    "sa": "sanskrit", "lb": "luxembourgish", "my": "myanmar", "bo": "tibetan", "tl": "tagalog", "mg": "malagasy",
    "as": "assamese", "tt": "tatar", "haw": "hawaiian", "ln": "lingala", "ha": "hausa", "ba": "bashkir",
    "jw": "javanese", "su": "sundanese", "yue": "cantonese",
}  # fmt: skip
TIMESTAMP_STEP = 0.02  # seconds a timestamp token
_UNSPACED = {"zh", "ja", "th", "lo", "my", "yue"}
_SYMBOLS = [*'"#()*+/:;<=>@[\\]^_`{|}~「」『』', "<<", ">>", "<<<", ">>>", "--", "---", "-(", "-[", "('", '("',
            "((", "))", "(((", ")))", "[[", "]]", "{{", "}}", "♪♪", "♪♪♪"]  # fmt: skip
_MUSIC = "♩♪♫♬♭♮♯"


def language_code(name: str) -> str:
    """``"German"`` or ``"de"`` -> ``"de"``; UnknownNameError names the nearest."""
    lowered = name.lower()
    if lowered in LANGUAGES:
        return lowered
    for code, full in LANGUAGES.items():
        if full == lowered:
            return code
    near = nearest(lowered, [*LANGUAGES, *LANGUAGES.values()])
    raise UnknownNameError(f"unknown language {name!r}{near}; use a code or an English name such as en, de or French")


@dataclass(frozen=True, kw_only=True)
class SpecialIds:
    """Ids of everything that is not text. ``languages`` is empty in English-only models."""

    end: int
    start: int
    languages: dict[str, int]
    translate: int
    transcribe: int
    start_of_previous: int
    no_speech: int
    no_timestamps: int
    first_timestamp: int
    n_timestamps: int = 1501

    @classmethod
    def published(cls, vocab_size: int) -> SpecialIds:
        """By the vocabulary's size: 51,864 English only; 51,865 with 99 languages; 51,866 with 100."""
        multilingual = vocab_size >= 51_865
        n_languages = vocab_size - 51_765 - int(multilingual)
        end = 50_256 + int(multilingual)
        after = end + 2 + n_languages
        codes = list(LANGUAGES)[:n_languages] if multilingual else []
        return cls(
            end=end,
            start=end + 1,
            languages={code: end + 2 + i for i, code in enumerate(codes)},
            translate=after,
            transcribe=after + 1,
            start_of_previous=after + 3,
            no_speech=after + 4,
            no_timestamps=after + 5,
            first_timestamp=after + 6,
        )

    @classmethod
    def from_tokenizer(cls, tokenizer: Tokenizer) -> SpecialIds:
        """By name, from a tokenizer file that lists them all."""
        names = tokenizer.specials
        return cls(
            end=tokenizer.id("<|endoftext|>"),
            start=tokenizer.id("<|startoftranscript|>"),
            languages={code: names[f"<|{code}|>"] for code in LANGUAGES if f"<|{code}|>" in names},
            translate=tokenizer.id("<|translate|>"),
            transcribe=tokenizer.id("<|transcribe|>"),
            start_of_previous=tokenizer.id("<|startofprev|>"),
            no_speech=names.get("<|nospeech|>", names.get("<|nocaptions|>", -1)),
            no_timestamps=tokenizer.id("<|notimestamps|>"),
            first_timestamp=tokenizer.id("<|0.00|>"),
            n_timestamps=sum(1 for name in names if name[2:3].isdigit()),
        )


class WhisperTokens:
    """Text, start sequences and suppression lists of one checkpoint."""

    def __init__(self, tokenizer: Tokenizer, special: SpecialIds):
        self.tokenizer = tokenizer
        self.special = special

    @classmethod
    def for_vocabulary(cls, tokenizer: Tokenizer, vocab_size: int) -> WhisperTokens:
        """The published ids, unless the tokenizer file itself lists timestamps."""
        listed = "<|0.00|>" in tokenizer.specials
        return cls(tokenizer, SpecialIds.from_tokenizer(tokenizer) if listed else SpecialIds.published(vocab_size))

    @property
    def multilingual(self) -> bool:
        return bool(self.special.languages)

    def start_sequence(self, language: str | None, task: str, timestamps: bool) -> list[int]:
        """[start, language, task] and, without timestamps, the token that says so; English-only models have start
        alone.
        """
        ids = [self.special.start]
        if self.multilingual:
            code = language or "en"
            if code not in self.special.languages:
                raise UnknownNameError(
                    f"this model does not know the language {code!r}{nearest(code, self.special.languages)}"
                )
            ids += [
                self.special.languages[code],
                self.special.translate if task == "translate" else self.special.transcribe,
            ]
        return ids if timestamps else [*ids, self.special.no_timestamps]

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text without timestamps and other special tokens."""
        return self.tokenizer.decode([token for token in tokens if token < self.special.end])

    def seconds(self, token: int) -> float:
        """The time of a timestamp token inside its window."""
        return (token - self.special.first_timestamp) * TIMESTAMP_STEP

    @cached_property
    def blank(self) -> tuple[int, ...]:
        """Ids that may not come first: a bare space and the end."""
        return (*self.encode(" "), self.special.end)

    @cached_property
    def suppressed(self) -> tuple[int, ...]:
        """Ids that are never written: sounds described in symbols, and the tokens of the start sequence."""
        ids = {self.encode(" -")[0], self.encode(" '")[0]}
        for symbol in [*_SYMBOLS, *_MUSIC]:
            for tokens in (self.encode(symbol), self.encode(" " + symbol)):
                if len(tokens) == 1 or symbol in _MUSIC:
                    ids.add(tokens[0])
        s = self.special
        ids |= {s.transcribe, s.translate, s.start, s.start_of_previous, s.no_speech}
        ids |= {s.start_of_previous - 1}  # start of a language model prompt
        return tuple(sorted(ids))

    def split_words(self, tokens: Sequence[int], language: str) -> tuple[list[str], list[list[int]]]:
        """Words and the tokens of each: on spaces and punctuation, or on characters in languages written without
        spaces.
        """
        pieces, groups = self._split_characters(tokens)
        if language in _UNSPACED:
            return pieces, groups
        words: list[str] = []
        word_tokens: list[list[int]] = []
        for piece, group in zip(pieces, groups, strict=True):
            special = group[0] >= self.special.end
            starts = special or piece.startswith(" ") or piece.strip() in string.punctuation or not words
            if starts:
                words.append(piece)
                word_tokens.append(group)
            else:
                words[-1] += piece
                word_tokens[-1].extend(group)
        return words, word_tokens

    def _split_characters(self, tokens: Sequence[int]) -> tuple[list[str], list[list[int]]]:
        """The shortest runs of tokens that are whole characters."""
        whole = self._plain(tokens)
        pieces: list[str] = []
        groups: list[list[int]] = []
        pending: list[int] = []
        offset = 0
        for token in tokens:
            pending.append(token)
            text = self._plain(pending)
            broken = text.find("\ufffd")
            # a replacement character counts as broken unless the whole text has one at the same place
            if broken < 0 or whole[offset + broken : offset + broken + 1] == "\ufffd":
                pieces.append(text)
                groups.append(pending)
                pending = []
                offset += len(text)
        return pieces, groups

    def _plain(self, tokens: Sequence[int]) -> str:
        """Text in which the end token is written out, so that it counts as a word."""
        text = self.tokenizer.decode([token for token in tokens if token < self.special.end])
        return text + "<|endoftext|>" * sum(token == self.special.end for token in tokens)
