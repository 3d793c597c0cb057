"""Whisper on real recordings of any length: speech is found first, packed into windows, written in batches, and
guarded.

    blocks of wave -> Silero -> stretches of speech -> groups of at most 30 s -> batches of windows -> segments with
    times

Only one batch of windows is in memory. Windows do not condition on each other, so an error cannot spread. Without voice
activity detection the recording is walked window by window as the paper does (section 4.5): :func:`sequential_windows`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vivavoce.asr import Partial, Segment, Transcript, Word
from vivavoce.asr.whisper import SAMPLE_RATE, Memory, Whisper
from vivavoce.asr.whisper_decoding import (
    Decoded,
    DecodingOptions,
    FallbackOptions,
    decode_with_fallback,
    detect_language,
)
from vivavoce.asr.whisper_timing import Bounds, find_words, place_words
from vivavoce.asr.whisper_tokens import WhisperTokens, language_code
from vivavoce.audio.mel import mel_spectrum, whisper_scale
from vivavoce.audio.resample import Resampler, resample
from vivavoce.detect.segments import Segmenter, SegmentOptions
from vivavoce.detect.silero import Silero

HOP = 160  # samples a mel frame: 10 ms
BLOCK = 60 * SAMPLE_RATE  # a whole wave is passed on in pieces, so that what was heard can be let go cheaply
CONTEXT = 400  # samples on either side that the first and last frame of a cut also see

# Speech for a recogniser: lenient at its edges, since a missed word is worse than a little silence, but sure somewhere:
# of a hundred clips of noise and music none came above 0.7, of two hundred spoken ones none stayed below 0.9.
SPEECH = SegmentOptions(threshold=0.4, min_speech=60.0, min_silence=800.0, max_speech=28_000.0, pad=400.0, peak=0.8)

MAX_REPEATS = 8  # nobody says the same thing more often in a row
DOUBT = -0.5  # average log-probability below which a window is searched again with several beams; clear speech has -0.3
# In conversation there is no time for six temperatures.
QUICK = FallbackOptions(temperatures=(0.0, 0.4), samples=2, doubt=DOUBT)


class Tape:
    """A recording that is read forward: blocks are drawn when needed and forgotten when passed."""

    def __init__(self, blocks: Iterable[Tensor]):
        self._blocks = iter(blocks)
        self._held = torch.zeros(0)
        self.first = 0  # sample index of the first held sample
        self.ended = False

    @property
    def end(self) -> int:
        return self.first + self._held.numel()

    def fill(self, until: int) -> None:
        """Draw blocks until sample ``until`` is there or the recording ends."""
        while self.end < until and not self.ended:
            block = next(self._blocks, None)
            if block is None:
                self.ended = True
            else:
                self._held = torch.cat([self._held, block.float()])

    def read(self, start: int, end: int) -> Tensor:
        """Samples [start, end); places before the beginning or behind the end are zeros."""
        self.fill(end)
        left, right = max(0, self.first - start), max(0, end - self.end)
        piece = self._held[max(0, start - self.first) : max(0, end - self.first)]
        return F.pad(piece, (left, right)) if left or right else piece

    def forget(self, before: int) -> None:
        """Let go of samples before ``before``."""
        cut = max(0, min(before, self.end) - self.first)
        if cut:
            self._held = self._held[cut:].clone()
            self.first += cut


@dataclass
class Window:
    """One decoded window: its first frame, what was written, and the segments with times in the recording."""

    seek: int
    decoded: Decoded | None
    segments: list[Segment] = field(default_factory=list)
    advance: int = 0  # frames that are dealt with


class WhisperRecognizer:
    """A Whisper model with its tokenizer and, by default, a voice activity detector in front.

    Thread safety: one call at a time per object; the weights themselves may be shared between objects.
    """

    def __init__(self, model: Whisper, tokens: WhisperTokens, voice_activity: Silero | None, *, name: str = "whisper",
                 speech: SegmentOptions = SPEECH, batch: int = 2, margin: int = 250):  # fmt: skip
        self.margin = margin
        self.model, self.tokens, self.voice_activity = model, tokens, voice_activity
        self.name, self.speech, self.batch = name, speech, batch
        self.n_frames = 2 * model.config.audio_context

    @torch.inference_mode()
    def transcribe(self, wave: Tensor, sample_rate: int, *, language: str | None = None, words: bool = False,
                   task: str = "transcribe", beams: int = 1, prompt: str | None = None) -> Transcript:  # fmt: skip
        """A whole wave (S,) in [-1, 1] -> text, language, segments; ``words`` adds the times of words."""
        wave = resample(wave, sample_rate, SAMPLE_RATE)
        blocks = wave.split(BLOCK) if wave.numel() else []
        found = self.segments(blocks, language=language, words=words, task=task, beams=beams, prompt=prompt)
        segments = tuple(found)
        return Transcript(join_text(segments), self.language, segments, wave.numel() / SAMPLE_RATE, (self.name,))

    @torch.inference_mode()
    def segments(self, blocks: Iterable[Tensor], *, language: str | None = None, words: bool = False,
                 task: str = "transcribe", beams: int = 1, prompt: str | None = None) -> Iterator[Segment]:  # fmt: skip
        """Blocks of a 16 kHz wave, in order -> segments as they are written. ``self.language`` is set by the first."""
        self.language = language_code(language) if language else ("en" if not self.tokens.multilingual else "")
        known = tuple(self.tokens.encode(" " + prompt.strip())) if prompt else ()
        options = DecodingOptions(
            language=self.language or None, task=task, beams=beams, prompt=known, max_repeats=MAX_REPEATS
        )
        tape = Tape(blocks)
        fallback = FallbackOptions(doubt=DOUBT)
        if self.voice_activity is None:
            for window in sequential_windows(self, tape, options, fallback, words=words):
                yield from window.segments
            return
        clock = _WordClock()
        for group in _in_batches(self._groups(tape), self.batch):
            yield from self._write_groups(group, options, fallback, words, clock)

    @torch.inference_mode()
    def stream(self, blocks: Iterable[Tensor], sample_rate: int, *, language: str | None = None,
               every: float = 1.0) -> Iterator[Partial]:  # fmt: skip
        """Blocks as they are heard -> what is understood so far, about once in ``every`` seconds, and at last the
        whole.

        Each time all that was heard is recognised anew, as Whisper's windows do not stream: for short speech only.
        """
        heard, fresh = torch.zeros(0), 0
        for block in _at_hearing_rate(blocks, sample_rate):
            heard, fresh = torch.cat([heard, block]), fresh + block.numel()
            if fresh >= every * SAMPLE_RATE:
                fresh = 0
                yield Partial(self.transcribe(heard, SAMPLE_RATE, language=language).text)
        yield Partial(self.transcribe(heard, SAMPLE_RATE, language=language).text, final=True)

    @torch.inference_mode()
    def understand(self, wave: Tensor, language: str | None, cancelled: Callable[[], bool]) -> str:
        """One utterance (S,) at 16 kHz that is known to be speech -> its words, as quickly as possible.

        The encoder reads only ``self.context_for`` the utterance instead of 30 s. Stops early once ``cancelled()``.
        """
        options = DecodingOptions(language=language, timestamps=False, max_repeats=MAX_REPEATS)
        memory = self.remember([wave], self.context_for(wave.numel()))
        if cancelled():
            return ""
        if not language:
            self.language = ""
            options = self._with_language(options, memory)
        return decode_with_fallback(self.model.decoder, self.tokens, memory, options, QUICK)[0].text

    def context_for(self, n_samples: int) -> int:
        """Encoder positions (20 ms) for a short utterance: itself, and enough silence that the writer sees its end."""
        wanted = -(-n_samples // (2 * HOP)) + self.margin
        return min(self.model.config.audio_context, -(-wanted // 50) * 50)

    # -------------------------------------------------------------------------------------------- speech to windows

    def _groups(self, tape: Tape) -> Iterator[tuple[int, Tensor]]:
        """(first sample, wave) of groups: neighbouring stretches of speech, padded, together at most a window long.

        Groups closer than their padding share the gap, so no sound is heard twice.
        """
        longest = self.n_frames * HOP
        pad = lead = int(self.speech.pad * SAMPLE_RATE / 1000)
        group: tuple[int, int] | None = None
        for stretch, since in self._stretches(tape):
            if group is None:
                group = stretch
            elif stretch is not None and stretch[1] + pad - (group[0] - lead) <= longest:
                group = (group[0], stretch[1])
            elif stretch is not None:
                tail = min(pad, (stretch[0] - group[1]) // 2)
                yield self._cut(tape, group[0] - lead, group[1] + tail)
                group, lead = stretch, tail
            elif since - group[1] > longest:  # nothing will join it any more
                yield self._cut(tape, group[0] - lead, group[1] + pad)
                group, lead = None, pad
            tape.forget((group[0] if group else since) - pad)
        if group:
            yield self._cut(tape, group[0] - lead, group[1] + pad)

    def _cut(self, tape: Tape, start: int, end: int) -> tuple[int, Tensor]:
        return start, tape.read(start, end)[: self.n_frames * HOP]

    def _stretches(self, tape: Tape) -> Iterator[tuple[tuple[int, int] | None, int]]:
        """Stretches of speech in samples, as the tape is heard ten seconds at a time, each with the sample from which
        on sound is still undecided; (None, that sample) after every piece heard."""
        detector = self.voice_activity
        assert detector is not None
        chunk = detector.config.chunk
        segmenter, state = Segmenter(self.speech, chunk, SAMPLE_RATE), detector.init_state(1)
        at, length = 0, chunk * 312
        while True:
            tape.fill(at + length)
            real = min(length, tape.end - at)
            if real <= 0:
                break
            sound = tape.read(at, at + -(-real // chunk) * chunk)
            odds, state = detector.step(sound[None], state)
            at += sound.numel()
            for probability in odds[0].tolist():
                stretch = segmenter.push(probability)
                if stretch:
                    yield stretch, stretch[1]
            yield None, at if segmenter.start is None else segmenter.start
        last = segmenter.finish(tape.end)
        if last:
            yield last, last[1]

    # ------------------------------------------------------------------------------------------- windows to segments

    def features(self, waves: list[Tensor], context: int | None = None) -> Tensor:
        """Waves of at most one window -> (B, M, frames). Behind the last real frame stand zeros, as in the paper's long
        form: after spectra of true silence the writer is readier to invent and to leave out."""
        frames = 2 * (context or self.model.config.audio_context)
        made = []
        for wave in waves:
            n_frames = min(frames, wave.numel() // HOP)
            log_mel = mel_spectrum(F.pad(wave[: frames * HOP], (0, CONTEXT))[None], self.model.config.mel)[
                ..., :n_frames
            ]
            made.append(F.pad(whisper_scale(log_mel), (0, frames - n_frames)))
        return torch.cat(made)

    def remember(self, waves: list[Tensor], context: int | None = None) -> Memory:
        """Encode waves for the decoder; ``context`` positions instead of the published 1500."""
        # one window at a time: together they would be no quicker, and take the memory of all
        encoded = [self.model.encode(self.features([wave], context)) for wave in waves]
        return self.model.decoder.remember(torch.cat(encoded))

    def _write_groups(self, groups: list[tuple[int, Tensor]], options: DecodingOptions, fallback: FallbackOptions,
                      words: bool, clock: _WordClock) -> Iterator[Segment]:  # fmt: skip
        memory = self.remember([wave for _, wave in groups])
        options = self._with_language(options, memory)
        results = decode_with_fallback(self.model.decoder, self.tokens, memory, options, fallback)
        for i, ((start, wave), decoded) in enumerate(zip(groups, results, strict=True)):
            alone = Memory(tuple(k[i : i + 1] for k in memory.keys), tuple(v[i : i + 1] for v in memory.values))
            while True:
                n_frames = wave.numel() // HOP
                window = split_window(decoded, self.tokens, start / SAMPLE_RATE, n_frames)
                if words:
                    clock.place(self, window, alone, start / SAMPLE_RATE, n_frames, options.language)
                yield from window.segments
                rest = wave[window.advance * HOP :]
                # the writer stopped early: at least a second of the group is left, so go on from there
                if not 0 < window.advance < n_frames - 100 or not window.segments:
                    break
                start, wave = start + window.advance * HOP, rest
                alone = self.remember([wave], self.context_for(wave.numel()))
                decoded = decode_with_fallback(self.model.decoder, self.tokens, alone, options, fallback)[0]

    def _with_language(self, options: DecodingOptions, memory: Memory) -> DecodingOptions:
        if not self.language:
            first = Memory(tuple(k[:1] for k in memory.keys), tuple(v[:1] for v in memory.values))
            odds = detect_language(self.model.decoder, self.tokens, first)[0]
            self.language = max(odds, key=odds.__getitem__)
        return replace(options, language=self.language)


def _at_hearing_rate(blocks: Iterable[Tensor], sample_rate: int) -> Iterator[Tensor]:
    """Blocks (S,) at any rate -> blocks at 16 kHz, without seams."""
    if sample_rate == SAMPLE_RATE:
        yield from blocks
        return
    resampler = Resampler(sample_rate, SAMPLE_RATE)
    state = resampler.init_state(1)
    for block in blocks:
        made, state = resampler.step(block[None].float(), state)
        yield made[0]
    yield resampler.flush(state)[0]


def join_text(segments: Iterable[Segment]) -> str:
    """The text of all segments on one line."""
    return " ".join(segment.text.strip() for segment in segments if segment.text.strip())


def _in_batches(items: Iterator[tuple[int, Tensor]], size: int) -> Iterator[list[tuple[int, Tensor]]]:
    batch: list[tuple[int, Tensor]] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def split_window(decoded: Decoded, tokens: WhisperTokens, offset: float, n_frames: int) -> Window:
    """Cut what was written at pairs of timestamps; ``offset`` in seconds, ``n_frames`` real frames of the window."""
    ids, first = list(decoded.tokens), tokens.special.first_timestamp
    stamps = [token >= first for token in ids]
    closes_alone = stamps[-2:] == [False, True]
    cuts = [i for i in range(1, len(ids)) if stamps[i] and stamps[i - 1]]
    window = Window(0, decoded, advance=n_frames)
    pieces: list[tuple[float, float, list[int]]] = []
    if cuts:
        if closes_alone:
            cuts.append(len(ids))
        for start, end in zip([0, *cuts], cuts, strict=False):
            piece = ids[start:end]
            pieces.append((tokens.seconds(piece[0]), tokens.seconds(piece[-1]), piece))
        if not closes_alone:
            window.advance = 2 * (ids[cuts[-1] - 1] - first)
    else:
        marks = [token for token in ids if token >= first]
        length = tokens.seconds(marks[-1]) if marks and marks[-1] != first else n_frames * HOP / SAMPLE_RATE
        pieces.append((0.0, length, ids))
    for start, end, piece in pieces:
        text = tokens.decode(piece)
        if start != end and text.strip():
            window.segments.append(
                Segment(
                    start=offset + start, end=offset + end, text=text, tokens=tuple(piece),
                    avg_logprob=decoded.avg_logprob, compression_ratio=decoded.compression_ratio,
                    no_speech_prob=decoded.no_speech_prob, temperature=decoded.temperature,
                )
            )  # fmt: skip
    return window


class _WordClock:
    """Times words window after window; remembers where speech last ended."""

    def __init__(self) -> None:
        self.last_speech = 0.0

    def place(self, recognizer: WhisperRecognizer, window: Window, memory: Memory, offset: float, n_frames: int,
              language: str | None) -> None:  # fmt: skip
        end = recognizer.tokens.special.end
        text = [token for segment in window.segments for token in segment.tokens if token < end]
        words = find_words(recognizer.model, recognizer.tokens, text, memory, n_frames, language)
        bounds = [Bounds(s.start, s.end, list(s.tokens), []) for s in window.segments]
        self.last_speech = place_words(bounds, words, offset, self.last_speech, end)
        window.segments = [
            replace(segment, start=max(0.0, bound.start), end=max(bound.start, bound.end), words=_ordered(bound.words))
            for segment, bound in zip(window.segments, bounds, strict=True)
        ]


def _ordered(words: list[Word]) -> tuple[Word, ...]:
    """Times that never run back and never overlap."""
    placed: list[Word] = []
    for word in words:
        start = max(word.start, placed[-1].end if placed else 0.0)
        placed.append(replace(word, start=start, end=max(start, word.end)))
    return tuple(placed)


def sequential_windows(recognizer: WhisperRecognizer, recording: Tape | Tensor, options: DecodingOptions,
                       fallback: FallbackOptions, *, condition_on_previous: bool = False,
                       words: bool = False) -> Iterator[Window]:  # fmt: skip
    """Walk a recording as the paper does: each window starts where the last segment of the one before ended."""
    tape = Tape([recording]) if isinstance(recording, Tensor) else recording
    model, tokens = recognizer.model, recognizer.tokens
    clock, seek, told = _WordClock(), 0, list(options.prompt)
    while True:
        tape.fill((seek + recognizer.n_frames) * HOP + CONTEXT)
        n_frames = min(recognizer.n_frames, tape.end // HOP - seek)
        if n_frames <= 0:
            return
        memory = model.decoder.remember(model.encode(_cut_features(recognizer, tape, seek, n_frames)))
        if not options.language and tokens.multilingual:
            options = recognizer._with_language(options, memory)
        decoded = decode_with_fallback(model.decoder, tokens, memory, replace(options, prompt=tuple(told)), fallback)[0]
        if (
            fallback.no_speech is not None
            and decoded.no_speech_prob > fallback.no_speech
            and (fallback.avg_logprob is None or decoded.avg_logprob < fallback.avg_logprob)
        ):
            seek += n_frames
            continue
        offset = seek * HOP / SAMPLE_RATE
        window = split_window(decoded, tokens, offset, n_frames)
        window.seek = seek
        if words:
            clock.place(recognizer, window, memory, offset, n_frames, options.language)
        yield window
        if condition_on_previous and decoded.temperature <= 0.5:
            told += [token for segment in window.segments for token in segment.tokens]
        else:
            told = list(options.prompt)
        seek += max(1, window.advance)
        tape.forget(seek * HOP - CONTEXT)


def _cut_features(recognizer: WhisperRecognizer, tape: Tape, seek: int, n_frames: int) -> Tensor:
    """Frames of the whole recording's spectrum, cut at ``seek``, with zeros behind the last real frame."""
    whole = CONTEXT // HOP + 1
    wave = tape.read((seek - whole) * HOP, (seek + n_frames + whole) * HOP)
    if seek == 0:  # the spectrum is mirrored at the very beginning, not preceded by silence
        wave = wave[whole * HOP :]
    log_mel = mel_spectrum(wave[None], recognizer.model.config.mel)
    log_mel = log_mel[..., 0 if seek == 0 else whole :][..., :n_frames]
    return F.pad(whisper_scale(log_mel), (0, recognizer.n_frames - n_frames))
