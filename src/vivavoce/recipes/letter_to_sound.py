"""Make the shipped pronunciation assets: pack the CMU dictionary, then train the letter-to-sound network on it.

    python -m vivavoce.recipes.letter_to_sound pack cmudict.dict     # once: text dictionary to assets
    python -m vivavoce.recipes.letter_to_sound train                 # about 7 minutes on one CPU thread

Training pairs every letter with its phones first (Viterbi training of a letter-to-chunk table, chunks of 0 to 2
phones; after Black, Lenzo and Pagel 1998, "Issues in building general letter to sound rules"), which turns the task
into tagging. One word in twenty is held out; phone and whole-word errors on those are printed.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import time
from collections import Counter, defaultdict
from pathlib import Path

import torch
from torch.nn import functional

from vivavoce.align.edit_distance import edits
from vivavoce.text import lexicon
from vivavoce.text.letter_to_sound import LETTERS, LetterToSound, LetterToSoundConfig

ASSETS = Path(__file__).resolve().parents[1] / "assets"
Chunks = tuple[str, ...]

NOTE = """The CMU Pronouncing Dictionary, (C) 1993-2015 Carnegie Mellon University; licence in cmudict.LICENSE.
Changed: first pronunciations only, regular possessives left out, one character a phone, one primary stress a word,
unstressed AH written IX where the letter is e, i or y (as in "secret"), EH before "rr" from an a written AE."""


def align(word: str, phones: list[str], cost: dict[str, dict[str, float]]) -> Chunks | None:
    """The cheapest way to give each letter of ``word`` zero, one or two ``phones``; None when none fits."""
    best: dict[int, tuple[float, Chunks]] = {0: (0.0, ())}
    for letter in word:
        table = cost[letter]
        following: dict[int, tuple[float, Chunks]] = {}
        for place, (paid, chunks) in best.items():
            for size in (0, 1, 2):
                if place + size > len(phones):
                    break
                chunk = " ".join(phones[place : place + size])
                total = paid + table.get(chunk, 12.0 + 2 * size)
                if place + size not in following or total < following[place + size][0]:
                    following[place + size] = (total, (*chunks, chunk))
        best = following
    return best[len(phones)][1] if len(phones) in best else None


def learn_alignment(entries: dict[str, list[str]], rounds: int = 4) -> dict[str, dict[str, float]]:
    """Costs (negative log probabilities) of each letter's chunks, from words with as many letters as phones on."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for word, phones in entries.items():
        if len(word) == len(phones):
            for letter, phone in zip(word, phones, strict=True):
                counts[letter][phone] += 1
    for letter in LETTERS:
        counts[letter][""] += counts[letter].total() // 5 + 1
    for _ in range(rounds):
        cost = _costs(counts)
        counts = defaultdict(Counter)
        for word, phones in entries.items():
            for letter, chunk in zip(word, align(word, phones, cost) or (), strict=False):
                counts[letter][chunk] += 1
    return _costs(counts)


def _costs(counts: dict[str, Counter[str]]) -> dict[str, dict[str, float]]:
    return {
        letter: {chunk: -math.log(n / counts[letter].total()) for chunk, n in counts[letter].items()}
        for letter in LETTERS
    }


def read_dictionary(path: Path) -> dict[str, list[str]]:
    """First pronunciations of a ``cmudict.dict`` text file, words of a to z and apostrophes only."""
    entries: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        word, *phones = line.split("#")[0].split()
        if re.fullmatch(r"[a-z']+", word):
            entries[word] = phones
    return entries


def pack(source: Path) -> None:
    """Write ``assets/cmudict.txt.gz`` from the text dictionary."""
    entries = read_dictionary(source)
    plain = {word: phones for word, phones in entries.items() if word.isalpha()}
    sample = dict(random.Random(0).sample(sorted(plain.items()), 20000))
    cost = learn_alignment(sample)
    kept = {}
    for word, phones in entries.items():
        if word.endswith("'s") and lexicon.plural(entries.get(word[:-2], ["?"])) == phones:
            continue
        if not word.endswith("s'"):
            kept[word] = _spelled_vowels(word, phones, cost)
    target = ASSETS / "cmudict.txt.gz"
    target.write_bytes(lexicon.pack(kept, NOTE))
    print(f"{target.name}: {len(kept)} words, {target.stat().st_size} bytes")


def _spelled_vowels(word: str, phones: list[str], cost: dict[str, dict[str, float]]) -> list[str]:
    """Vowels that the spelling tells apart but the dictionary does not, and one primary stress a word.

    ``AH0`` from the letters e, i, y becomes ``IX0``, except before sounds that colour it (l, m, n, r); so does a first
    ``IH0`` in "event", while "escape" gets ``EH0``; "un-" keeps a full vowel; "arr" has the vowel of "cat". Of several
    primary stresses (acronyms) the last one stays.
    """
    primary = [index for index, phone in enumerate(phones) if phone[-1] == "1"]
    phones = [phone[:-1] + "2" if index in primary[:-1] else phone for index, phone in enumerate(phones)]
    if word.startswith("un") and phones[0] == "AH0":
        phones[0] = "AH2"
    chunks = align(word, phones, cost) if word.isalpha() else None
    if chunks is None:
        return phones
    places = [place for place, chunk in enumerate(chunks) for _ in chunk.split()]
    out = []
    for index, (phone, place) in enumerate(zip(phones, places, strict=True)):
        after, later = (*phones[index + 1 : index + 3], "", "")[:2]
        if phone == "AH0" and word[place] in "eiy":
            coloured = after in ("L", "M", "N", "R", "") and not (word[place] == "i" and later[-1:].isdigit())
            phone = phone if coloured else "IX0"
        elif phone == "IH0" and index == 0 and word[0] == "e":
            phone = "IX0" if later[-1:].isdigit() else "EH0"
        elif phone in ("EH1", "EH2") and after == "R" and word[place : place + 3] == "arr":
            phone = "AE" + phone[-1]
        out.append(phone)
    return out


