"""The published way to stream GLM-4-Voice's decoder, call by call: codes in blocks, the mel that was returned given
back as the known past, the last mel frames of a block kept back and cross-faded with the next.

It is not exact (a whole decode of the same tokens differs), and each call reads all that came before, so the work of a
call grows with the speech; the causal sizes of ``codecs/glm4_decoder.py`` do neither. Two quirks are part of it: the
known past lacks the frames kept back, and holds one frame a call twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vivavoce.codecs.glm4_decoder import GLM4Decoder
from vivavoce.errors import ConfigError

OVERLAP_TOKENS = 5  # of speech whose mel is kept back for the cross-fade

Vocoder = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class SourceVocoder(Protocol):
    """A vocoder driven by a source that it makes from the mel, such as HiFT."""

    hop_length: int

    def __call__(self, mel: Tensor, *, source: Tensor) -> Tensor: ...

    def f0(self, mel: Tensor) -> Tensor: ...

    def source(self, f0: Tensor, phase: Tensor | None = None, noise: Tensor | None = None) -> Tensor: ...


def continuing(vocoder: SourceVocoder, draw: Callable[[int], tuple[Tensor | None, Tensor | None]]) -> Vocoder:
    """``vocoder`` as a stream needs it: its source starts with what drove it last. ``draw(samples)`` gives the phase
    (B, H + 1) and noise (B, H + 1, samples) of a call, None for zeros.
    """

    def run(mel: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        phase, noise = draw(mel.shape[-1] * vocoder.hop_length)
        source = vocoder.source(vocoder.f0(mel), phase, noise)
        source = torch.cat([kept[:, None], source[..., kept.shape[1] :]], dim=-1)
        return vocoder(mel, source=source), source[:, 0]

    return run


@dataclass(frozen=True)
class ReferenceState:
    """What one call leaves to the next, each with batch first.

    tokens (B, L) and mel (B, M, P): all that was given and returned. overlap (B, M, <= 34): frames kept back. frame
    (B, M, 1) and source (B, hop): the vocoder's last input frame and what drove it there; empty before the first call.
    """

    tokens: Tensor
    mel: Tensor
    overlap: Tensor
    frame: Tensor
    source: Tensor


class ReferenceStream:
    """One row of tokens to mel and wave. ``vocoder(mel, kept_source (B, S0)) -> (wave (B, S), source (B, S))``."""

    def __init__(self, flow: GLM4Decoder, vocoder: Vocoder):
        self.flow, self.vocoder = flow, vocoder
        self.hop_length = flow.config.hop_length
        self.overlap = flow.frames(OVERLAP_TOKENS)
        self.fade = torch.hamming_window(2 * self.overlap, periodic=False)

    def init_state(self, batch: int = 1) -> ReferenceState:
        """Before the first call."""
        like = self.flow.projection.weight
        nothing = like.new_zeros(batch, self.flow.config.n_mels, 0)
        tokens = torch.zeros(batch, 0, dtype=torch.long, device=like.device)
        return ReferenceState(tokens, nothing, nothing, nothing, like.new_zeros(batch, 0))

    def frames(self, state: ReferenceState, n_tokens: int) -> int:
        """Frames of noise that a call with ``n_tokens`` further tokens takes."""
        return self.flow.frames(state.tokens.shape[1] + n_tokens)

    def step(
        self, tokens: Tensor, state: ReferenceState, noise: Tensor, final: bool = False, steps: int | None = None
    ) -> tuple[Tensor, Tensor, ReferenceState]:
        """Further tokens (B, L) and noise (B, M, ``frames``) -> (wave (B, S), mel (B, M, T), state).

        The mel returned is what the vocoder heard, the frame it heard last time in front. All but the ``final`` call
        keep back ``overlap`` frames, and the samples of the last frame, which comes again. ConfigError for a first call
        that is not final and has nothing beyond what is kept back.
        """
        if not final and state.tokens.shape[1] + tokens.shape[1] <= OVERLAP_TOKENS:
            raise ConfigError(f"the first piece of a stream needs more than {OVERLAP_TOKENS} tokens: give more at once")
        every = torch.cat([state.tokens, tokens], dim=1)
        known = state.mel if state.mel.shape[-1] else None
        mel = self.flow(every, noise, prompt_mel=known, steps=steps)[..., state.mel.shape[-1] :]
        if state.overlap.shape[-1]:
            mel = self._cross_fade(mel, state.overlap)
        mel = torch.cat([state.frame, mel], dim=-1)
        overlap = mel[..., -self.overlap :]
        mel = mel if final else mel[..., : -self.overlap]
        wave, source = self.vocoder(mel, state.source)
        after = ReferenceState(
            every, torch.cat([state.mel, mel], dim=-1), overlap, mel[..., -1:], source[..., -self.hop_length :]
        )
        return (wave if final else wave[..., : -self.hop_length]), mel, after

    def _cross_fade(self, mel: Tensor, kept: Tensor) -> Tensor:
        """The first frames of ``mel`` rise while the last of those kept back fall."""
        rise, fall = self.fade.to(mel).chunk(2)
        head = mel[..., : self.overlap] * rise + kept * fall
        return torch.cat([head, mel[..., self.overlap :]], dim=-1)
