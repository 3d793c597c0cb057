"""Token models: ids in, logits out. The room's contract is :class:`TokenModel`; ``chat.py`` makes one talk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class TokenModel(Protocol):
    """What every token model offers: one step at a time with a state that the caller holds, or teacher forcing."""

    config: Any

    def init_state(self, batch: int, capacity: int | None = None) -> Any: ...

    def step(self, tokens: Tensor, state: Any, span: int | None = None) -> tuple[Tensor, Any]:
        """(B, T) further tokens -> logits after the last one (B, V) and the state; the state given is consumed."""
        ...

    def logits(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T, V)."""
        ...

    def loss_terms(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Mean cross-entropy of the tokens where ``mask`` (B, T) is True."""
        ...
