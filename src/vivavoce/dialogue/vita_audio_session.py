"""VITA-Audio as a partner in conversation: sound in, text and sound out, each as soon as it can be.

While the question is spoken its blocks become codes and the backbone reads them; when it ends only the last block, the
end of the prompt and the first tokens of the answer are left to do. Speech tokens become mel frames and samples chunk
by chunk with carried states: nothing is decoded twice, and the level is that of the voice. One thread does everything:
:meth:`VITAAudioSession.answer` gives the answer piece by piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal

import torch
from torch import Tensor

from vivavoce.codecs.glm4_decoder import GLM4Decoder, GLM4DecoderState, time_noise
from vivavoce.codecs.glm4_tokenizer import SAMPLE_RATE, GLM4Tokenizer
from vivavoce.dialogue import Event, Reply, Timing
from vivavoce.dialogue.vita_audio import VITAAudio
from vivavoce.dialogue.vita_audio_prompts import VITATokens, answer_prompt, speak_prompt, transcribe_prompt
from vivavoce.dialogue.vita_audio_writing import Grammar, Writer, mode_named, write_by_grammar
from vivavoce.errors import AudioError, ConfigError
from vivavoce.search.sampling import SamplingOptions
from vivavoce.vocoders.hift import HiFT, HiFTState, source_noise

CHUNK = 8  # codes decoded together: the block of the published interleaving
Task = Literal["answer", "transcribe"]


@dataclass(frozen=True)
class VITAAudioParts:
    """A model with its tokens and codec. ``mean`` and ``scale`` take the decoder's mel to the vocoder's; ``interleave``
    is that of the training records."""

    model: VITAAudio
    tokens: VITATokens
    tokenizer: GLM4Tokenizer
    decoder: GLM4Decoder
    vocoder: HiFT
    interleave: tuple[int, ...]
    mean: float
    scale: float
    name: str = "vita_audio"

    def __post_init__(self) -> None:
        codes = {"tokens": self.tokens.codes, "tokenizer": self.tokenizer.config.codes,
                 "decoder": self.decoder.config.vocab_size}  # fmt: skip
        if len(set(codes.values())) > 1:
            raise ConfigError(f"the parts count speech tokens differently ({codes}); take parts that belong together")
        decoder, vocoder = self.decoder.config, self.vocoder.config
        if decoder.n_mels != vocoder.n_mels or not decoder.causal:
            raise ConfigError(
                f"the decoder gives {decoder.n_mels} mel bands{'' if decoder.causal else ' and does not stream'}, the "
                f"vocoder takes {vocoder.n_mels}; take parts that belong together"
            )

    @property
    def sample_rate(self) -> int:
        return self.vocoder.config.sample_rate


class SpeechOut:
    """Codes to samples as they come: flow decoder and vocoder with their states."""

    def __init__(self, parts: VITAAudioParts, clock: Callable[[], float] = perf_counter):
        self.parts, self.clock = parts, clock
        self.flow: GLM4DecoderState = parts.decoder.init_state(1)
        self.wave: HiFTState = parts.vocoder.init_state(1)
        self.codes = self.frames = 0  # heard, made
        self.withheld = parts.vocoder.delay
        self.spent = {"flow": 0.0, "vocoder": 0.0}

    def step(self, codes: list[int]) -> Tensor:
        """Further codes -> the samples (S,) that are certain by now."""
        began = self.clock()
        noise = self._noise(self.parts.decoder.due(self.codes, len(codes)))
        mel, self.flow = self.parts.decoder.step(torch.tensor([codes]), self.flow, noise)
        self.codes += len(codes)
        self.spent["flow"] += self.clock() - began
        return self._vocoded(mel)

    def flush(self) -> Tensor:
        """The samples still withheld."""
        if not self.codes:
            return torch.zeros(0)
        decoder, vocoder, wave = self.parts.decoder, self.parts.vocoder, torch.zeros(0)
        if decoder.lookahead:
            ahead = decoder.due(self.codes, decoder.lookahead)
            mel = decoder.flush(self.flow, self._noise(ahead))
            wave = self._vocoded(mel)
        return torch.cat([wave, self._without_delay(vocoder.flush(self.wave)[0][: vocoder.delay])])

    def _noise(self, tokens: int) -> Tensor:
        decoder = self.parts.decoder
        return time_noise(self.frames, decoder.frames(tokens), decoder.config.n_mels)[None]

    def _vocoded(self, mel: Tensor) -> Tensor:
        if not mel.shape[-1]:
            return torch.zeros(0)
        parts, began, hop = self.parts, self.clock(), self.parts.vocoder.hop_length
        drawn = source_noise(hop * self.frames, hop * mel.shape[-1], parts.vocoder.config.harmonics, seed=0)
        wave, self.wave = parts.vocoder.step(mel * parts.scale + parts.mean, self.wave, noise=drawn)
        self.frames += mel.shape[-1]
        self.spent["vocoder"] += self.clock() - began
        return self._without_delay(wave[0])

    def _without_delay(self, wave: Tensor) -> Tensor:
        skipped = min(self.withheld, len(wave))
        self.withheld -= skipped
        return wave[skipped:]


@dataclass
class Answer:
    """What came of one question. ``writers``: who wrote each token, None the backbone."""

    text: str = ""
    codes: list[int] = field(default_factory=list)
    writers: list[int | None] = field(default_factory=list)
    timing: Timing = field(default_factory=Timing)
    passes_before_sound: int | None = None


class VITAAudioSession:
    """One question and its answer: feed sound with :meth:`step`, then take :meth:`answer`. Not thread-safe; sessions of
    the same parts may be used in turns.

    Unlike other sessions of this room it does not find the question's end: whoever feeds it says so by taking the
    answer."""

    def __init__(
        self, parts: VITAAudioParts, *, mode: str = "boost", task: Task = "answer", longest: int | None = None,
        sampling: SamplingOptions | None = None, generator: torch.Generator | None = None,
        clock: Callable[[], float] = perf_counter,
    ):  # fmt: skip
        self.parts, self.mode, self.task, self.clock = parts, mode_named(mode), task, clock
        self.sampling, self.generator, self.longest = sampling, generator, longest
        self.sample_rate = parts.sample_rate
        messages = answer_prompt() if task == "answer" else transcribe_prompt()
        before, self.behind = split_prompt(parts.tokens, parts.tokens.prompt(messages, [[]]))
        self.writer = Writer.begin(parts.model)
        self.hearing = parts.tokenizer.init_state(1)
        self.heard = 0  # samples
        self.tokenising = 0.0  # seconds
        self.over = False
        self.result = Answer()
        self._read(before)

    @torch.inference_mode()
    def step(self, wave: Tensor) -> Reply:
        """(S,) at 16 kHz of the question: whole blocks become codes and are read at once."""
        if self.over:
            raise ConfigError("this question is over; begin another session for the next one")
        began = self.clock()
        codes, self.hearing = self.parts.tokenizer.step(wave[None], self.hearing)
        self.heard += len(wave)
        self.tokenising += self.clock() - began
        if codes.shape[1]:
            self._read([self.parts.tokens.first_code + code for code in codes[0].tolist()])
        return Reply()

    def answer(self) -> Iterator[Reply]:
        """The question is over: text and sound of the answer as they come. Times count from this call."""
        if not self.heard:
            raise AudioError("there is no sound to answer; record something first")
        if self.over:
            raise ConfigError("this question has been answered; begin another session for the next one")
        self.over, began, before = True, self.clock(), self.tokenising
        yield Reply(events=(Event("speech_ended", self.heard / SAMPLE_RATE),))
        with torch.inference_mode():
            codes = self.parts.tokenizer.flush(self.hearing)
            self.tokenising += self.clock() - began
            tail = [self.parts.tokens.first_code + code for code in codes[0].tolist()]
            self.writer.add([*tail, *self.behind])
            self.writer.begin_answer()
            if len(self.writer.tokens) == self.writer.room:
                raise AudioError("the question leaves no room for an answer; ask something shorter")
        passes = self.writer.passes
        yield from self._written(began, passes, before)
        yield Reply(events=(Event("reply_ended", self.heard / SAMPLE_RATE, self.result.text),))

    def played(self, seconds: float) -> None:
        """A session answers one question, so what the listener has heard changes nothing."""

    def close(self) -> None:
        """No more sound is taken."""
        self.over = True

    def _read(self, tokens: list[int]) -> None:
        with torch.inference_mode():
            self.writer.add(tokens)
            self.writer.prefill()

    def _written(self, began: float, passes: int, before: float) -> Iterator[Reply]:
        """Let the model write; codes become sound in chunks."""
        parts, result, tokens = self.parts, self.result, self.parts.tokens
        out, waiting, text = SpeechOut(parts, self.clock), list[int](), list[int]()
        first_token: float | None = None
        grammar = Grammar(
            tokens, parts.model.config.vocab_size, speaking=self.task == "answer", interleave=parts.interleave
        )
        room = self.writer.room - len(self.writer.tokens)
        limit = room if self.longest is None else min(room, self.longest)
        written = write_by_grammar(
            self.writer, grammar, self.mode, limit, options=self.sampling, generator=self.generator
        )
        while True:
            with torch.inference_mode():
                made = next(written, None)
                if made is None:
                    break
                if first_token is None:
                    first_token = self.clock()
                result.writers.append(made.module)
                code, piece, wave = tokens.code(made.token), "", None
                if code is not None:
                    waiting.append(code)
                    result.codes.append(code)
                elif made.token in tokens.text_ids:
                    text.append(made.token)
                    said = tokens.tokenizer.decode(text)
                    piece, result.text = said[len(result.text) :], said
                if waiting and (len(waiting) >= CHUNK or code is None):
                    wave, waiting = out.step(waiting), []
                if wave is not None and result.timing.first_sound is None and len(wave):
                    self._tell_first_sound(began, first_token, passes, before, out)
            if piece or wave is not None:
                yield Reply(text_piece=piece, wave_piece=wave)
        with torch.inference_mode():
            rest = out.step(waiting) if waiting else torch.zeros(0)
            rest = torch.cat([rest, out.flush()])
        result.text = result.text.strip()
        if len(rest):
            yield Reply(wave_piece=rest)

    def _tell_first_sound(self, began: float, first_token: float, passes: int, before: float, out: SpeechOut) -> None:
        """Where the time to the first sound went, in milliseconds."""
        now, timing = self.clock(), self.result.timing
        tokenise = self.tokenising - before
        flow, vocoder = out.spent["flow"], out.spent["vocoder"]
        prefill = first_token - began - tokenise
        parts = {"tokenise": tokenise, "prefill": prefill, "drafts": now - first_token - flow - vocoder, "flow": flow,
                 "vocoder": vocoder}  # fmt: skip
        timing.first_sound = 1000 * (now - began)
        timing.parts = {name: 1000 * value for name, value in parts.items()}
        self.result.passes_before_sound = self.writer.passes - passes


def split_prompt(tokens: VITATokens, prompt: list[int]) -> tuple[list[int], list[int]]:
    """A prompt with an empty clip, cut where the clip's codes go."""
    place = prompt.index(tokens.end_audio)
    return prompt[:place], prompt[place:]


@torch.inference_mode()
def speak_codes(parts: VITAAudioParts, text: str, mode: str = "boost") -> Iterator[list[int]]:
    """Text to speech through the published prompt: codes in chunks as they are written."""
    writer, tokens = Writer.begin(parts.model), parts.tokens
    writer.add(tokens.prompt(speak_prompt(text)))
    writer.begin_answer()
    grammar = Grammar(tokens, parts.model.config.vocab_size, speaking=True, interleave=parts.interleave)
    waiting = list[int]()
    for made in write_by_grammar(writer, grammar, mode_named(mode), writer.room - len(writer.tokens)):
        code = tokens.code(made.token)
        if code is not None:
            waiting.append(code)
        if waiting and (len(waiting) >= CHUNK or code is None):
            yield waiting
            waiting = []
    if waiting:
        yield waiting
