"""VITA-Audio as a partner in conversation: sound in, text and sound out, each as soon as it can be.

While the question is spoken its blocks become codes and the backbone reads them; when it ends only the last block, the
end of the prompt and the first tokens of the answer are left to do. Speech tokens become mel frames and samples chunk
by chunk with carried states: nothing is decoded twice, and the level is that of the voice. One thread does everything:
:meth:`VITAAudioSession.answer` gives the answer piece by piece.

Where drafts are verified, their sound is released either when they stand, or early: as soon as they are drafted. Then
what does not stand is taken back, and so is its sound, as far as the listener has not heard it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Literal, get_args

import torch
from torch import Tensor

from vivavoce.codecs.glm4_decoder import GLM4Decoder, GLM4DecoderState, time_noise
from vivavoce.codecs.glm4_tokenizer import SAMPLE_RATE, GLM4Tokenizer
from vivavoce.dialogue import Event, Reply, Timing
from vivavoce.dialogue.vita_audio import VITAAudio
from vivavoce.dialogue.vita_audio_cycles import Checked, TakenBack, Written, write_by_grammar, write_verified
from vivavoce.dialogue.vita_audio_grammar import Grammar
from vivavoce.dialogue.vita_audio_policies import Acceptance, Policy
from vivavoce.dialogue.vita_audio_prompts import VITATokens, answer_prompt, speak_prompt, transcribe_prompt
from vivavoce.dialogue.vita_audio_writing import Writer, mode_named
from vivavoce.errors import AudioError, ConfigError, nearest
from vivavoce.search.sampling import SamplingOptions
from vivavoce.state import fork
from vivavoce.vocoders.hift import HiFT, HiFTState, source_noise

HALF = "\ufffd"  # stands for bytes that are no whole character
CHUNK = 8  # codes decoded together: the block of the published interleaving
Task = Literal["answer", "transcribe"]
Release = Literal["verified", "early"]
RELEASES: tuple[str, ...] = get_args(Release)


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


@dataclass(frozen=True)
class SpeechState:
    """How far speech has come: states of flow decoder and vocoder, ``codes`` heard, ``frames`` and ``samples`` made,
    samples of the vocoder's delay still ``withheld``."""

    flow: GLM4DecoderState
    wave: HiFTState
    withheld: int
    codes: int = 0
    frames: int = 0
    samples: int = 0

    def fork(self) -> SpeechState:
        """A copy to come back to: the next step writes into the states it is given."""
        return replace(self, flow=fork(self.flow), wave=fork(self.wave))


class SpeechOut:
    """Codes to samples as they come: flow decoder and vocoder with their states. ``state`` is a value that one holds:
    put a fork of it back, and the codes since then have never been heard."""

    def __init__(self, parts: VITAAudioParts, clock: Callable[[], float] = perf_counter):
        self.parts, self.clock = parts, clock
        self.state = SpeechState(parts.decoder.init_state(1), parts.vocoder.init_state(1), parts.vocoder.delay)
        self.spent = {"flow": 0.0, "vocoder": 0.0}

    def step(self, codes: list[int]) -> Tensor:
        """Further codes -> the samples (S,) that are certain by now."""
        began, state = self.clock(), self.state
        noise = self._noise(self.parts.decoder.due(state.codes, len(codes)))
        mel, flow = self.parts.decoder.step(torch.tensor([codes]), state.flow, noise)
        self.state = replace(state, flow=flow, codes=state.codes + len(codes))
        self.spent["flow"] += self.clock() - began
        return self._vocoded(mel)

    def flush(self) -> Tensor:
        """The samples still withheld."""
        if not self.state.codes:
            return torch.zeros(0)
        decoder, vocoder, wave = self.parts.decoder, self.parts.vocoder, torch.zeros(0)
        if decoder.lookahead:
            ahead = decoder.due(self.state.codes, decoder.lookahead)
            mel = decoder.flush(self.state.flow, self._noise(ahead))
            wave = self._vocoded(mel)
        return torch.cat([wave, self._without_delay(vocoder.flush(self.state.wave)[0][: vocoder.delay])])

    def _noise(self, tokens: int) -> Tensor:
        decoder = self.parts.decoder
        return time_noise(self.state.frames, decoder.frames(tokens), decoder.config.n_mels)[None]

    def _vocoded(self, mel: Tensor) -> Tensor:
        if not mel.shape[-1]:
            return torch.zeros(0)
        parts, state, began, hop = self.parts, self.state, self.clock(), self.parts.vocoder.hop_length
        drawn = source_noise(hop * state.frames, hop * mel.shape[-1], parts.vocoder.config.harmonics, seed=0)
        made, wave = parts.vocoder.step(mel * parts.scale + parts.mean, state.wave, noise=drawn)
        self.state = replace(state, wave=wave, frames=state.frames + mel.shape[-1])
        self.spent["vocoder"] += self.clock() - began
        return self._without_delay(made[0])

    def _without_delay(self, wave: Tensor) -> Tensor:
        state, skipped = self.state, min(self.state.withheld, len(wave))
        self.state = replace(state, withheld=state.withheld - skipped, samples=state.samples + len(wave) - skipped)
        return wave[skipped:]


