"""VITA-Audio over several turns: one text that grows, in which what was said and heard stays as text and codes.

    system | user: codes of the question | assistant: text and codes in turns | user: codes | assistant: ...

The chat template is the published one. The authors' demonstration forgets the sound of earlier turns; here it stays, so
that a checkpoint which has learned from several turns finds them as it learned them. nano-talk has learned from single
questions only and is not made for this: what it answers to a second one is left to chance.

Modules that read only the end of a prompt (``module_reads``) begin before the first answer and read everything from
there on, as they do where a record of several turns is learned.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vivavoce.codecs.glm4_tokenizer import AHEAD, SAMPLE_RATE, SAMPLES, GLM4Tokenizer, GLM4TokenizerState
from vivavoce.config import from_dict
from vivavoce.dialogue import Event, Reply
from vivavoce.dialogue.vita_audio import VITAAudio
from vivavoce.dialogue.vita_audio_prompts import CLIP, Message, answer_prompt
from vivavoce.dialogue.vita_audio_session import VITAAudioParts, VITAAudioSession, split_prompt
from vivavoce.dialogue.vita_audio_writing import Writer, mode_named
from vivavoce.errors import AudioError, CheckpointError, ConfigError
from vivavoce.nn.attention import KVCache
from vivavoce.search.sampling import SamplingOptions
from vivavoce.state import fork

FORM = 1  # of the file


@dataclass
class GrowingText(Writer):
    """A writer over several answers. What does not fit is refused, and from then on everything, so that nothing of a
    question is left out unnoticed."""

    answered: bool = False  # an answer has begun
    answer_from: int | None = None  # where the last answer begins, until its turn is closed
    full: bool = False

    def add(self, tokens: Sequence[int]) -> None:
        self.full = self.full or len(self.tokens) + len(tokens) > self.room
        if self.full:
            raise ConfigError(
                f"the conversation fills the {self.room} tokens that the model reads; begin another conversation"
            )
        super().add(tokens)

    def begin_answer(self) -> None:
        """Modules begin before the first answer; to every later one they go on."""
        if not self.answered:
            super().begin_answer()
        self.answered, self.answer_from = True, len(self.tokens)

    def prefill(self) -> None:
        """As a writer does; once modules have begun they read along with the backbone."""
        if not self.answered:
            super().prefill()
            return
        if self.read < len(self.tokens):
            self._read()
        for number, index in enumerate(self.drafted):
            if index < len(self.tokens):
                self._draft(number)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a conversation is led: ``mode`` of the schedule, ``longest`` answer in tokens."""

    mode: str = "boost"
    longest: int | None = None
    sampling: SamplingOptions | None = None