def pairs(entries: dict[str, list[str]]) -> list[tuple[str, Chunks]]:
    """Words with the chunk of each letter; words that do not align well (acronyms, mostly) are left out."""
    sample = dict(random.Random(0).sample(sorted(entries.items()), min(20000, len(entries))))
    cost = learn_alignment(sample)
    found = []
    for word, phones in entries.items():
        chunks = align(word, phones, cost)
        if chunks and all(chunk in cost[letter] for letter, chunk in zip(word, chunks, strict=True)):
            found.append((word, chunks))
    return found


def batches(
    data: list[tuple[str, Chunks]], tag_index: dict[str, int], size: int, generator: random.Random
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Shuffled (letters (B, L), tags (B, L)) batches of words of one length each, so that nothing is padded."""
    by_length: dict[int, list[tuple[str, Chunks]]] = defaultdict(list)
    for item in data:
        by_length[len(item[0])].append(item)
    out = []
    for items in by_length.values():
        generator.shuffle(items)
        for start in range(0, len(items), size):
            part = items[start : start + size]
            letters = torch.tensor([[LETTERS.index(letter) for letter in word] for word, _ in part])
            tags = torch.tensor([[tag_index[chunk] for chunk in chunks] for _, chunks in part])
            out.append((letters, tags))
    generator.shuffle(out)
    return out


def train(epochs: int, seed: int, dim: int, batch_size: int = 256, peak: float = 4e-3) -> None:
    """Train on the packed dictionary, print progress and held-out errors, write weights and card to the assets."""
    began = time.monotonic()
    torch.manual_seed(seed)
    generator = random.Random(seed)
    entries = {word: lexicon.look_up(word) or [] for word in lexicon.words() if word.isalpha() and len(word) > 1}
    data = pairs(entries)
    common = Counter(chunk for _, chunks in data for chunk in chunks)
    tags = tuple(sorted(tag for tag, count in common.items() if count >= 8))
    tag_index = {tag: index for index, tag in enumerate(tags)}
    data = [(word, chunks) for word, chunks in data if all(chunk in tag_index for chunk in chunks)]
    generator.shuffle(data)
    held_out, data = data[: len(data) // 20], data[len(data) // 20 :]
    model = LetterToSound(LetterToSoundConfig(tags, dim))
    n_parameters = sum(weight.numel() for weight in model.parameters())
    print(f"{len(data)} words, {len(held_out)} held out, {len(tags)} tags, {n_parameters} parameters")

    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=1e-2)
    n_steps = epochs * len(batches(data, tag_index, batch_size, random.Random(0)))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=n_steps, pct_start=0.1)
    for epoch in range(epochs):
        model.train()
        losses = []
        for letters, targets in batches(data, tag_index, batch_size, generator):
            loss = functional.cross_entropy(model(letters).flatten(0, 1), targets.flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        seconds = time.monotonic() - began
        print(f"epoch {epoch + 1}/{epochs}  loss {sum(losses) / len(losses):.4f}  {seconds:.0f} s", flush=True)

    model.half().float().eval()
    scores = score(model, held_out, entries)
    print("  ".join(f"{name} {value:.2f} %" for name, value in scores.items()))
    save(model, scores)


def score(model: LetterToSound, held_out: list[tuple[str, Chunks]], entries: dict[str, list[str]]) -> dict[str, float]:
    """Errors in percent: phones and words, stress digits counted and not."""
    wrong = Counter[str]()
    n_phones = 0
    for word, _ in held_out:
        expected, found = entries[word], model.pronounce(word)
        plain = [[re.sub(r"\d", "", phone) for phone in phones] for phones in (expected, found)]
        n_phones += len(expected)
        wrong["phone error"] += edits(expected, found)
        wrong["phone error without stress"] += edits(*plain)
        wrong["word error"] += expected != found
        wrong["word error without stress"] += plain[0] != plain[1]
    return {name: 100 * n / (n_phones if name.startswith("phone") else len(held_out)) for name, n in wrong.items()}


def save(model: LetterToSound, scores: dict[str, float]) -> None:
    """Write float16 weights and the JSON card."""
    from safetensors.torch import save as to_bytes

    weights = to_bytes({name: weight.half() for name, weight in model.state_dict().items()})
    (ASSETS / "letter_to_sound.safetensors").write_bytes(weights)
    config = model.config
    card = {
        "what": "letters to ARPAbet phones for English words that the dictionary lacks",
        "trained_on": "CMU Pronouncing Dictionary (assets/cmudict.txt.gz), one word in twenty held out",
        "recipe": "vivavoce/recipes/letter_to_sound.py",
        "licence": "Apache-2.0; dictionary: see cmudict.LICENSE",
        "held_out_percent": {name: round(value, 2) for name, value in scores.items()},
        "dim": config.dim,
        "embedding_dim": config.embedding_dim,
        "n_layers": config.n_layers,
        "tags": list(config.tags),
    }
    (ASSETS / "letter_to_sound.json").write_text(
        json.dumps(card, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Pack the dictionary or train the letter-to-sound network.")
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="text dictionary to assets")
    packing.add_argument("dictionary", type=Path)
    training = commands.add_parser("train", help="train the network on the packed dictionary")
    training.add_argument("--epochs", type=int, default=10)
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--dim", type=int, default=128)
    chosen = parser.parse_args()
    if chosen.command == "pack":
        pack(chosen.dictionary)
    else:
        train(chosen.epochs, chosen.seed, chosen.dim)


if __name__ == "__main__":
    main()
