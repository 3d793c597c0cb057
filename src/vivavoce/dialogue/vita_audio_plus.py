"""VITA-Audio-Plus (Long et al. 2025, arXiv 2505.03739): it hears states of a recogniser where VITA-Audio reads codes.

    clip (B, S) 16 kHz -> SenseVoice, its four queries included -> norm, linear, GELU, linear -> (B, N + 4, D)
    prompt  ... <|begin_of_audio|> <|context_of_audio|> x (N + 4) <|end_of_audio|> ...

The backbone reads the clip's states in the place of the embeddings of <|context_of_audio|>; the modules read those
embeddings themselves, in training and in use. What the model says is codes, as before. Parts: asr/sensevoice.py,
dialogue/vita_audio.py. SenseVoice stays as it is in every stage of training, and hears a clip when it is over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.asr.sensevoice import SenseVoice, SenseVoiceConfig
from vivavoce.dialogue.vita_audio import VITAAudio, VITAAudioConfig, VITAAudioState
from vivavoce.dialogue.vita_audio_prompts import VITATokens
from vivavoce.dialogue.vita_audio_writing import Writer
from vivavoce.errors import ConfigError
from vivavoce.text.tokenizer import Tokenizer

HEARD = -1  # stands for one state of a clip where a prompt is given codes


@dataclass(frozen=True, kw_only=True)
class VITAAudioPlusConfig:
    """The model that writes, and the one that hears. ``rounded``: the features of a clip go through bfloat16 whatever
    type the weights have, as in the authors' code (a change of about one per cent)."""

    model: VITAAudioConfig
    hearing: SenseVoiceConfig
    rounded: bool = True

    @classmethod
    def published(cls, modules: int | str = 0) -> VITAAudioPlusConfig:
        """VITA-Audio-Plus-Vanilla, 7,979,042,111 parameters; with ten modules VITA-Audio-Plus-Boost, 10,566,592,831."""
        return cls(model=VITAAudioConfig.published(modules), hearing=SenseVoiceConfig.published())

    @classmethod
    def tiny(cls) -> VITAAudioPlusConfig:
        """Both at their tiny sizes, with three modules: for tests."""
        return cls(model=VITAAudioConfig.tiny(), hearing=SenseVoiceConfig.tiny())


class Projector(nn.Module):
    """States of the recogniser (..., D) to embeddings of the language model, one for each: LayerNorm, two layers."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.inner = nn.Linear(dim, out_dim, bias=False)
        self.out = nn.Linear(out_dim, out_dim, bias=False)
        for layer in (self.inner, self.out):
            nn.init.normal_(layer.weight, std=0.02)

    def forward(self, states: Tensor) -> Tensor:
        return self.out(F.gelu(self.inner(self.norm(states))))


@dataclass(frozen=True)
class Sound:
    """What is heard in a text: ``places`` bool (B, T), and their states (n, D), one for each in reading order."""

    places: Tensor
    states: Tensor

    def over(self, embedded: Tensor) -> Tensor:
        """Embeddings (B, T, D), those at the places exchanged for the states."""
        wanted = int(self.places.sum())
        if wanted != len(self.states):
            raise misfit(wanted, len(self.states))
        return embedded.masked_scatter(self.places[..., None], self.states.to(embedded.dtype))


def misfit(places: int, states: int) -> ConfigError:
    return ConfigError(
        f"the text has {places} places for sound and the clips fill {states}; give every clip its own places"
    )


class VITAAudioPlus(nn.Module):
    """Hearing, projector, and the model that writes."""

    def __init__(self, config: VITAAudioPlusConfig):
        super().__init__()
        self.config = config
        self.model = VITAAudio(config.model)
        self.hearing = SenseVoice(config.hearing)
        self.projector = Projector(config.hearing.dim, config.model.decoder.dim)

    def hear(self, wave: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
        """Clips (B, S) at 16 kHz, of which ``lengths`` (B,) samples are real -> the states of each, (N + 4, D)."""
        features, count = self.hearing.features(wave, lengths)
        if self.config.rounded:
            features = features.bfloat16().to(features.dtype)
        states, count = self.hearing.encode(features, count if lengths is not None else None)
        return [row[:length] for row, length in zip(self.projector(states), count.tolist(), strict=True)]

    def init_state(self, batch: int, capacity: int | None = None) -> VITAAudioState:
        """Empty caches of ``capacity`` positions (default: the context)."""
        return self.model.init_state(batch, capacity)

    def step(
        self, tokens: Tensor, state: VITAAudioState, span: int | None = None, sound: Sound | None = None
    ) -> tuple[Tensor, VITAAudioState]:
        """A backbone pass: (B, T) further tokens -> normed states (B, T, D); the state given is consumed."""
        return self.model.step(tokens, state, span, self._read(tokens, sound))

    def forward(self, tokens: Tensor, sound: Sound | None = None) -> list[Tensor]:
        """States of the backbone and of every module, each (B, T, D) aligned as those of
        :meth:`~vivavoce.dialogue.vita_audio.VITAAudio.forward`, for rows (B, T) of one document each."""
        return self.model(tokens, read=self._read(tokens, sound))

    def loss_terms(self, tokens: Tensor, labels: Tensor, sound: Sound | None = None) -> dict[str, Tensor]:
        """Losses for rows of one document each; see :meth:`~vivavoce.dialogue.vita_audio.VITAAudio.loss_terms`."""
        return self.model.loss_terms(tokens, labels, read=self._read(tokens, sound))

    def _read(self, tokens: Tensor, sound: Sound | None) -> Tensor | None:
        """What the backbone reads where something is heard."""
        return None if sound is None else sound.over(self.model.embedding(tokens))

    def logits(self, hidden: Tensor) -> Tensor:
        """States (..., D) -> logits (..., V)."""
        return self.model.logits(hidden)


# ------------------------------------------------------------------------------------------------------------- prompts
class PlusTokens(VITATokens):
    """The tokens of the Plus checkpoints. A clip that is heard is given as :func:`unheard` of its length, and one that
    is said, as in the answers of training records, as its codes."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__(tokenizer)
        self.context = tokenizer.id("<|context_of_audio|>")

    def clip(self, codes: Sequence[int]) -> list[int]:
        """A clip of sound as tokens, marks included."""
        if codes and all(code == HEARD for code in codes):
            return [self.begin_audio, *[self.context] * len(codes), self.end_audio]
        return super().clip(codes)