class VITAAudioConversation:
    """Turns over one growing text: :meth:`listen` to a question, take the :meth:`answer`, listen again.

    Say with :meth:`played` how much of an answer was heard, and :meth:`interrupt` it where the listener begins to
    speak. Not thread-safe; conversations of the same parts may be used in turns. Where the text reaches the end of what
    the model reads, or ``capacity``, ConfigError says so: nothing is forgotten in silence.
    """

    def __init__(
        self, parts: VITAAudioParts, *, mode: str = "boost", longest: int | None = None,
        sampling: SamplingOptions | None = None, generator: torch.Generator | None = None, capacity: int | None = None,
        clock: Callable[[], float] = perf_counter,
    ):  # fmt: skip
        mode_named(mode)
        if longest is not None and longest < 1:
            raise ConfigError(f"an answer has 1 token or more, not {longest}; leave longest out for as many as fit")
        self.parts, self.settings = parts, Settings(mode=mode, longest=longest, sampling=sampling)
        self.generator, self.clock = generator, clock
        self.sample_rate = parts.sample_rate
        self.text = GrowingText.begin(parts.model, capacity)
        self.turn: VITAAudioSession | None = None  # the question that is heard, or was answered last
        self.before = 0  # samples heard in earlier turns
        self.given = 0  # samples of the last answer
        self._played: float | None = None
        self._speaking: Iterator[Reply] | None = None

    @property
    def heard(self) -> int:
        """Samples heard in all turns."""
        return self.before + (self.turn.heard if self.turn is not None else 0)

    @property
    def listening(self) -> bool:
        return self.turn is not None and not self.turn.over

    # ------------------------------------------------------------------------------------------------------------ turns
    def listen(self, wave: Tensor) -> Reply:
        """(S,) at 16 kHz of the user's question, any length: whole blocks are read at once."""
        self._refuse_while_speaking()
        if not isinstance(wave, Tensor) or wave.dim() != 1 or not bool(torch.isfinite(wave).all()):
            raise AudioError(
                "a question is heard as a tensor (S,) of finite numbers; read sound with audio.io.read_blocks"
            )
        if not self.listening:
            self._next_turn()
        assert self.turn is not None
        return self.turn.step(wave.float())

    def answer(self) -> Iterator[Reply]:
        """The question is over: text and sound of the answer as they come."""
        self._refuse_while_speaking()
        turn = self.turn
        if turn is None or turn.over or not turn.heard:
            raise AudioError("there is no sound to answer; let the conversation listen first")
        self.given, self._played = 0, None
        self._speaking = speaking = turn.answer()
        return self._told(speaking)

    def played(self, seconds: float) -> None:
        """So much of the last answer has been heard; who never says it is taken to have heard all that was given."""
        self._played = seconds

    @torch.inference_mode()
    def interrupt(self) -> Reply:
        """The listener begins to speak: the answer stops, and what was not heard of it leaves the text.

        That is what follows the last code of which a part was played, text that runs ahead of its sound included. The
        turn is closed as a complete one is. The event says what text stays; there is none where there is no answer, or
        it was heard to its end.
        """
        complete = self._speaking is None
        if self._speaking is not None:
            self._speaking.close()  # pyright: ignore[reportAttributeAccessIssue]
            self._speaking = None
        begin, text, tokens = self.text.answer_from, self.text, self.parts.tokens
        if begin is None or (complete and self._samples_heard() >= self.given):
            return Reply()
        places = [n for n in range(begin, len(text.tokens)) if tokens.code(text.tokens[n]) is not None]
        sounded = self._codes_heard(len(places))
        text.cut(places[sounded - 1] + 1 if sounded else begin)
        text.full = False
        said = tokens.tokenizer.decode([token for token in text.tokens[begin:] if token in tokens.text_ids]).strip()
        self._close_answer()
        return Reply(events=(Event("interrupted", self.heard / SAMPLE_RATE, said),))

    def _refuse_while_speaking(self) -> None:
        if self._speaking is not None:
            raise ConfigError("an answer is being given; take it to its end, or interrupt it first")

    def _told(self, speaking: Iterator[Reply]) -> Iterator[Reply]:
        """The turn's replies, on the clock of the conversation."""
        try:
            for reply in speaking:
                if reply.wave_piece is not None:
                    self.given += len(reply.wave_piece)
                events = tuple(replace(event, at=event.at + self.before / SAMPLE_RATE) for event in reply.events)
                yield replace(reply, events=events)
        except AudioError as error:
            self._speaking = None
            raise ConfigError(f"{error}, or begin another conversation") from error
        except ConfigError:
            self._speaking = None
            raise
        if self._speaking is not speaking:
            return  # interrupted
        self._speaking = None
        text = self.text
        if len(text.tokens) == text.room and text.tokens[-1] != self.parts.tokens.end:
            raise ConfigError(
                f"the conversation fills the {text.room} tokens that the model reads, so this answer ends early; begin "
                "another conversation"
            )

    @torch.inference_mode()
    def _next_turn(self) -> None:
        """Close the answer before, if there is one, and begin the next question."""
        messages = [Message("user", f"\n{CLIP}")] if self.text.tokens else answer_prompt()
        if self.text.answer_from is not None:
            self._close_answer()
        self.before, tokens = self.heard, self.parts.tokens
        opening, _ = split_prompt(tokens, tokens.prompt(messages, [[]]))
        self.turn = None
        self.turn = self._turn(opening)

    def _turn(self, opening: list[int]) -> VITAAudioSession:
        """A question that goes on with the text, which has come to its opening or has it already."""
        settings = self.settings
        return VITAAudioSession(
            self.parts, mode=settings.mode, longest=settings.longest, sampling=settings.sampling,
            generator=self.generator, clock=self.clock, writer=self.text, before=opening,
        )  # fmt: skip

    def _close_answer(self) -> None:
        """End the last answer as the template ends a turn; a block of sound that was broken off is closed first."""
        tokens, text, begin = self.parts.tokens, self.text, self.text.answer_from
        assert begin is not None
        said, closing = text.tokens[begin:], tokens.close()
        if said and said[-1] == tokens.end:
            closing = closing[1:]
        elif said and (said[-1] == tokens.begin_audio or tokens.code(said[-1]) is not None):
            closing = [tokens.end_audio, *closing]
        text.add(closing)
        text.answer_from = None

    def _samples_heard(self) -> int:
        return self.given if self._played is None else min(self.given, round(self._played * self.sample_rate))

    def _codes_heard(self, written: int) -> int:
        """Of how many of the answer's codes at least a part was played."""
        decoder, hop, heard = self.parts.decoder, self.parts.vocoder.hop_length, self._samples_heard()
        return next((n for n in range(written) if decoder.frames(n) * hop >= heard), written)

    # ---------------------------------------------------------------------------------------------------- copy and file
    def fork(self) -> VITAAudioConversation:
        """Another conversation with the same past; what happens in one does not touch the other.

        ConfigError while an answer is being given.
        """
        self._refuse_while_speaking()
        other = copy.copy(self)
        other.text = self.text.fork()
        if self.generator is not None:
            other.generator = torch.Generator(self.generator.device)
            other.generator.set_state(self.generator.get_state())
        if self.turn is not None:
            other.turn = other._turn([])
            _resume(other.turn, fork(self.turn.hearing), self.turn.heard, self.turn.over)
        return other

    @torch.inference_mode()
    def save(self, path: str | Path) -> None:
        """All that the conversation is, as one safetensors file, replaced in one move.

        ConfigError while an answer is being given, CheckpointError where the file cannot be written; one that was there
        before stays then.
        """
        self._refuse_while_speaking()
        path = Path(path)
        tensors = {f"text.{name}": tensor for name, tensor in self.text.to_tensors().items()}
        tensors["probe"] = probe(self.parts.model)
        if self.generator is not None:
            tensors["generator"] = self.generator.get_state()
        if self.turn is not None and self.listening:
            tensors |= {f"hearing.{name}": tensor for name, tensor in _hearing_tensors(self.turn.hearing).items()}
        about = {
            "form": FORM, "settings": asdict(self.settings), "room": self.text.room, "answered": self.text.answered,
            "full": self.text.full, "answer_from": self.text.answer_from, "before": self.before, "given": self.given,
            "played": self._played, "turn": None if self.turn is None else self.turn.heard,
            "listening": self.listening, "parts": _description(self.parts),
        }  # fmt: skip
        kept = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        about["digest"] = _digest(kept)
        if path.is_dir() or not path.parent.is_dir():
            raise CheckpointError(f"{path} cannot be written; name a file in a folder that is there")
        part = path.with_name(f"{path.name}.part")
        try:
            save_file(kept, part, {"conversation": json.dumps(about)})
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
        except (OSError, SafetensorError) as error:
            part.unlink(missing_ok=True)
            raise CheckpointError(f"{path} cannot be written ({error}); name a place with room for it") from error

    @classmethod
    def restore(
        cls, parts: VITAAudioParts, path: str | Path, *, clock: Callable[[], float] = perf_counter
    ) -> VITAAudioConversation:
        """The conversation that :meth:`save` wrote, with the model that it was held with.

        CheckpointError where the file is damaged, of another kind, or from a conversation with another model.
        """
        about, tensors = _read_file(path)
        try:
            if about["form"] != FORM:
                raise ValueError("it was written by another version")
            if about["digest"] != _digest(tensors):
                raise ValueError("its content is not what was written")
            if about["parts"] != _description(parts):
                raise CheckpointError(f"{path} is from a conversation with another model; open that one")
            return cls._restored(parts, about, tensors, clock)
        except (ValueError, KeyError, IndexError, TypeError, RuntimeError, ConfigError) as error:
            raise CheckpointError(f"{path} is no conversation that can be gone on with; save it again") from error

    @classmethod
    def _restored(
        cls, parts: VITAAudioParts, about: Mapping[str, Any], tensors: dict[str, Tensor], clock: Callable[[], float]
    ) -> VITAAudioConversation:
        settings, room = from_dict(Settings, about["settings"]), _count(about["room"])
        probed, drawn = tensors.pop("probe"), tensors.pop("generator", None)
        groups: dict[str, dict[str, Tensor]] = {"text": {}, "hearing": {}}
        for name, tensor in tensors.items():
            group, _, rest = name.partition(".")
            groups[group][rest] = tensor
        made = cls(
            parts, mode=settings.mode, longest=settings.longest, sampling=settings.sampling, capacity=room, clock=clock
        )
        with torch.inference_mode():
            known = probe(parts.model)
            if probed.shape != known.shape or not torch.allclose(probed, known, atol=0.01 * float(known.abs().max())):
                raise ValueError("the weights are others")
            made.text = GrowingText.from_tensors(parts.model, groups["text"], room)
        made.text.answered, made.text.full = _flag(about["answered"]), _flag(about["full"])
        made.before, made.given = _count(about["before"]), _count(about["given"])
        made._played = None if about["played"] is None else float(about["played"])
        begin = None if about["answer_from"] is None else _count(about["answer_from"])
        if begin is not None and not made.text.begun <= begin <= len(made.text.tokens):
            raise ValueError("the answer begins outside the text")
        made.text.answer_from = begin
        if drawn is not None:
            made.generator = torch.Generator(made.text.device)
            made.generator.set_state(drawn)
        if about["turn"] is not None:
            listening, hearing = _flag(about["listening"]), parts.tokenizer.init_state(1)
            if listening:
                hearing = _hearing_state(parts.tokenizer, groups["hearing"])
            made.turn = made._turn([])
            _resume(made.turn, hearing, _count(about["turn"]), not listening)
        return made


