"""Word times from attention: heads that follow the sound, smoothed, and a monotone path through them.

attention logits (A, L, T) -> softmax, z-score over tokens, median over time, mean of heads -> path -> words
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vivavoce.align.dtw import dtw, median_filter
from vivavoce.asr import Word
from vivavoce.asr.whisper import Memory, Whisper
from vivavoce.asr.whisper_tokens import TIMESTAMP_STEP, WhisperTokens

PREPENDED = "\"'“¿([{-"
APPENDED = "\"'.。,，!！?？:：”)]}、"
_SENTENCE_MARKS = ".。!！?？"


@dataclass
class TimedWord:
    """A word with its tokens; times in seconds from the start of the window."""

    word: str
    tokens: list[int]
    start: float
    end: float
    probability: float


def alignment_matrix(logits: Tensor, n_frames: int, width: int = 7) -> Tensor:
    """Attention logits (A, L, T) -> (L, n_frames // 2): how strongly each token looks at each 20 ms position."""
    weights = logits[:, :, : n_frames // 2].float().softmax(dim=-1)
    spread, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    return median_filter((weights - mean) / spread, width).mean(dim=0)


def words_from_matrix(
    matrix: Tensor, text: Sequence[int], probabilities: Sequence[float], tokens: WhisperTokens, language: str
) -> list[TimedWord]:
    """matrix (len(text) + 1, T): rows of the text tokens and the end token -> words with raw times."""
    words, groups = tokens.split_words([*text, tokens.special.end], language)
    if len(groups) <= 1:
        return []
    rows, columns = dtw(-matrix)
    jumps = torch.cat([torch.tensor([True]), rows[1:] != rows[:-1]])
    times = (columns[jumps] * TIMESTAMP_STEP).tolist()
    found, at = [], 0
    for word, group in zip(words[:-1], groups[:-1], strict=True):
        after = at + len(group)
        mean = sum(probabilities[at:after]) / len(group)
        found.append(TimedWord(word, group, times[at], times[after], mean))
        at = after
    return found


def find_words(
    model: Whisper, tokens: WhisperTokens, text: Sequence[int], memory: Memory, n_frames: int, language: str | None
) -> list[TimedWord]:
    """Time the text tokens of one window of ``n_frames`` real mel frames (10 ms)."""
    if not text:
        return []
    start = tokens.start_sequence(language, "transcribe", timestamps=False)
    sequence = [*start, *text, tokens.special.end]
    logits, token_logits = model.alignment_logits(torch.tensor([sequence]), memory)
    odds = token_logits[len(start) - 1 : -2, : tokens.special.end].softmax(-1)
    probabilities = odds[torch.arange(len(text)), torch.tensor(text)].tolist()
    # the row before each token is the one whose attention chose it; z-scores count every row of the sequence
    matrix = alignment_matrix(logits, n_frames)[len(start) - 1 : -1]
    return words_from_matrix(matrix, text, probabilities, tokens, language or "en")


def merge_punctuation(words: list[TimedWord]) -> list[TimedWord]:
    """Let opening marks join the word after, closing marks the word before."""
    words = [replace(word, tokens=list(word.tokens)) for word in words]
    following = len(words) - 1
    for i in range(len(words) - 2, -1, -1):
        if words[i].word.startswith(" ") and words[i].word.strip() in PREPENDED:
            words[following].word = words[i].word + words[following].word
            words[following].tokens = words[i].tokens + words[following].tokens
            words[i].word, words[i].tokens = "", []
        else:
            following = i
    previous = 0
    for i in range(1, len(words)):
        if not words[previous].word.endswith(" ") and words[i].word in APPENDED:
            words[previous].word += words[i].word
            words[previous].tokens = words[previous].tokens + words[i].tokens
            words[i].word, words[i].tokens = "", []
        else:
            previous = i
    return words


def cap_long_words(words: list[TimedWord]) -> float:
    """Attention lingers on pauses: cut words at sentence marks to twice the median duration; returns that median
    (capped 0.7 s).
    """
    durations = sorted(word.end - word.start for word in words if word.end > word.start)
    middle = len(durations) // 2
    median = 0.0
    if durations:
        median = durations[middle] if len(durations) % 2 else (durations[middle - 1] + durations[middle]) / 2
    median = min(0.7, median)
    longest = 2 * median
    if durations:
        for i in range(1, len(words)):
            if words[i].end - words[i].start > longest:
                if words[i].word in _SENTENCE_MARKS:
                    words[i].end = words[i].start + longest
                elif words[i - 1].word in _SENTENCE_MARKS:
                    words[i].start = words[i].end - longest
    return median


@dataclass
class Bounds:
    """A segment while its words are being timed: its own times may move to fit them."""

    start: float
    end: float
    tokens: list[int]
    words: list[Word]


def place_words(
    segments: list[Bounds], words: list[TimedWord], offset: float, last_speech: float, end_token: int
) -> float:
    """Give each segment its words and reconcile the times; returns where speech last ended (seconds).

    ``words`` are raw, in the order of the segments' text tokens; ``offset`` is the window's start in seconds.
    """
    median = cap_long_words(words)
    words = merge_punctuation(words)
    longest, at = 2 * median, 0
    for segment in segments:
        remaining = sum(token < end_token for token in segment.tokens)
        placed: list[Word] = []
        while at < len(words) and remaining > 0:
            word = words[at]
            if word.word:
                placed.append(
                    Word(word.word, round(offset + word.start, 2), round(offset + word.end, 2), word.probability)
                )
            remaining -= len(word.tokens)
            at += 1
        if placed:
            _fit_ends(segment, placed, last_speech, longest, median)
            last_speech = segment.end
        segment.words = placed
    return last_speech


def _fit_ends(segment: Bounds, placed: list[Word], last_speech: float, longest: float, median: float) -> None:
    """The first and last word of a segment are the ones that pauses stretch; trust the segment's own times beyond 0.5
    s.
    """
    first = placed[0]
    pause = first.end - last_speech > 4 * median
    too_long = first.end - first.start > longest
    two_long = len(placed) > 1 and placed[1].end - first.start > 2 * longest
    if pause and (too_long or two_long):
        if len(placed) > 1 and placed[1].end - placed[1].start > longest:
            boundary = max(placed[1].end / 2, placed[1].end - longest)
            placed[1] = replace(placed[1], start=boundary)
            placed[0] = replace(placed[0], end=boundary)
        placed[0] = replace(placed[0], start=max(0.0, placed[0].end - longest))
    if segment.start < placed[0].end and segment.start - 0.5 > placed[0].start:
        placed[0] = replace(placed[0], start=max(0.0, min(placed[0].end - median, segment.start)))
    else:
        segment.start = placed[0].start
    if segment.end > placed[-1].start and segment.end + 0.5 < placed[-1].end:
        placed[-1] = replace(placed[-1], end=max(placed[-1].start + median, segment.end))
    else:
        segment.end = placed[-1].end
