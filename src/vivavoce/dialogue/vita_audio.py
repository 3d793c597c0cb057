"""VITA-Audio (Long et al. 2025, arXiv 2505.03739): a text model whose first pass already yields speech tokens.

A Qwen2 decoder over a vocabulary of text and speech tokens (the backbone) is followed by a chain of K small modules
(multiple cross-modal token prediction). Module k reads the states of its predecessor and writes one token further:

    backbone   h0 = norm(layers(E(x)))                                          predicts x[j+1] from x[..j]
    module k   u[j] = project([embed_norm E(x[j]), hidden_norm h(k)[j-1]])
               h(k+1) = norm(layer(u))                                          predicts x[j+1], j > k

Embedding, final norm and head are shared by all; each module owns its two norms, projection and one decoder layer.
Seen from token j, module k knows the backbone's state of k+1 tokens ago and every token since: one backbone pass and K
module passes write K+1 tokens. Bricks: nn/decoder.py. Who writes which token is a matter of the schedule
(vita_audio_writing.py); prompts are in vita_audio_prompts.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import ConfigError
from vivavoce.nn import native
from vivavoce.nn.attention import KVCache, init_cache
from vivavoce.nn.decoder import Decoder, DecoderConfig, DecoderLayer, RMSNorm, native_stack, run_together
from vivavoce.nn.drafting import Chain, DraftPlace, DraftRun, chain
from vivavoce.nn.packed import some_outputs
from vivavoce.nn.streaming import module_list

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class VITAAudioConfig:
    """The backbone's sizes, the vocabulary, and the number of modules (0, 1 or 10 as published)."""

    decoder: DecoderConfig
    vocab_size: int
    modules: int
    module_loss: float = 1.0  # weight of the modules' mean loss beside the backbone's
    module_reads: int | None = None  # tokens before the answer that modules read; None: all, as published

    def __post_init__(self) -> None:
        if self.modules < 0 or (self.module_reads is not None and self.module_reads < 1):
            raise ConfigError("VITAAudioConfig needs modules of 0 or more and module_reads of 1 or more, or None")

    @classmethod
    def published(cls, modules: int | str = 10) -> VITAAudioConfig:
        """VITA-Audio-Boost and -Balance: Qwen2.5-7B and ten modules, 10,317,912,576 parameters; fewer in training."""
        decoder = DecoderConfig(
            dim=3584, n_layers=28, n_heads=28, n_kv_heads=4, head_dim=128, ffn_dim=18_944, context=32_768,
            rope_base=1e6, norm_eps=1e-6, qkv_bias=True,
        )  # fmt: skip
        return cls(decoder=decoder, vocab_size=168_072, modules=int(modules))

    @classmethod
    def nano(cls, vocab_size: int, modules: int = 10) -> VITAAudioConfig:
        """Small enough to be trained on two processor cores."""
        decoder = DecoderConfig(
            dim=160, n_layers=6, n_heads=4, n_kv_heads=2, head_dim=40, ffn_dim=416, context=1024, norm_eps=1e-6,
            qkv_bias=True,
        )  # fmt: skip
        return cls(decoder=decoder, vocab_size=vocab_size, modules=modules, module_reads=4)

    @classmethod
    def tiny(cls) -> VITAAudioConfig:
        """Two layers of width 24 and three modules: for tests."""
        decoder = DecoderConfig(
            dim=24, n_layers=2, n_heads=3, n_kv_heads=1, head_dim=8, ffn_dim=40, context=128, qkv_bias=True
        )
        return cls(decoder=decoder, vocab_size=61, modules=3)

    def with_modules(self, modules: int) -> VITAAudioConfig:
        """The same backbone with another number of modules."""
        return replace(self, modules=modules)