def _resume(turn: VITAAudioSession, hearing: GLM4TokenizerState, heard: int, over: bool) -> None:
    turn.hearing, turn.heard, turn.over = hearing, heard, over


@torch.inference_mode()
def probe(model: VITAAudio) -> Tensor:
    """What the model says of a fixed text, backbone and modules one a row (K + 1, 16): tells models of the same sizes
    apart, however their weights are stored."""
    length, size = len(model.mctp) + 2, model.config.vocab_size
    writer, rows = Writer.begin(model, length), slice(0, min(16, size))
    writer.add([(7 * n + 1) % size for n in range(length)])
    found = [writer.backbone(rows), *(writer.module(number, rows) for number in range(len(model.mctp)))]
    return torch.stack(found).float().cpu()


def _description(parts: VITAAudioParts) -> dict[str, Any]:
    """What must be the same when a conversation goes on, in the form that it has in a file."""
    sizes = {"model": asdict(parts.model.config), "tokenizer": asdict(parts.tokenizer.config),
             "interleave": parts.interleave}  # fmt: skip
    return json.loads(json.dumps(sizes))


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Of names and contents: tells a damaged file, in which numbers may still be numbers."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return found.hexdigest()


def _read_file(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["conversation"])
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} holds no conversation; name a file that a conversation was saved to") from error
    if not isinstance(about, dict):
        raise CheckpointError(f"{path} holds no conversation; name a file that a conversation was saved to")
    return about, tensors