class Mouth:
    """Codes to sound for one listener, in chunks; codes that do not stand can be taken back.

    Places are samples of the answer: ``given`` is how far the listener has sound, which is further than it has been
    made where what was heard has been taken back since: there the sound that is made anew comes too late and is
    dropped. Unless it is told how much was heard, the listener plays in real time what it has.
    """

    def __init__(self, parts: VITAAudioParts, clock: Callable[[], float]):
        self.out, self.rate, self.clock = SpeechOut(parts, clock), parts.sample_rate, clock
        self.waiting = list[int]()
        self.doubtful = list[tuple[SpeechState, list[int]]]()  # chunks that may be taken back, and what was before each
        self.given = self.mourned = 0  # mourned: how far what was heard in vain has been counted
        self.heard, self.now, self.told = 0.0, clock(), False
        self.regretted = 0

    def say(self, certain: bool) -> Tensor:
        """The codes that wait become sound -> what of it is new to the listener (S,); ``certain``: they stand."""
        if not certain:
            self.doubtful.append((self.out.state.fork(), self.waiting))
        wave, self.waiting = self.out.step(self.waiting), []
        return self._give(wave)

    def finish(self) -> Tensor:
        """The answer is over -> the rest of its sound (S,)."""
        rest = [self.out.step(self.waiting)] if self.waiting else []
        self.waiting = []
        return self._give(torch.cat([*rest, self.out.flush()]))

    def agree(self) -> None:
        """All codes so far stand."""
        self.doubtful.clear()

    def take_back(self, count: int) -> int:
        """The last ``count`` codes do not stand -> how many samples, the last that were given, are void."""
        sounded = count > len(self.waiting)
        while count > len(self.waiting):
            self.out.state, chunk = self.doubtful.pop()
            self.waiting = [*chunk, *self.waiting]
        del self.waiting[len(self.waiting) - count :]
        if not sounded:
            return 0
        if self.waiting:  # codes of a broken chunk that stand: the listener has their sound, so all of it stays
            self.out.step(self.waiting)
            self.waiting = []
        self._listen()
        made, heard, given = self.out.state.samples, int(self.heard), self.given
        self.regretted += max(0, heard - max(made, self.mourned))
        self.mourned = max(heard, self.mourned)
        self.given = max(made, heard)
        return given - self.given

    def played(self, seconds: float) -> None:
        """The listener says how much it has heard."""
        self.told, self.heard = True, max(self.heard, min(self.given, round(seconds * self.rate)))

    def _give(self, wave: Tensor) -> Tensor:
        self._listen()
        new = wave[max(0, self.given - (self.out.state.samples - len(wave))) :]
        self.given += len(new)
        return new

    def _listen(self) -> None:
        before, self.now = self.now, self.clock()
        if not self.told:
            self.heard = min(self.given, self.heard + (self.now - before) * self.rate)


