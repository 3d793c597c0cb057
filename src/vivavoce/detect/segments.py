"""From speech probabilities to stretches of speech: hysteresis, minimum lengths, a bound on the longest, padding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """Thresholds on the probability; times in milliseconds. Defaults are Silero's own.

    Speech starts at ``threshold`` and ends when the probability has stayed below ``exit_threshold`` for
    ``min_silence``. Past ``max_speech`` it is cut at the longest pause of at least ``min_pause`` inside, or right
    there. A stretch counts only if the probability reaches ``peak`` somewhere in it: speech nearly always comes near 1,
    noise lingers around 0.5.
    """

    threshold: float = 0.5
    exit_threshold: float | None = None  # None: threshold - 0.15, at least 0.01
    min_speech: float = 250.0
    max_speech: float = float("inf")
    min_silence: float = 100.0
    min_pause: float = 98.0
    pad: float = 30.0
    peak: float = 0.0

    @property
    def leave(self) -> float:
        return max(self.threshold - 0.15, 0.01) if self.exit_threshold is None else self.exit_threshold


class Segmenter:
    """Feed probabilities in order; finished stretches [start, end) in samples come out, not yet padded."""

    def __init__(self, options: SegmentOptions, hop: int = 512, sample_rate: int = 16_000):
        self.options, self.hop = options, hop
        per_ms = sample_rate / 1000
        self.min_speech = options.min_speech * per_ms
        self.min_silence = options.min_silence * per_ms
        self.min_pause = options.min_pause * per_ms
        self.max_speech = options.max_speech * per_ms - hop - 2 * options.pad * per_ms
        self.position = 0
        self.start: int | None = None
        self.quiet_since: int | None = None
        self.pauses: list[tuple[int, int]] = []  # (start, length) of pauses inside the running stretch
        self.highest = 0.0  # probability in the running stretch

    @property
    def speaking(self) -> bool:
        return self.start is not None

    def push(self, probability: float) -> tuple[int, int] | None:
        """One chunk further; returns a stretch when one is finished."""
        now = self.position
        self.position += self.hop
        if probability >= self.options.threshold:
            if self.quiet_since is not None and now - self.quiet_since > self.min_pause:
                self.pauses.append((self.quiet_since, now - self.quiet_since))
            self.quiet_since = None
            self.highest = max(self.highest, probability)
            if self.start is None:
                self.start, self.highest = now, probability
                return None
        if self.start is not None and now - self.start > self.max_speech:
            return self._cut(now, probability)
        return self._end_of_speech(now, probability)

    def _end_of_speech(self, now: int, probability: float) -> tuple[int, int] | None:
        if self.start is None or probability >= self.options.leave:
            return None
        if self.quiet_since is None:
            self.quiet_since = now
        if now - self.quiet_since < self.min_silence:
            return None
        stretch = (self.start, self.quiet_since)
        self.start, self.quiet_since, self.pauses = None, None, []
        return stretch if self._counts(*stretch) else None

    def _counts(self, start: int, end: int) -> bool:
        return end - start > self.min_speech and self.highest >= self.options.peak

    def _cut(self, now: int, probability: float) -> tuple[int, int] | None:
        """The stretch is too long: end it at its longest pause and go on behind that, or end it here."""
        assert self.start is not None
        if not self.pauses:
            stretch = (self.start, now)
            self.start, self.quiet_since = None, None
            return stretch
        pause, length = max(self.pauses, key=lambda found: found[1])
        stretch = (self.start, pause)
        self.start, self.quiet_since, self.pauses = pause + length, None, []
        self._end_of_speech(now, probability)
        return stretch

    def finish(self, length: int) -> tuple[int, int] | None:
        """The stretch still open when the sound ends after ``length`` samples."""
        start, self.start = self.start, None
        return (start, length) if start is not None and self._counts(start, length) else None


def pad_segments(
    stretches: Iterable[tuple[int, int]], pad: float, length: int | None = None
) -> Iterator[tuple[int, int]]:
    """Widen stretches by ``pad`` samples on both sides; neighbours closer than twice that share the gap."""
    waiting: tuple[int, int] | None = None
    for start, end in stretches:
        if waiting is None:
            start = int(max(0, start - pad))
        else:
            gap = start - waiting[1]
            share = gap // 2 if gap < 2 * pad else pad
            yield waiting[0], int(waiting[1] + share)
            start = int(max(0, start - share))
        waiting = (start, end)
    if waiting is not None:
        last = waiting[1] + pad
        yield waiting[0], int(last if length is None else min(length, last))


def find_segments(
    probabilities: Iterable[float], length: int, options: SegmentOptions, hop: int = 512, sample_rate: int = 16_000
) -> list[tuple[int, int]]:
    """All padded stretches of a sound of ``length`` samples."""
    segmenter = Segmenter(options, hop, sample_rate)
    found = [stretch for p in probabilities if (stretch := segmenter.push(p)) is not None]
    last = segmenter.finish(length)
    return list(pad_segments([*found, *([last] if last else [])], options.pad * sample_rate / 1000, length))
