"""A small network that says words no dictionary has: letters in, ARPAbet phones out.

Each letter is tagged with the zero, one or two phones it stands for ("x" is ``K S``, a silent "e" is nothing), by two
bidirectional GRU layers; the letters' tags put together are the pronunciation. Trained by
``vivavoce.recipes.letter_to_sound`` on the CMU dictionary; weights and card ship in ``assets``.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from functools import cache
from importlib import resources

import torch
from torch import Tensor, nn

LETTERS = "abcdefghijklmnopqrstuvwxyz"
MAX_LETTERS = 48


@dataclass(frozen=True)
class LetterToSoundConfig:
    """``tags`` are the outputs, phones joined by a space; the empty string is a silent letter."""

    tags: tuple[str, ...]
    dim: int = 128
    embedding_dim: int = 48
    n_layers: int = 2


class LetterToSound(nn.Module):
    """Letters (B, L) as indices into ``LETTERS`` to tag logits (B, L, V). All rows have the same length L."""

    def __init__(self, config: LetterToSoundConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(len(LETTERS), config.embedding_dim)
        self.gru = nn.GRU(config.embedding_dim, config.dim, config.n_layers, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(2 * config.dim, len(config.tags))

    def forward(self, letters: Tensor) -> Tensor:
        hidden, _ = self.gru(self.dropout(self.embedding(letters)))
        return self.head(self.dropout(hidden))

    @torch.no_grad()
    def pronounce(self, word: str) -> list[str]:
        """Phones for one word of a to z, with exactly one primary stress where there is a vowel."""
        letters = torch.tensor([[LETTERS.index(letter) for letter in word]], device=self.head.weight.device)
        tags = self(letters)[0].argmax(-1).tolist()
        return _one_stress([phone for tag in tags for phone in self.config.tags[tag].split()])


def _one_stress(phones: list[str]) -> list[str]:
    """Keep the first primary stress; without one, promote the first secondary stress or else the first vowel."""
    vowels = [index for index, phone in enumerate(phones) if phone[-1].isdigit()]
    if not vowels:
        return phones
    stressed = [i for i in vowels if phones[i][-1] == "1"] or [i for i in vowels if phones[i][-1] == "2"] or vowels
    main = stressed[0]
    digits = {i: "1" if i == main else "2" if phones[i][-1] == "1" else phones[i][-1] for i in vowels}
    full = {"IX": "IH"}
    return [
        (full.get(phone[:-1], phone[:-1]) if i == main else phone[:-1]) + digits[i] if i in digits else phone
        for i, phone in enumerate(phones)
    ]


_lock = threading.Lock()


@cache
def _shipped() -> LetterToSound:
    from safetensors.torch import load

    assets = resources.files("vivavoce").joinpath("assets")
    card = json.loads(assets.joinpath("letter_to_sound.json").read_text(encoding="utf-8"))
    config = LetterToSoundConfig(tuple(card["tags"]), card["dim"], card["embedding_dim"], card["n_layers"])
    model = LetterToSound(config).eval()
    weights = load(assets.joinpath("letter_to_sound.safetensors").read_bytes())
    model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    return model


def guess(word: str) -> list[str]:
    """ARPAbet phones for one word by the shipped network; other characters than a to z are passed over."""
    letters = "".join(letter for letter in word.lower() if letter in LETTERS)[:MAX_LETTERS]
    if not letters:
        return []
    with _lock:
        return _shipped().pronounce(letters)
