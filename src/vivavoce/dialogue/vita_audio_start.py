"""The first stage of VITA-Audio begins with a Qwen2.5 whose vocabulary is grown (arXiv 2505.03739, section 3.3).

    Qwen2.5 (V rows of embedding and head) -> special tokens, <|audio_0|> ... -> VITA-Audio without modules

What a text means stays as it is: every layer, and every row of embedding and head that Qwen has. Two things follow
from how the published checkpoints were begun, and hold here as well:

- Qwen has more rows than tokens (152,064 or 151,936 for 151,665). The first new tokens take these spare rows as they
  are, which nobody has trained; only rows behind them are new.
- New rows are the mean of all rows of Qwen, embedding and head each by its own. (The library that the authors used
  describes draws around the mean instead, with 3e-5 of the spread of Qwen's rows. Its condition for drawing never
  holds, and in bfloat16 such draws would be the mean as well.) So the new tokens begin alike, and differ from the
  first step of training on.

Small Qwens have one matrix for embedding and head. A VITA-Audio has two: the head becomes a copy, equal at first, and
is trained apart from then on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import AddedToken
from tokenizers import Tokenizer as Engine
from torch import Tensor

from vivavoce.checkpoints.binary import owned
from vivavoce.checkpoints.native import open_native
from vivavoce.checkpoints.read import describe, open_checkpoint, read_json
from vivavoce.config import from_dict
from vivavoce.dialogue.vita_audio import VITAAudioConfig
from vivavoce.dialogue.vita_audio_files import Needed, state_shapes
from vivavoce.dialogue.vita_audio_prompts import VITATokens
from vivavoce.errors import CheckpointError
from vivavoce.lm.llama import LlamaConfig
from vivavoce.lm.llama_files import import_llama, read_config, read_tokenizer
from vivavoce.lm.llama_files import state_shapes as qwen_shapes
from vivavoce.nn.quantized import unpack_tiles
from vivavoce.text.tokenizer import Tokenizer

CODES = 16_384  # of the published speech tokenizer
ADDED = (  # in the published order, in front of the speech tokens
    *(f"<|{part}_of_{what}|>" for what in ("image", "video", "patch") for part in ("begin", "end", "context")),
    *(f"<|{part}_of_{what}|>" for what in ("audio", "quad", "ref", "box") for part in ("begin", "end")),
    "<|image|>", "<|video|>", "<|audio|>",
)  # fmt: skip


@dataclass(frozen=True)
class Start:
    """A VITA-Audio without modules, before its first step: configuration, state dict, tokens.

    :func:`~vivavoce.dialogue.vita_audio_files.write_published` writes it as a folder.
    """

    config: VITAAudioConfig
    weights: dict[str, Tensor]
    tokens: VITATokens


def start(path: str | Path, codes: int = CODES, dtype: torch.dtype = torch.float32) -> Start:
    """Grow the Qwen2.5 of a folder or file; see :func:`open_qwen` and :func:`grow`."""
    return grow(*open_qwen(path, dtype), codes)


def open_qwen(path: str | Path, dtype: torch.dtype = torch.float32) -> tuple[LlamaConfig, dict[str, Tensor], Tokenizer]:
    """Configuration, state dict in ``dtype`` and tokenizer of a Qwen2.5: a published folder of safetensors, a GGUF
    file, or the folder of a pulled one, whose integers become the floats that they stand for.

    CheckpointError where it is no Qwen2.5, or where the memory that is free does not do.
    """
    folder = Path(path).expanduser()
    about = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if "system" in about:
        return _open_pulled(folder, dtype)
    checkpoint = open_checkpoint(folder)
    config, name = read_config(checkpoint), describe(checkpoint)
    _check_qwen(config, name, dtype)
    tokenizer, _ = read_tokenizer(checkpoint)
    _, weights = import_llama(replace(checkpoint, tensors=owned(checkpoint.tensors, dtype)))
    return config, weights, tokenizer


def _open_pulled(folder: Path, dtype: torch.dtype) -> tuple[LlamaConfig, dict[str, Tensor], Tokenizer]:
    about = open_native(folder)
    if about.system != "llama":
        raise CheckpointError(f"{folder} holds a {about.system}, not a language model; give a Qwen2.5")
    config = from_dict(LlamaConfig, about.config)
    _check_qwen(config, folder.name, dtype)
    stored = about.tensors()
    weights = {key: _floats(stored, key, shape).to(dtype) for key, shape in qwen_shapes(config).items()}
    return config, weights, Tokenizer.from_file(folder / "tokenizer.json")


def _floats(stored: Mapping[str, Tensor], key: str, shape: tuple[int, ...]) -> Tensor:
    """One tensor of a pulled model: a float, int8 rows, or 4-bit tiles; a head that is not there is the embedding."""
    tiles = f"{key.removesuffix('.weight')}.tiles"
    if key == "head.weight" and key not in stored and tiles not in stored:
        return _floats(stored, "embedding.weight", shape)
    if tiles in stored:
        made = unpack_tiles(stored[tiles], shape[0])
    elif key not in stored:
        raise CheckpointError(f"the model has no {key}; pull it again")
    elif f"{key}_scale" in stored:
        made = stored[key].float() * stored[f"{key}_scale"].float()[:, None]
    else:
        made = stored[key].float()
    if tuple(made.shape) != shape:
        raise CheckpointError(f"{key} of the model is {list(made.shape)}, not {list(shape)}; pull it again")
    return made


def _check_qwen(config: LlamaConfig, name: str, dtype: torch.dtype) -> None:
    c = config.decoder
    if not c.qkv_bias or c.n_heads * c.head_dim != c.dim:
        raise CheckpointError(f"{name} is no Qwen2.5, with which VITA-Audio begins; give qwen2.5-coder-0.5b-instruct")
    Needed.of(qwen_shapes(config), dtype).check(name)


# -------------------------------------------------------------------------------------------------------------- growing
def grow(config: LlamaConfig, weights: Mapping[str, Tensor], tokenizer: Tokenizer, codes: int = CODES) -> Start:
    """A Qwen2.5 with the special tokens and ``codes`` speech tokens in its vocabulary, as the module's head says.

    ``weights``: its state dict, ``head.weight`` among them. Layers are taken over, not copied.
    """
    known = _known(tokenizer)
    if known > config.vocab_size:
        raise CheckpointError(
            f"the tokenizer has {known} tokens and the model {config.vocab_size} rows; take the files of one model"
        )
    tokens = VITATokens(grown_tokenizer(tokenizer, codes))
    rows = -(-(tokens.first_code + tokens.codes) // 8) * 8  # as published
    grown = VITAAudioConfig(decoder=config.decoder, vocab_size=rows, modules=0)
    Needed.of({key: shape for key, shape in state_shapes(grown).items() if len(shape) == 2 and shape[0] == rows},
              weights["embedding.weight"].dtype).check("the grown vocabulary")  # fmt: skip
    both = {key: grown_rows(weights[key], rows) for key in ("embedding.weight", "head.weight")}
    return Start(grown, {**weights, **both}, tokens)


def grown_rows(weight: Tensor, rows: int) -> Tensor:
    """(V, D) -> (rows, D), a copy: new rows are the mean of the old ones, spare ones beyond ``rows`` are left out."""
    made = weight.new_empty(rows, weight.shape[1])
    made[: len(weight)] = weight[:rows]
    made[len(weight) :] = weight.mean(0, dtype=torch.float32)
    return made


def grown_tokenizer(tokenizer: Tokenizer, codes: int = CODES) -> Tokenizer:
    """Qwen's tokenizer with the published special tokens and ``codes`` speech tokens behind its own, numbered in order.

    All are special here, so that text which spells a speech token stays text.
    """
    taken = [name for name in (*ADDED, "<|audio_0|>") if name in tokenizer.specials]
    if taken:
        raise CheckpointError(f"the tokenizer has {taken[0]} already; give that of a Qwen2.5")
    table = json.loads(tokenizer.engine.to_str())
    vocabulary = table["model"]["vocab"]
    for name in [name for name, number in vocabulary.items() if name == f"[PAD{number}]"]:
        del vocabulary[name]  # GGUF files name the spare rows
    table["normalizer"] = table["normalizer"] or {"type": "NFC"}  # GGUF files do not tell it
    engine = Engine.from_str(json.dumps(table))
    first = engine.get_vocab_size()
    names = [*ADDED, *(f"<|audio_{code}|>" for code in range(codes))]
    engine.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    if [engine.token_to_id(name) for name in names] != list(range(first, first + len(names))):
        raise CheckpointError("the tokens of this tokenizer are not numbered without gaps; give that of a Qwen2.5")
    return Tokenizer(engine, {**tokenizer.specials, **{name: first + at for at, name in enumerate(names)}})


def _known(tokenizer: Tokenizer) -> int:
    """The number of tokens, without the names that GGUF files give to spare rows."""
    return sum(name != f"[PAD{number}]" for name, number in tokenizer.engine.get_vocab().items())