class MCTPModule(nn.Module):
    """One module of the chain, without what it shares with the backbone."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.embed_norm = RMSNorm(config.dim, config.norm_eps)
        self.hidden_norm = RMSNorm(config.dim, config.norm_eps)
        self.project = nn.Linear(2 * config.dim, config.dim, bias=False)
        self.layer = DecoderLayer(config)

    def join(self, embedded: Tensor, hidden: Tensor) -> Tensor:
        """Embeddings and the predecessor's states, both (B, T, D), to the layer's input (B, T, D)."""
        return self.project(torch.cat([self.embed_norm(embedded), self.hidden_norm(hidden)], dim=-1))


@dataclass(frozen=True)
class VITAAudioState:
    """Caches of the backbone's layers and of each module; ``hidden``: for each module the states (B, n, D) of its
    predecessor that it has not read yet, ``passed``: those that it read in its last pass, so that it can go back."""

    backbone: tuple[KVCache, ...]
    modules: tuple[KVCache, ...]
    hidden: tuple[Tensor, ...]
    passed: tuple[Tensor, ...]


class VITAAudio(nn.Module):
    """Backbone and modules. Nothing here samples or knows which token is speech."""

    def __init__(self, config: VITAAudioConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.decoder.dim)
        self.decoder = Decoder(config.decoder)
        self.mctp = module_list(MCTPModule(config.decoder) for _ in range(config.modules))
        self.head = nn.Linear(config.decoder.dim, config.vocab_size, bias=False)
        self._chain: Chain | None = None
        self._planned = False  # it has been tried to make that
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    # ----------------------------------------------------------------------------------------- one step further
    def init_state(self, batch: int, capacity: int | None = None) -> VITAAudioState:
        """Empty caches of ``capacity`` positions (default: the context)."""
        c = self.config.decoder
        room = min(capacity or c.context, c.context)
        like = self.decoder.norm.weight
        none = tuple(like.new_zeros(batch, 0, c.dim) for _ in self.mctp)
        return VITAAudioState(
            backbone=self.decoder.init_state(batch, room),
            modules=tuple(init_cache(batch, c.n_kv_heads, room, c.head_dim, like) for _ in self.mctp),
            hidden=none,
            passed=none,
        )

    def step(
        self, tokens: Tensor, state: VITAAudioState, span: int | None = None, embedded: Tensor | None = None
    ) -> tuple[Tensor, VITAAudioState]:
        """A backbone pass: (B, T) further tokens -> normed states (B, T, D); the state given is consumed. ``embedded``
        (B, T, D), where given, is read in place of the tokens' embeddings."""
        x = self.embedding(tokens) if embedded is None else embedded
        hidden, backbone = self.decoder.step(x, state.backbone, span)
        return hidden, _read(state, backbone, hidden)

    def step_together(
        self, tokens: Sequence[Tensor], states: Sequence[VITAAudioState], spans: Sequence[int],
        embedded: Sequence[Tensor | None] | None = None,
    ) -> tuple[list[Tensor], list[VITAAudioState]]:  # fmt: skip
        """One backbone pass for texts of different ages: (1, T) further tokens of each -> their states (1, T, D); see
        :meth:`step`."""
        given = embedded or [None] * len(tokens)
        read = [self.embedding(t) if own is None else own for t, own in zip(tokens, given, strict=True)]
        hidden, caches = self.decoder.step_together(read, [state.backbone for state in states], spans)
        after = [_read(state, own, part) for state, own, part in zip(states, caches, hidden, strict=True)]
        return hidden, after

    def draft_together(
        self, number: int, tokens: Sequence[Tensor], firsts: Sequence[int], states: Sequence[VITAAudioState],
        spans: Sequence[int],
    ) -> tuple[list[Tensor], list[VITAAudioState]]:  # fmt: skip
        """One pass of module ``number`` for texts of different ages: (1, T) further tokens of each, the first with
        index ``firsts`` in its text -> their states (1, T, D); the states given are consumed.

        Its predecessor must have passed the token before each of them, so the earliest index of module 0 is 1, and each
        module begins one later than the one before. ``spans``: tokens that the module will have read of each.
        """
        module, lengths = self.mctp[number], [part.shape[1] for part in tokens]
        waiting = [self._waiting(number, part, state) for part, state in zip(tokens, states, strict=True)]
        joined = module.join(self.embedding(torch.cat(list(tokens), 1)), torch.cat([read for _, read in waiting], 1))
        offsets = [first - span + n for first, span, n in zip(firsts, spans, lengths, strict=True)]
        x, caches = run_together(
            [module.layer], joined, [(cache,) for cache, _ in waiting], self.decoder.angles(joined), spans, lengths,
            offsets,
        )  # fmt: skip
        hidden = list(self.decoder.norm(x).split(lengths, dim=1))
        after = [_drafted(state, number, own, part) for state, (own,), part in zip(states, caches, hidden, strict=True)]
        return hidden, after

    def _waiting(self, number: int, tokens: Tensor, state: VITAAudioState) -> tuple[KVCache, Tensor]:
        """A module's cache and the states of its predecessor that it reads with the tokens."""
        waiting, length = state.hidden[number], tokens.shape[1]
        if waiting.shape[1] < length:
            raise ValueError(f"module {number} has {waiting.shape[1]} states of its predecessor, not {length}")
        return state.modules[number], waiting[:, :length]

    def write_drafts(self, places: Sequence[DraftPlace], runs: Sequence[DraftRun]) -> bool:
        """Let modules 0, 1, ... write the likeliest tokens behind each text without a look at the backbone; False, and
        nothing is done, where the C kernels cannot."""
        if torch.is_grad_enabled():
            return False
        if not self._planned and native.active() and not isinstance(self.head, nn.Linear):
            self._planned, self._chain = True, self._make_chain()
        return self._chain is not None and self._chain.draft(places, runs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VITAAudio:
        """What changes weights or their device leaves no plan that points to the old ones."""
        self._chain, self._planned = None, False
        return super()._apply(fn, recurse)

    def _make_chain(self) -> Chain | None:
        norm, embedding = self.decoder.norm.weight, self.embedding
        modules = [module.layer for module in self.mctp]
        joins = [
            (m.embed_norm.weight.detach(), m.hidden_norm.weight.detach(), getattr(m.project, "kernel", None))
            for m in self.mctp
        ]
        stack = native_stack(self.config.decoder, modules, norm, self.decoder.angles(norm))
        return chain(
            stack, joins, embedding.weight, getattr(embedding, "scale", None), getattr(self.head, "kernel", None)
        )

    def rolled_back(self, state: VITAAudioState, backbone: int, modules: Sequence[int]) -> VITAAudioState:
        """The state after the backbone has forgotten its last ``backbone`` tokens and module k its last ``modules[k]``;
        the state given is consumed. Nothing is computed: caches only move their positions.

        A module can go back as far as its last pass: of what its predecessor said before that, nothing is kept.
        """
        hidden, passed = list[Tensor](), list[Tensor]()
        for waiting, last, before, own in zip(
            state.hidden, state.passed, (backbone, *modules), modules, strict=False
        ):  # what the module forgets waits again, what its predecessor forgets does not
            again = torch.cat([last[:, last.shape[1] - own :], waiting], dim=1) if own else waiting
            if own > last.shape[1] or before > again.shape[1]:
                raise ValueError("modules go back to within their last pass; this is further")
            hidden.append(again[:, : again.shape[1] - before])
            passed.append(last[:, : last.shape[1] - own])
        return VITAAudioState(
            backbone=_moved(state.backbone, -backbone),
            modules=tuple(_back(cache, own) for cache, own in zip(state.modules, modules, strict=True)),
            hidden=tuple(hidden),
            passed=tuple(passed),
        )

    def rewound(self, state: VITAAudioState, backbone: int, modules: int) -> VITAAudioState:
        """The state with only the first positions of the caches, and no states waiting: what follows is to be read
        again; the state given is consumed."""
        none = tuple(part[:, :0] for part in state.hidden)
        there = [torch.full_like(state.backbone[0].position, length) for length in (backbone, modules)]
        return VITAAudioState(
            backbone=tuple(replace(cache, position=there[0]) for cache in state.backbone),
            modules=tuple(replace(cache, position=there[1]) for cache in state.modules),
            hidden=none,
            passed=none,
        )

    def logits(self, hidden: Tensor, rows: slice | None = None) -> Tensor:
        """States (..., D) -> logits (..., V), or (..., R) of a run of R tokens, for which alone is computed."""
        return self.head(hidden) if rows is None else some_outputs(self.head, hidden, rows)

    def skip(self, count: int, state: VITAAudioState) -> VITAAudioState:
        """Forget the oldest ``count`` states that wait for module 0 (``module_reads``)."""
        if count < 0:
            raise ValueError("module 0 has already read past the place where it should begin")
        return replace(state, hidden=(state.hidden[0][:, count:], *state.hidden[1:]))

    # ----------------------------------------------------------------------------------------- teacher forcing
    def forward(
        self, tokens: Tensor, positions: Tensor | None = None, starts: Tensor | None = None, *, detach: bool = False,
        read: Tensor | None = None,
    ) -> list[Tensor]:  # fmt: skip
        """States of the backbone and of every module, each (B, T, D) aligned to the token read last: all predict x[j+1]
        at j.

        tokens (B, T). ``positions`` (B, T) restart at 0 with every document packed into a row; module k's states mean
        something only where positions > k. ``starts`` (B,), for rows of one document: modules see the text from there
        on only, and their states are those of the rows' :func:`window`. ``detach`` keeps gradients of the modules out
        of backbone and embeddings. ``read`` (B, T, D): what the backbone reads in place of the tokens' embeddings.
        """
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        table = self.decoder.angles(self.decoder.norm.weight)
        angles = _angles(table, positions)
        mask = _causal(positions)
        embedded = self.embedding(tokens)
        x = embedded if read is None else read
        for layer in self.decoder.layers:
            assert isinstance(layer, DecoderLayer)
            x = layer.teach(x, angles, mask)
        hidden = self.decoder.norm(x)
        states = [hidden]
        if detach:
            embedded, hidden = embedded.detach(), hidden.detach()
        if starts is not None:
            embedded, hidden = window(embedded, starts), window(hidden, starts)
            angles = _angles(table, window(positions, starts))
            positions = torch.arange(embedded.shape[1], device=tokens.device).expand(embedded.shape[:2])
            mask = _causal(positions)
        own = torch.eye(embedded.shape[1], dtype=torch.bool, device=tokens.device)
        for number, module in enumerate(self.mctp):
            # a token too early for this module sees itself only, so that no row of the softmax is empty
            mask = mask & ((positions > number)[:, None, None] | own)
            x = module.join(embedded, F.pad(hidden, (0, 0, 1, -1))).to(embedded.dtype)
            hidden = self.decoder.norm(module.layer.teach(x, angles, mask))
            states.append(hidden)
        return states

    def loss_terms(
        self, tokens: Tensor, labels: Tensor, positions: Tensor | None = None, *, detach: bool = False,
        read: Tensor | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Cross-entropies: ``main`` of the backbone, ``modules`` (K,) of each module.

        tokens, labels (B, T): the label of a token is itself where it is to be learned and -100 elsewhere. With
        ``module_reads``, rows hold one document each. ``read``: see :meth:`forward`.
        """
        losses = [
            F.cross_entropy(self.head(hidden).float(), wanted, reduction="sum") / max(1, len(wanted))
            for hidden, wanted in self.predict(tokens, labels, positions, detach=detach, read=read)
        ]
        main, rest = losses[0], losses[1:]
        return {"main": main, "modules": torch.stack(rest) if rest else main.new_zeros(0)}

    def starts(self, labels: Tensor) -> Tensor | None:
        """Where modules begin to read in each row (B,), told by the first label; None where they read all."""
        reads = self.config.module_reads
        return None if reads is None else ((labels >= 0).int().argmax(1) - reads).clamp_min(0)

    def predict(
        self, tokens: Tensor, labels: Tensor, positions: Tensor | None = None, *, detach: bool = False,
        read: Tensor | None = None,
    ) -> list[tuple[Tensor, Tensor]]:  # fmt: skip
        """For the backbone and each module: the states (N, D) from which a label is to be predicted, and the labels
        (N,)."""
        starts = self.starts(labels)
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        states = self(tokens, positions, starts, detach=detach, read=read)
        wanted = F.pad(labels[:, 1:], (0, 1), value=-100)
        next_document = F.pad(positions[:, 1:], (0, 1)) == 0  # what follows belongs to another text
        wanted = wanted.masked_fill(next_document, -100)
        pairs = []
        for number, hidden in enumerate(states):
            if number == 1 and starts is not None:
                inside = torch.arange(hidden.shape[1], device=tokens.device) < (tokens.shape[1] - starts)[:, None]
                wanted = window(wanted, starts).masked_fill(~inside, -100)
                positions = torch.arange(hidden.shape[1], device=tokens.device).expand_as(wanted)
            chosen = (wanted >= 0) & (positions >= number)
            pairs.append((hidden[chosen], wanted[chosen]))
        return pairs


def window(x: Tensor, starts: Tensor) -> Tensor:
    """The part of each row of x (B, T, ...) from its start on: (B, T', ...); short rows repeat their last column."""
    columns = x.shape[1] - int(starts.min())
    index = (starts[:, None] + torch.arange(columns, device=x.device)).clamp_max(x.shape[1] - 1)
    return x[torch.arange(len(x), device=x.device)[:, None], index]


def _causal(positions: Tensor) -> Tensor:
    """bool (B, 1, T, T): a token reads itself and what came before it in its own document."""
    document = (positions == 0).cumsum(1)
    index = torch.arange(positions.shape[1], device=positions.device)
    return ((document[:, :, None] == document[:, None]) & (index <= index[:, None]))[:, None]


def _angles(table: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    if positions.numel() and int(positions.max()) >= table.shape[1]:
        raise ConfigError(f"a text of {int(positions.max()) + 1} tokens is too long: the model reads {table.shape[1]}")
    cosine, sine = table[:, positions][:, :, None]
    return cosine, sine


def _with(items: tuple[T, ...], number: int, item: T) -> tuple[T, ...]:
    """The same with another item in one place."""
    return (*items[:number], item, *items[number + 1 :])


def _read(state: VITAAudioState, backbone: tuple[KVCache, ...], hidden: Tensor) -> VITAAudioState:
    """The state after a backbone pass."""
    return replace(state, backbone=backbone, hidden=_added(state.hidden, 0, hidden))


def _drafted(state: VITAAudioState, number: int, cache: KVCache, hidden: Tensor) -> VITAAudioState:
    """The state after a pass of a module, which has read as many of its predecessor's states as it has made."""
    waiting, length = state.hidden[number], hidden.shape[1]
    return replace(
        state,
        modules=_with(state.modules, number, cache),
        hidden=_added(_with(state.hidden, number, waiting[:, length:]), number + 1, hidden),
        passed=_with(state.passed, number, waiting[:, :length]),
    )


def _back(cache: KVCache, count: int) -> KVCache:
    """The cache without its last ``count`` positions."""
    return replace(cache, position=cache.position - count) if count else cache


def _moved(caches: tuple[KVCache, ...], count: int) -> tuple[KVCache, ...]:
    """The caches of layers, which are all equally full, with so many positions more."""
    position = caches[0].position + count if count and caches else None
    return caches if position is None else tuple([replace(cache, position=position) for cache in caches])


def _added(hidden: tuple[Tensor, ...], number: int, further: Tensor) -> tuple[Tensor, ...]:
    """The waiting states with further ones for module ``number``, if there is such a module."""
    if number >= len(hidden):
        return hidden
    return _with(hidden, number, torch.cat([hidden[number], further], dim=1))


# ------------------------------------------------------------------------------------------------- stages (section 3.3)
def begin_module(model: VITAAudio) -> None:
    """Stage 2: the first module's layer is a copy of the backbone's last, its projection random."""
    with torch.no_grad():
        model.mctp[0].layer.load_state_dict(model.decoder.layers[-1].state_dict())
        nn.init.normal_(model.mctp[0].project.weight, std=0.02)
        for norm in (model.mctp[0].embed_norm, model.mctp[0].hidden_norm):
            nn.init.ones_(norm.weight)


def copy_module(model: VITAAudio) -> None:
    """Stage 3: every module begins as a copy of the first."""
    for module in model.mctp[1:]:
        module.load_state_dict(model.mctp[0].state_dict())


def freeze_backbone(model: VITAAudio, frozen: bool = True) -> None:
    """Stages 2 and 3 train modules only; stage 4 everything."""
    model.requires_grad_(not frozen)
    for module in model.mctp:
        module.requires_grad_(True)
