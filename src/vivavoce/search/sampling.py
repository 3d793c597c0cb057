"""Choosing one token from logits: greedy, or temperature with top-k and top-p, and a guard against repetition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """``temperature`` 0 is greedy. ``repetition_penalty`` divides positive logits of recent tokens (multiplies
    negative ones).
    """

    temperature: float = 0.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    window: int = 64  # how many recent tokens the penalty looks at


def sample(
    logits: Tensor, recent: Sequence[int], options: SamplingOptions, generator: torch.Generator | None = None
) -> int:
    """logits (V,) -> the chosen id. Draws come from ``generator``."""
    if options.temperature <= 0:
        return int(penalised(logits, recent, options).argmax())
    return int(torch.multinomial(probabilities(logits, recent, options), 1, generator=generator))


def penalised(logits: Tensor, recent: Sequence[int], options: SamplingOptions) -> Tensor:
    """The logits (V,) with those of recent tokens pushed down."""
    if options.repetition_penalty != 1.0 and recent:
        ids = torch.tensor(sorted(set(recent[-options.window :])), device=logits.device)
        values = logits[ids]
        logits = logits.index_copy(
            0, ids, torch.where(values > 0, values / options.repetition_penalty, values * options.repetition_penalty)
        )
    return logits


def probabilities(logits: Tensor, recent: Sequence[int], options: SamplingOptions) -> Tensor:
    """logits (V,) -> what a token is drawn from (V,): penalty, temperature, top-k, top-p, in that order."""
    logits = penalised(logits, recent, options) / options.temperature
    if options.top_k:
        least = torch.topk(logits, min(options.top_k, logits.numel())).values[-1]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if options.top_p < 1.0:
        ordered, order = logits.sort(descending=True)
        odds = ordered.softmax(-1)
        beyond = odds.cumsum(-1) - odds >= options.top_p  # the most likely token always stays
        logits = logits.index_fill(0, order[beyond], float("-inf"))
    return logits.softmax(-1)


def period(tokens: Sequence[int], longest: int = 16, repeats: int = 4) -> int:
    """Length of the unit that the sequence ends by repeating ``repeats`` times, or 0."""
    for n in range(1, min(longest, len(tokens) // repeats) + 1):
        tail = tokens[-n:]
        if all(list(tokens[-(k + 1) * n : len(tokens) - k * n]) == list(tail) for k in range(1, repeats)):
            return n
    return 0