@dataclass
class Answer:
    """What came of one question. ``writers``: who wrote each token, None the backbone. With verified drafts
    ``acceptance`` says what became of them; ``regretted``: samples that were heard although they did not stand."""

    text: str = ""
    codes: list[int] = field(default_factory=list)
    writers: list[int | None] = field(default_factory=list)
    timing: Timing = field(default_factory=Timing)
    passes_before_sound: int | None = None
    acceptance: Acceptance | None = None
    regretted: int = 0


class VITAAudioSession:
    """One question and its answer: feed sound with :meth:`step`, then take :meth:`answer`. Not thread-safe; sessions of
    the same parts may be used in turns.

    Unlike other sessions of this room it does not find the question's end: whoever feeds it says so by taking the
    answer.

    With the policy ``verify`` the drafts are checked (dialogue/vita_audio_policies.py), and the policy says how tokens
    are chosen in place of ``sampling``. ``release`` "verified": only codes that stand become sound. "early": drafts do
    as well; sound that proves void is taken back by an event, but for what was :meth:`played`. Text and codes are the
    same under both."""

    def __init__(
        self, parts: VITAAudioParts, *, mode: str = "boost", task: Task = "answer", longest: int | None = None,
        sampling: SamplingOptions | None = None, generator: torch.Generator | None = None,
        verify: Policy | None = None, release: Release = "verified", clock: Callable[[], float] = perf_counter,
        writer: Writer | None = None, before: list[int] | None = None,
    ):  # fmt: skip
        """``writer`` and ``before``: the text to go on with, and what comes in it before the sound, in place of a new
        one and the published prompt."""
        self.verify, self.release = verify, check_release(release, verify is not None)
        if verify is not None and sampling is not None:
            raise ConfigError("a policy of verifying says how tokens are drawn; leave sampling out")
        self.parts, self.mode, self.task, self.clock = parts, mode_named(mode), task, clock
        self.sampling, self.generator, self.longest = sampling, generator, longest
        self.sample_rate = parts.sample_rate
        messages = answer_prompt() if task == "answer" else transcribe_prompt()
        opening, self.behind = split_prompt(parts.tokens, parts.tokens.prompt(messages, [[]]))
        self.writer = Writer.begin(parts.model) if writer is None else writer
        self.hearing = parts.tokenizer.init_state(1)
        self.heard = 0  # samples
        self.tokenising = 0.0  # seconds
        self.over = False
        self.result = Answer(acceptance=None if verify is None else Acceptance())
        self.mouth = Mouth(parts, clock)
        self._read(opening if before is None else before)

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
        with torch.inference_mode():
            codes = self.parts.tokenizer.flush(self.hearing)
            self.tokenising += self.clock() - began
            tail = [self.parts.tokens.first_code + code for code in codes[0].tolist()]
            self.writer.add([*tail, *self.behind])
            self.writer.begin_answer()
            if len(self.writer.tokens) == self.writer.room:
                raise AudioError("the question leaves no room for an answer; ask something shorter")
        yield Reply(events=(Event("speech_ended", self.heard / SAMPLE_RATE),))
        passes = self.writer.passes
        yield from self._written(began, passes, before)
        yield Reply(events=(Event("reply_ended", self.heard / SAMPLE_RATE, self.result.text),))

    def played(self, seconds: float) -> None:
        """The listener has heard so many seconds of the sound it was given. Only sound that is released early can be
        taken back, so else it changes nothing; who never says it is taken to play in real time from the first piece on.
        """
        self.mouth.played(seconds)

    def close(self) -> None:
        """No more sound is taken."""
        self.over = True

    def _read(self, tokens: list[int]) -> None:
        if tokens:
            with torch.inference_mode():
                self.writer.add(tokens)
                self.writer.prefill()

    def _written(self, began: float, passes: int, before: float) -> Iterator[Reply]:
        """Let the model write; codes become sound in chunks."""
        result, mouth, events = self.result, self.mouth, self._events()
        told, first_token = list[int](), None
        while True:
            with torch.inference_mode():
                event = next(events, None)
                if event is None:
                    break
                first_token = self.clock() if first_token is None else first_token
                if isinstance(event, TakenBack):
                    reply = self._taken_back(event.count, told)
                else:
                    told.append(event.token)
                    reply = self._taken(event, told)
                sounds = reply.wave_piece is not None and len(reply.wave_piece)
                if sounds and result.timing.first_sound is None:
                    self._tell_first_sound(began, first_token, passes, before)
            if reply.text_piece or reply.wave_piece is not None or reply.events:
                yield reply
        with torch.inference_mode():
            rest = mouth.finish()
        if len(rest):
            yield Reply(wave_piece=rest)

    def _events(self) -> Iterator[Written | TakenBack]:
        """What the model writes, and takes back."""
        parts, writer = self.parts, self.writer
        speaking, size = self.task == "answer", parts.model.config.vocab_size
        grammar = Grammar(parts.tokens, size, speaking=speaking, interleave=parts.interleave)
        room = writer.room - len(writer.tokens)
        limit = room if self.longest is None else min(room, self.longest)
        if self.verify is None:
            return write_by_grammar(writer, grammar, self.mode, limit, options=self.sampling, generator=self.generator)
        return write_verified(
            writer, grammar, self.mode, limit, self.verify, early=self.release == "early", generator=self.generator,
            acceptance=self.result.acceptance,
        )  # fmt: skip

    def _taken(self, made: Written, told: list[int]) -> Reply:
        """A further token, the last of those ``told``: text, or a code that waits for its chunk."""
        result, mouth, tokens = self.result, self.mouth, self.parts.tokens
        certain = not isinstance(made, Checked) or made.verified
        if certain:
            mouth.agree()
        result.writers.append(made.module)
        code, piece, wave = tokens.code(made.token), "", None
        if code is not None:
            mouth.waiting.append(code)
            result.codes.append(code)
        elif made.token in tokens.text_ids:
            said = tokens.tokenizer.decode([token for token in told if token in tokens.text_ids])
            said = said.rstrip(HALF).strip()  # what comes may complete a character, or end the answer
            piece, result.text = said[len(result.text) :], said
        if mouth.waiting and (len(mouth.waiting) >= CHUNK or code is None):
            wave = mouth.say(certain)
        return Reply(text_piece=piece, wave_piece=wave)

    def _taken_back(self, count: int, told: list[int]) -> Reply:
        """The last tokens do not stand, nor does their sound; text is never drafted, so it always stands."""
        result, tokens = self.result, self.parts.tokens
        codes = sum(tokens.code(token) is not None for token in told[-count:])
        del told[-count:], result.writers[-count:], result.codes[len(result.codes) - codes :]
        void = self.mouth.take_back(codes)
        result.regretted = self.mouth.regretted
        return Reply(events=(Event("taken_back", self.heard / SAMPLE_RATE, samples=void),) if void else ())

    def _tell_first_sound(self, began: float, first_token: float, passes: int, before: float) -> None:
        """Where the time to the first sound went, in milliseconds."""
        now, timing = self.clock(), self.result.timing
        tokenise = self.tokenising - before
        flow, vocoder = self.mouth.out.spent["flow"], self.mouth.out.spent["vocoder"]
        prefill = first_token - began - tokenise
        parts = {"tokenise": tokenise, "prefill": prefill, "drafts": now - first_token - flow - vocoder, "flow": flow,
                 "vocoder": vocoder}  # fmt: skip
        timing.first_sound = 1000 * (now - began)
        timing.parts = {name: 1000 * value for name, value in parts.items()}
        self.result.passes_before_sound = self.writer.passes - passes


def check_release(word: str, verified: bool) -> Release:
    """The way of release that a word means; ConfigError where there is none, or where nothing is verified later."""
    if word == "verified":
        return "verified"
    if word != "early":
        raise ConfigError(f"no release is called {word!r}{nearest(word, RELEASES)}; use one of {', '.join(RELEASES)}")
    if not verified:
        raise ConfigError(
            "release early takes back what does not stand, so drafts must be verified; say how: --verify exact"
        )
    return "early"


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
