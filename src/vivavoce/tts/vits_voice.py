"""A VITS voice for text: normalise, cut into sentences, phonemes, symbol numbers, model; waves leave piece by piece.

    text -> sentences -> phonemes -> ids (^ _ a _ b _ ... $) -> prior -> flow and decoder in growing pieces -> wave

Durations are the model's own, so the times of words and phonemes are exact to a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vivavoce.checkpoints.read import read_json
from vivavoce.errors import CheckpointError, ConfigError, UnknownNameError, nearest
from vivavoce.nn.streaming import bfloat16_pays
from vivavoce.text.chunking import ClauseChunker, sentences
from vivavoce.text.normalize import normalize_english
from vivavoce.tts import Span, Speech
from vivavoce.tts.vits import VITS, Prior
from vivavoce.tts.vits_files import open_vits

Phonemize = Callable[[str], list[str]]

FIRST_FRAMES = 26  # 0.3 s at 22 kHz and hop 256: enough to play while the next piece is made
PIECE_FRAMES = 128  # larger pieces gain little and leave the processor's cache
MARKS = frozenset(".,:;?!()\"'-—…¡¿«»“”")


@dataclass(frozen=True)
class Symbols:
    """Published symbol numbers and how a sentence is framed: bos, pad, then each symbol and a pad, then eos."""

    ids: Mapping[str, Sequence[int]]
    pad: str = "_"
    bos: str = "^"
    eos: str = "$"

    def encode(self, phonemes: list[str]) -> tuple[list[int], list[tuple[str, int, int]]]:
        """Token numbers, and for each known symbol (symbol, first token, token past its pad); others are dropped."""
        pad = list(self.ids.get(self.pad, ()))
        tokens, places = [*self.ids.get(self.bos, ()), *pad], []
        for symbol in phonemes:
            if symbol in self.ids:
                start = len(tokens)
                tokens += [*self.ids[symbol], *pad]
                places.append((symbol, start, len(tokens)))
        return [*tokens, *self.ids.get(self.eos, ())], places


@dataclass(frozen=True)
class _Sentence:
    """A sentence ready to decode: ``sample`` (1, C, T) of the prior, and its symbols, spaces too, in frames."""

    sample: Tensor
    symbols: list[tuple[str, int, int]]


@dataclass
class VITSVoice:
    """A model with its text side. Calls do not change it: one voice may serve several threads."""

    model: VITS
    symbols: Symbols
    phonemize: Phonemize
    language: str = "en-us"
    normalize: Callable[[str], str] = normalize_english
    speakers: Mapping[str, int] = field(default_factory=dict)
    noise_scale: float = 0.667
    duration_noise_scale: float = 0.8
    length_scale: float = 1.0
    pause_s: float = 0.15  # silence between sentences
    name: str = "vits"

    @property
    def sample_rate(self) -> int:
        """Samples a second."""
        return self.model.config.sample_rate

    def synthesize(
        self,
        text: str,
        *,
        voice: str | int | None = None,
        language: str | None = None,
        speed: float = 1.0,
        noise_scale: float | None = None,
        generator: int | torch.Generator | None = None,
    ) -> Speech:
        """The whole text as sound with word and phoneme times; ``generator`` (a seed, or torch's) repeats it."""
        waves: list[np.ndarray] = []
        words: list[Span] = []
        phonemes: list[Span] = []
        start = 0
        draw, speaker = _draw(generator), self._speaker(voice)
        for index, sentence in enumerate(self._sentences(text, language)):
            ready = self._prepare(sentence, speaker, speed, noise_scale, draw)
            if ready is None:
                continue
            if index and waves:
                waves.append(self._pause())
                start += len(waves[-1])
            words += self._spans(self._words(sentence, ready.symbols), start)
            phonemes += self._spans([item for item in ready.symbols if item[0] != " "], start)
            with torch.inference_mode():
                waves.append(self.model.decode(ready.sample, None, speaker)[0].float().cpu().numpy())
            start += len(waves[-1])
        wave = np.concatenate(waves) if waves else np.zeros(0, np.float32)
        return Speech(wave, self.sample_rate, words, phonemes)

    def stream(
        self,
        text: str | Iterable[str],
        *,
        voice: str | int | None = None,
        language: str | None = None,
        speed: float = 1.0,
        noise_scale: float | None = None,
        generator: int | torch.Generator | None = None,
    ) -> Iterator[np.ndarray]:
        """Waves (S,) as they are made; joined they are :meth:`synthesize` of the same text and seed, up to rounding.

        ``text`` may be an iterator of pieces that something is still writing: each finished clause is spoken at once.
        """
        draw, speaker, spoken = _draw(generator), self._speaker(voice), False
        for sentence in self._sentences(text, language):
            ready = self._prepare(sentence, speaker, speed, noise_scale, draw)
            if ready is None:
                continue
            if spoken:
                yield self._pause()
            spoken = True
            yield from self._decode(ready.sample, speaker)

    def _sentences(self, text: str | Iterable[str], language: str | None) -> Iterator[str]:
        if language is not None and language.lower().split("-")[0] != self.language.lower().split("-")[0]:
            raise UnknownNameError(
                f"this voice speaks {self.language}, not {language}: choose a voice of that language"
            )
        if isinstance(text, str):
            yield from sentences(self.normalize(text))
            return
        chunker = ClauseChunker()
        for piece in text:
            for clause in chunker.push(piece):
                yield self.normalize(clause)
        for clause in chunker.flush():
            yield self.normalize(clause)

    @torch.inference_mode()
    def _prepare(
        self,
        sentence: str,
        speaker: Tensor | None,
        speed: float,
        noise_scale: float | None,
        draw: Callable[[tuple[int, ...]], Tensor],
    ) -> _Sentence | None:
        if not 0.1 <= speed <= 10:
            raise ConfigError(f"speed must lie between 0.1 and 10, not {speed}")
        phonemes = self.phonemize(sentence)
        ids, places = self.symbols.encode(phonemes)
        if not places:
            return None
        device = next(self.model.parameters()).device
        tokens = torch.tensor([ids], device=device)
        prior = self.model.prior(
            tokens,
            torch.tensor([len(ids)], device=device),
            duration_noise=draw,
            duration_noise_scale=self.duration_noise_scale,
            length_scale=self.length_scale / speed,
            speaker=speaker,
        )
        scale = self.noise_scale if noise_scale is None else noise_scale
        sample = prior.sample(lambda shape: draw(shape).to(prior.mean), scale)
        return _Sentence(sample, _timed(places, prior))

    def _decode(self, sample: Tensor, speaker: Tensor | None) -> Iterator[np.ndarray]:
        """A sentence in pieces: FIRST_FRAMES of sound, then twice as many each time up to PIECE_FRAMES."""
        model, hop, total = self.model, self.model.hop_length, sample.shape[-1]
        start, size, sent = 0, FIRST_FRAMES, 0
        state = None
        while start < total:
            frames = size + (model.lookahead if state is None else 0)
            piece = sample[..., start : start + frames]
            with torch.inference_mode():
                if state is None and piece.shape[-1] <= model.flow.delay:
                    yield model.decode(sample, None, speaker)[0].float().cpu().numpy()
                    return
                if state is None:
                    wave, state = model.begin(piece, speaker)
                    wave = wave[:, model.decoder.delay :]
                else:
                    wave, state = model.step(piece, state, speaker)
            start, size, sent = start + frames, min(2 * size, PIECE_FRAMES), sent + wave.shape[1]
            if wave.shape[1]:
                yield wave[0].float().cpu().numpy()
        if state is not None:
            with torch.inference_mode():
                wave = model.flush(state, speaker)[:, : total * hop - sent]
            yield wave[0].float().cpu().numpy()

    def _words(self, sentence: str, timed: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
        """Words with their frames. Where the phonemizer runs words together ("of the"), so does the span."""
        groups: list[tuple[str, int, int]] = []
        fresh = True
        for symbol, start, end in timed:
            if symbol == " ":
                fresh = True
            elif symbol not in MARKS:
                if fresh:
                    groups.append((symbol, start, end))
                else:
                    text, begun, _ = groups[-1]
                    groups[-1] = (text + symbol, begun, end)
                fresh = False
        words = [word for word in (raw.strip("".join(MARKS)) for raw in sentence.split()) if word]
        if len(words) != len(groups):
            sounds = [sum(symbol not in MARKS for symbol in self.phonemize(word)) for word in words]
            words = _shared_out(words, sounds, [len(text) for text, _, _ in groups])
        return [(word, start, end) for word, (_, start, end) in zip(words, groups, strict=True)]

    def _spans(self, timed: list[tuple[str, int, int]], offset: int) -> list[Span]:
        hop, rate = self.model.hop_length, self.sample_rate
        return [Span(text, (offset + a * hop) / rate, (offset + b * hop) / rate) for text, a, b in timed]

    def _pause(self) -> np.ndarray:
        return np.zeros(round(self.pause_s * self.sample_rate), np.float32)

    def _speaker(self, voice: str | int | None) -> Tensor | None:
        count = self.model.config.n_speakers
        if not count:
            if voice not in (None, 0, "", "default"):
                raise UnknownNameError(f"this model has one voice, so there is no {voice!r}: leave the voice out")
            return None
        if isinstance(voice, str) and not voice.isdigit():
            if voice not in self.speakers:
                raise UnknownNameError(f"this model has no voice {voice!r}{nearest(voice, self.speakers)}")
            number = self.speakers[voice]
        else:
            number = int(voice or 0)
        if not 0 <= number < count:
            raise UnknownNameError(f"this model has the voices 0 to {count - 1}, not {number}")
        return torch.tensor([number], device=next(self.model.parameters()).device)


def lighten(voice: VITSVoice) -> VITSVoice:
    """Turn the voice's decoder to bfloat16 where convolutions are faster so: about half the work, noise 40 dB down."""
    if bfloat16_pays(next(voice.model.parameters()).device.type):
        voice.model.decoder.bfloat16()
    return voice


def open_piper(path: str | Path, phonemize: Phonemize | None = None) -> VITSVoice:
    """A Piper voice from ``voice.onnx`` with ``voice.onnx.json`` beside it.

    Without ``phonemize`` espeak is used, in the voice's own language; CheckpointError where the json is missing or odd.
    """
    weights = Path(path)
    side = weights.with_name(weights.name + ".json")
    if not side.exists():
        raise CheckpointError(f"{weights.name} is a Piper voice without {side.name}: put both in one folder")
    settings = read_json(side)
    try:
        rate, language = int(settings["audio"]["sample_rate"]), str(settings["espeak"]["voice"])
        ids = {str(symbol): [int(i) for i in numbers] for symbol, numbers in settings["phoneme_id_map"].items()}
        inference = settings.get("inference", {})
        scales = {key: float(inference[key]) for key in ("noise_scale", "length_scale", "noise_w") if key in inference}
        speakers = {str(name): int(number) for name, number in (settings.get("speaker_id_map") or {}).items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(f"{side.name} is not a Piper configuration: fetch it again") from None
    model = open_vits(weights, sample_rate=rate)
    if any(not 0 <= i < model.config.n_symbols for numbers in ids.values() for i in numbers):
        raise CheckpointError(f"{side.name} numbers symbols that {weights.name} does not have: fetch both again")
    if phonemize is None:
        from vivavoce.text.phonemes import EspeakPhonemizer

        phonemize = EspeakPhonemizer(language)
    return VITSVoice(
        model,
        Symbols(ids),
        phonemize,
        language=language,
        normalize=normalize_english if language.startswith("en") else str,
        speakers=speakers,
        noise_scale=scales.get("noise_scale", 0.667),
        duration_noise_scale=scales.get("noise_w", 0.8),
        length_scale=scales.get("length_scale", 1.0),
    )


def _draw(generator: int | torch.Generator | None) -> Callable[[tuple[int, ...]], Tensor]:
    """Normal numbers on the CPU, so that a seed means the same on every device."""
    source = torch.Generator().manual_seed(generator) if isinstance(generator, int) else generator
    return lambda shape: torch.randn(shape, generator=source)


def _timed(places: list[tuple[str, int, int]], prior: Prior) -> list[tuple[str, int, int]]:
    """(symbol, first token, last token) -> (symbol, first frame, frame past it)."""
    ends = [0, *prior.durations[0].cumsum(0).tolist()]
    return [(symbol, ends[start], ends[end]) for symbol, start, end in places]


def _shared_out(words: list[str], sounds: list[int], groups: list[int]) -> list[str]:
    """Share ``words`` with ``sounds`` phonemes each out to fewer (or more) groups of that many phonemes, in order.

    Least squares over all ways to cut the words into runs, by dynamic programming; a group without a word gets "".
    """
    total = [0]
    for count in sounds:
        total.append(total[-1] + count)
    best: list[list[tuple[float, int]]] = [[(0.0, 0)] + [(float("inf"), 0)] * len(words)]
    for size in groups:
        before, row = best[-1], []
        for end in range(len(words) + 1):
            starts = range(max(0, end - 8), end + 1)
            row.append(min((before[s][0] + (total[end] - total[s] - size) ** 2, s) for s in starts))
        best.append(row)
    shared, end = [], len(words)
    for row in reversed(best[1:]):
        start = row[end][1]
        shared.append(" ".join(words[start:end]))
        end = start
    return shared[::-1]
