"""SenseVoice-Small (An et al. 2024, arXiv 2407.04051): one encoder pass writes language, emotion, event and text.

    wave (B, S) 16 kHz -> Kaldi filterbank, 10 ms -> 7 frames side by side every 6 -> (x + shift) scale (B, N, 560)
        -> behind 4 queries: language, emotion and event, text form -> sqrt(D) x + sinusoids -> layers -> norm
        -> top layers -> norm (B, 4 + N, D) -> logits (B, 4 + N, V): 4 labels, then CTC over 60 ms positions

A layer is a pre-norm transformer block whose attention has a memory beside it (SAN-M, Gao et al. 2020, arXiv
2006.01713): a short convolution over the values of each channel. Attention is full, so nothing streams: a clip is heard
when it is over. Bricks: audio/kaldi.py, nn/attention.py. What the language model of VITA-Audio-Plus hears are the
states before the logits (dialogue/vita_audio_plus.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.audio.kaldi import KaldiFormat, kaldi_fbank
from vivavoce.checkpoints.layouts.sensevoice import Piece
from vivavoce.errors import AudioError, CheckpointError, ConfigError, UnknownNameError, nearest
from vivavoce.nn.attention import attend, join_heads, split_heads
from vivavoce.nn.streaming import module_list

SAMPLE_RATE = 16_000
QUERIES = 4  # positions before those of the sound
OF_SOUND = (1, 2)  # the queries for emotion and event, the same for every clip
LANGUAGES = {"auto": 0, "zh": 3, "en": 4, "yue": 7, "ja": 11, "ko": 12, "nospeech": 13}
TEXT_FORMS = {"withitn": 14, "woitn": 15}  # with and without punctuation and written-out numbers
BLANK = 0


@dataclass(frozen=True, kw_only=True)
class SenseVoiceConfig:
    """Sizes; the defaults are the published ones. ``stacked`` frames lie side by side, every ``hop`` frames."""

    n_mels: int = 80
    stacked: int = 7
    hop: int = 6
    dim: int = 512
    n_heads: int = 4
    ffn_dim: int = 2048
    n_layers: int = 50
    top_layers: int = 20
    memory: int = 11  # positions that a layer's memory sees, the middle one being its own
    queries: int = 16
    vocab_size: int = 25_055

    def __post_init__(self) -> None:
        if self.dim % self.n_heads or self.width % 2 or not self.memory % 2 or self.n_layers < 1:
            raise ConfigError(
                "SenseVoiceConfig needs a dim that its heads divide, an even width, an odd memory and one layer or more"
            )

    @classmethod
    def published(cls) -> SenseVoiceConfig:
        """SenseVoice-Small: 233,999,167 parameters."""
        return cls()

    @classmethod
    def tiny(cls) -> SenseVoiceConfig:
        """Two layers and one of width 24: for tests."""
        return cls(
            n_mels=16, stacked=3, hop=2, dim=24, n_heads=2, ffn_dim=40, n_layers=2, top_layers=1, memory=5,
            vocab_size=40,
        )  # fmt: skip

    @classmethod
    def of_shapes(cls, shapes: Mapping[str, Sequence[int]]) -> SenseVoiceConfig:
        """The sizes of a published file, told by the shapes of its tensors; heads and frame rate are those of the one
        published size."""
        try:
            queries, width = shapes["embed.weight"]
            vocab_size, dim = shapes["ctc.ctc_lo.weight"]
            layer = "encoder.encoders0.0"
            count = {part: sum(f"encoder.{part}.{i}.norm1.weight" in shapes for i in range(len(shapes)))
                     for part in ("encoders", "tp_encoders")}  # fmt: skip
            return cls(
                n_mels=width // cls.stacked, dim=dim, ffn_dim=shapes[f"{layer}.feed_forward.w_1.weight"][0],
                n_layers=1 + count["encoders"], top_layers=count["tp_encoders"],
                memory=shapes[f"{layer}.self_attn.fsmn_block.weight"][2], queries=queries, vocab_size=vocab_size,
            )  # fmt: skip
        except (KeyError, ValueError, IndexError) as error:
            raise CheckpointError(f"this is no SenseVoice checkpoint ({error}); give the published model.pt") from error

    @property
    def fbank(self) -> KaldiFormat:
        return KaldiFormat(sample_rate=SAMPLE_RATE, n_mels=self.n_mels, window="hamming")

    @property
    def width(self) -> int:
        """Features of one position."""
        return self.n_mels * self.stacked

    def positions(self, samples: int) -> int:
        """How many states the encoder gives for a clip of so many samples, queries included."""
        return QUERIES - (-self.fbank.frames(samples) // self.hop)


class SANMLayer(nn.Module):
    """One block: attention with a memory beside it, then feed-forward. Where the width changes there is no way around
    the attention."""

    def __init__(self, width: int, dim: int, n_heads: int, ffn_dim: int, memory: int):
        super().__init__()
        self.n_heads, self.around = n_heads, width == dim
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * dim)
        self.memory = nn.Conv1d(dim, dim, memory, padding=memory // 2, groups=dim, bias=False)
        self.out = nn.Linear(dim, dim)
        self.ffn_norm = nn.LayerNorm(dim)
        self.ffn_in = nn.Linear(dim, ffn_dim)
        self.ffn_out = nn.Linear(ffn_dim, dim)

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """x (B, T, width) -> (B, T, D); what is not ``real`` (B, T) is not seen by the rest."""
        query, key, value = self.qkv(self.attention_norm(x)).chunk(3, dim=-1)
        if real is not None:
            value = value * real[..., None]
        remembered = value + self.memory(value.transpose(1, 2)).transpose(1, 2)
        seen = attend(
            split_heads(query, self.n_heads), split_heads(key, self.n_heads), split_heads(value, self.n_heads),
            None if real is None else real[:, None, None],
        )  # fmt: skip
        heard = self.out(join_heads(seen)) + remembered
        x = x + heard if self.around else heard
        return x + self.ffn_out(F.relu(self.ffn_in(self.ffn_norm(x))))


class SenseVoice(nn.Module):
    """Waves to states and logits. ``shift`` and ``scale`` are the published statistics of the features, not trained."""

    def __init__(self, config: SenseVoiceConfig):
        super().__init__()
        c = self.config = config
        self.register_buffer("shift", torch.zeros(c.width))
        self.register_buffer("scale", torch.ones(c.width))
        self.shift: Tensor
        self.scale: Tensor
        self.queries = nn.Embedding(c.queries, c.width)
        sizes = (c.dim, c.n_heads, c.ffn_dim, c.memory)
        self.layers = module_list(SANMLayer(c.dim if i else c.width, *sizes) for i in range(c.n_layers))
        self.norm = nn.LayerNorm(c.dim)
        self.top_layers = module_list(SANMLayer(c.dim, *sizes) for _ in range(c.top_layers))
        self.top_norm = nn.LayerNorm(c.dim)
        self.head = nn.Linear(c.dim, c.vocab_size)

    def features(self, wave: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Waves (B, S) at 16 kHz in [-1, 1], of which ``lengths`` (B,) samples are real -> features (B, N, 560) every
        60 ms, and how many of them (B,) are real.

        The first frame stands in for those before the clip, the last for those behind it. Without the dither that the
        authors' front end adds unless it is told not to. AudioError where a clip is shorter than a frame of 25 ms.
        """
        c, rows = self.config, torch.arange(len(wave), device=wave.device)[:, None]
        if lengths is None:
            lengths = torch.full((len(wave),), wave.shape[1], device=wave.device)
        frames = c.fbank.frames(lengths)
        if int(frames.amin()) < 1:
            raise AudioError("a clip is shorter than 25 ms, which is too little to be heard; give a longer one")
        mel = kaldi_fbank(wave, c.fbank, lengths)[:, : int(frames.max())]
        count = -(-frames // c.hop)
        first = c.hop * torch.arange(int(count.max()), device=wave.device) - c.stacked // 2
        index = (first[:, None] + torch.arange(c.stacked, device=wave.device)).flatten()
        index = torch.minimum(index.clamp_min(0), frames[:, None] - 1)  # (B, N x stacked)
        stacked = mel[rows, index].unflatten(1, (-1, c.stacked)).flatten(2)
        return (stacked + self.shift) * self.scale, count

    def encode(
        self, features: Tensor, lengths: Tensor | None = None, language: str | Sequence[str] = "auto",
        textnorm: str | Sequence[str] = "woitn",
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Features (B, N, 560), of which ``lengths`` (B,) are real -> states (B, 4 + N, D) and how many are real (B,).

        ``language`` and ``textnorm`` are names from LANGUAGES and TEXT_FORMS, one for all rows or one a row.
        UnknownNameError offers the nearest.
        """
        batch, asked = len(features), self._asked(len(features), language, textnorm)
        x = torch.cat([asked, features.to(asked.dtype)], dim=1)
        x = x * self.config.dim**0.5
        x = x + sinusoids(x.shape[1], x.shape[2], x)
        real = None
        if lengths is None:
            lengths = torch.full((batch,), features.shape[1], device=features.device)
        else:
            real = torch.arange(x.shape[1], device=x.device) < lengths[:, None] + QUERIES
        for layer in self.layers:
            x = layer(x, real)
        x = self.norm(x)
        for layer in self.top_layers:
            x = layer(x, real)
        return self.top_norm(x), lengths + QUERIES

    def forward(
        self, wave: Tensor, lengths: Tensor | None = None, language: str | Sequence[str] = "auto",
        textnorm: str | Sequence[str] = "woitn",
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Waves (B, S) at 16 kHz, of which ``lengths`` (B,) samples are real -> logits (B, 4 + N, V) and how many of
        the positions are real (B,): the first four are labels, the rest is CTC's."""
        features, count = self.features(wave, lengths)
        states, count = self.encode(features, count if lengths is not None else None, language, textnorm)
        return self.head(states), count

    def _asked(self, batch: int, language: str | Sequence[str], textnorm: str | Sequence[str]) -> Tensor:
        """The four queries of each row: (B, 4, 560)."""
        rows = [
            [query(LANGUAGES, "language", said), *OF_SOUND, query(TEXT_FORMS, "text form", form)]
            for said, form in zip(one_a_row(language, batch), one_a_row(textnorm, batch), strict=True)
        ]
        return self.queries(torch.tensor(rows, device=self.queries.weight.device))

    def loss_terms(
        self, wave: Tensor, lengths: Tensor, tokens: Tensor, token_lengths: Tensor,
        language: str | Sequence[str] = "auto", textnorm: str | Sequence[str] = "woitn",
    ) -> dict[str, Tensor]:  # fmt: skip
        """``labels``: mean cross-entropy of the first four positions; ``text``: CTC loss of the rest, mean over rows.

        tokens (B, L): the four labels (language, emotion, event, text form), then text; token_lengths (B,) count both.
        """
        logits, count = self(wave, lengths, language, textnorm)
        labels = F.cross_entropy(logits[:, :QUERIES].flatten(0, 1), tokens[:, :QUERIES].flatten())
        text = F.ctc_loss(
            logits[:, QUERIES:].transpose(0, 1).log_softmax(-1), tokens[:, QUERIES:], count - QUERIES,
            token_lengths - QUERIES, blank=BLANK, reduction="sum",
        )  # fmt: skip
        return {"labels": labels, "text": text / len(wave)}


def sinusoids(length: int, width: int, like: Tensor) -> Tensor:
    """(T, width): sines, then cosines, of positions 1 to T at rates that fall from 1 to 1 / 10000.

    Counted in the type of ``like``, as published: in bfloat16 positions past 256 (15 s) run together.
    """
    steps = torch.arange(width // 2, device=like.device).to(like.dtype)
    rates = torch.exp(steps * -(torch.log(torch.full((1,), 1e4).to(like)) / (width / 2 - 1)))
    angles = torch.arange(1, length + 1, device=like.device).to(like.dtype)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def one_a_row(name: str | Sequence[str], batch: int) -> Sequence[str]:
    """A name for each row."""
    names = [name] * batch if isinstance(name, str) else name
    if len(names) != batch:
        raise ConfigError(f"{len(names)} names were given for {batch} clips; give one for all, or one for each")
    return names


def query(table: Mapping[str, int], what: str, name: str) -> int:
    """The query of a name."""
    if name not in table:
        raise UnknownNameError(f"no {what} is called {name!r}{nearest(name, table)}; use one of {', '.join(table)}")
    return table[name]


# ------------------------------------------------------------------------------------------------------------- writing
def best_tokens(logits: Tensor, lengths: Tensor) -> list[list[int]]:
    """What greedy CTC reads off logits (B, T, V), of which ``lengths`` (B,) positions are real: repeats joined, blanks
    left out."""
    best = logits.argmax(dim=-1)
    rows = [torch.unique_consecutive(row[:length]) for row, length in zip(best, lengths.tolist(), strict=True)]
    return [row[row != BLANK].tolist() for row in rows]


def spell(ids: Sequence[int], pieces: Sequence[Piece]) -> str:
    """Text of token ids, labels such as <|en|> included."""
    said = [" \u2047 ".encode() if pieces[i].kind == "unknown" else pieces[i].spelling for i in ids]
    return b"".join(said).decode("utf-8", "replace").replace("\u2581", " ").removeprefix(" ")