def _hearing_tensors(state: GLM4TokenizerState) -> dict[str, Tensor]:
    """The tokenizer's state, of its caches what is filled."""
    small = ("wave", "past", "conv1", "conv2", "loudest", "position")
    found: dict[str, Tensor] = {name: getattr(state, name) for name in small}
    for number, cache in enumerate(state.caches):
        filled = int(cache.position[0])
        found |= {f"{number}.key": cache.key[:, :, :filled], f"{number}.value": cache.value[:, :, :filled]}
    return found


def _hearing_state(tokenizer: GLM4Tokenizer, tensors: dict[str, Tensor]) -> GLM4TokenizerState:
    """The inverse of :func:`_hearing_tensors`; ValueError where a tensor does not fit."""
    state, config, caches = tokenizer.init_state(1), tokenizer.config, list[KVCache]()
    place = int(tensors["position"].item())
    if not 0 <= place <= config.context or len(tensors) != 6 + 2 * len(state.caches):
        raise ValueError("the tokenizer's state does not fit")
    for number, cache in enumerate(state.caches):
        for kept, name in ((cache.key, "key"), (cache.value, "value")):
            given = _like(tensors[f"{number}.{name}"], kept[:, :, :place])
            kept[:, :, :place] = given
        caches.append(replace(cache, position=torch.full_like(cache.position, place)))
    most = SAMPLES * config.block + AHEAD
    loose = {}
    for name in ("wave", "past"):
        wanted = getattr(state, name).new_empty(1, min(most, tensors[name].shape[1]))
        loose[name] = _like(tensors[name], wanted)
    fixed = {name: _like(tensors[name], getattr(state, name)) for name in ("conv1", "conv2", "loudest", "position")}
    return replace(state, caches=tuple(caches), **loose, **fixed)


def _like(tensor: Tensor, wanted: Tensor) -> Tensor:
    if tensor.shape != wanted.shape or tensor.dtype != wanted.dtype:
        raise ValueError(f"a tensor is {list(tensor.shape)} and should be {list(wanted.shape)}")
    return tensor.to(wanted.device)