def unheard(states: int) -> list[int]:
    """What stands for a clip of so many states among the clips of a prompt or record."""
    return [HEARD] * states


@dataclass
class PlusWriter(Writer):
    """A text of which the backbone hears some places. ``places``: their indices; ``sound``: what is heard there, (n, D)
    each clip."""

    places: list[int] = field(default_factory=list)
    sound: list[Tensor] = field(default_factory=list)

    def add_heard(self, tokens: Sequence[int], clips: Sequence[Tensor], context: int) -> None:
        """Put tokens behind the text, in which the states of ``clips``, in order, are heard wherever ``context``
        stands."""
        places = [index for index, token in enumerate(tokens, len(self.tokens)) if token == context]
        states = sum(len(clip) for clip in clips)
        if len(places) != states:
            raise misfit(len(places), states)
        self.add(tokens)
        self.places += places
        self.sound += clips

    def fork(self) -> Self:
        return replace(super().fork(), places=list(self.places), sound=list(self.sound))

    def cut(self, length: int) -> None:
        super().cut(length)
        self._forget(length)

    def roll_back(self, length: int) -> None:
        super().roll_back(length)
        self._forget(length)

    def _forget(self, length: int) -> None:
        """Nothing is heard behind the end of the text."""
        kept = sum(index < length for index in self.places)
        if kept < len(self.places):
            self.places, self.sound = self.places[:kept], [torch.cat(self.sound)[:kept]]

    def to_tensors(self) -> dict[str, Tensor]:
        """Of what was heard the states are kept as well."""
        heard = (
            torch.cat(self.sound)
            if self.sound
            else self.model.decoder.norm.weight.new_zeros(0, self.model.config.decoder.dim)
        )
        return super().to_tensors() | {"places": torch.tensor(self.places, dtype=torch.long), "sound": heard}

    @classmethod
    def from_tensors(cls, model: VITAAudio, tensors: Mapping[str, Tensor], capacity: int | None = None) -> Self:
        rest = {name: tensor for name, tensor in tensors.items() if name not in ("places", "sound")}
        writer = super().from_tensors(model, rest, capacity)
        if not {"places", "sound"} <= tensors.keys():
            raise ValueError("what was heard is missing")
        places, sound = tensors["places"].tolist(), tensors["sound"]
        if sound.shape != (len(places), model.config.decoder.dim) or not all(
            0 <= place < len(writer.tokens) for place in places
        ):
            raise ValueError("what was heard does not fit the text")
        writer.places, writer.sound = places, [sound]
        return writer

    def embedded(self, end: int) -> Tensor | None:
        here = [number for number, index in enumerate(self.places) if self.read <= index < end]
        if not here:
            return None
        new = torch.tensor([self.tokens[self.read : end]], device=self.device)
        heard = torch.zeros_like(new, dtype=torch.bool)
        heard[0, [self.places[number] - self.read for number in here]] = True
        return Sound(heard, torch.cat(self.sound)[here]).over(self.model.embedding(new))
