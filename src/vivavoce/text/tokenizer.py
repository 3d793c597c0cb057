"""Published byte-level BPE tokenizers, read as data: ``tokenizer.json`` files and the tables inside GGUF files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Engine

from vivavoce.errors import CheckpointError

# How text is cut before merging, by the name that GGUF files carry (tokenizer.ggml.pre).
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTROL_TOKEN = 3  # the GGUF type of tokens such as <|im_start|>


class Tokenizer:
    """Text to ids and back. Special tokens are looked up by name, and text that looks like one is encoded as plain
    text.
    """

    def __init__(self, engine: Engine, specials: Mapping[str, int]):
        self.engine = engine
        self.specials = dict(specials)
        self._special_ids = frozenset(self.specials.values())
        engine.encode_special_tokens = True

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        """Read a ``tokenizer.json``."""
        try:
            table = json.loads(Path(path).read_text(encoding="utf-8"))
            _restore_merges(table["model"])
            engine = Engine.from_str(json.dumps(table))
            specials = {token["content"]: token["id"] for token in table["added_tokens"]}
        except Exception as error:  # the library raises bare Exception for malformed files
            raise CheckpointError(f"{path.name} is not a readable tokenizer file: pull the model again") from error
        return cls(engine, specials)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Build from the tables of a GGUF file (``tokenizer.ggml.*``)."""
        tokens, kinds, merges = _gguf_tables(metadata)
        try:
            engine = Engine(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
        except Exception as error:  # the library raises bare Exception, as for a merge of unknown tokens
            raise CheckpointError("the merges of this GGUF file do not fit its tokens; fetch it again") from error
        kind = str(metadata.get("tokenizer.ggml.pre", "default"))[:40]
        if kind == "smollm":
            before = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        elif kind == "qwen2":
            before = [
                pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        else:
            raise CheckpointError(f"this GGUF file cuts text by the rule {kind!r}; known are smollm and qwen2")
        engine.pre_tokenizer = pre_tokenizers.Sequence(before)
        engine.decoder = decoders.ByteLevel()
        specials = {
            token: i for i, (token, kind_) in enumerate(zip(tokens, kinds, strict=True)) if kind_ == CONTROL_TOKEN
        }
        engine.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
        return cls(engine, specials)

    def save(self, path: Path) -> None:
        """Write a ``tokenizer.json``."""
        self.engine.save(str(path))

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; names of special tokens inside it get no special meaning."""
        return self.engine.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids, special tokens left out; broken UTF-8 becomes U+FFFD."""
        return self.engine.decode([i for i in ids if i not in self._special_ids], skip_special_tokens=False)

    def id(self, name: str) -> int:
        """The id of a special token."""
        if name not in self.specials:
            raise CheckpointError(f"the tokenizer has no special token {name!r}: it belongs to another model")
        return self.specials[name]


def _gguf_tables(metadata: Mapping[str, Any]) -> tuple[Sequence[str], Sequence[int], list[tuple[str, str]]]:
    """Tokens, their types, and merges as pairs; one CheckpointError where a table is missing or in an unknown form."""
    names = [f"tokenizer.ggml.{table}" for table in ("tokens", "token_type", "merges")]
    missing = [name for name in names if name not in metadata]
    if missing:
        raise CheckpointError(f"this GGUF file has no {', '.join(missing)}; give one with a byte-level BPE tokenizer")
    tokens, kinds, merges = (metadata[name] for name in names)
    try:
        pairs = [(first, second) for first, second in (merge.split(" ", 1) for merge in merges)]
        good = len(tokens) == len(kinds) and all(isinstance(token, str) for token in tokens)
    except (AttributeError, TypeError, ValueError):
        good, pairs = False, []
    if not good:
        raise CheckpointError("the tokenizer tables of this GGUF file do not fit each other; fetch it again")
    return tokens, kinds, pairs


def _restore_merges(model: dict[str, Any]) -> None:
    """Put back merges of two single characters that a conversion lost (some published files lack the very first, "space
    t").

    Without it " there" falls apart into pieces the model never saw. In a byte-level vocabulary the merge that makes id
    256 + n is the n-th, so its place is known too.
    """
    merges = [merge.split(" ", 1) if isinstance(merge, str) else list(merge) for merge in model["merges"]]
    made = {"".join(pair) for pair in merges}
    vocabulary = model["vocab"]
    lost = [t for t in vocabulary if len(t) == 2 and t not in made and t[0] in vocabulary and t[1] in vocabulary]
    for token in sorted(lost, key=vocabulary.__getitem__):
        merges.insert(max(0, vocabulary[token] - 256), list(token))
    model["merges"] = merges
