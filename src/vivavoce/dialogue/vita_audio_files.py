"""VITA-Audio's files: the published ones through the layout table, and our own bundle of a model and its codec."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vivavoce.checkpoints.compact import Kind, expand, shrink
from vivavoce.checkpoints.layouts.vita_audio import transformers
from vivavoce.checkpoints.native import build, open_native, save_native
from vivavoce.checkpoints.read import Checkpoint, describe, free_memory, open_checkpoint, read_json, size_text
from vivavoce.checkpoints.rules import Layout, export_weights, import_weights
from vivavoce.codecs.glm4_decoder import GLM4Decoder, GLM4DecoderConfig
from vivavoce.codecs.glm4_tokenizer import GLM4Tokenizer, GLM4TokenizerConfig
from vivavoce.config import from_dict
from vivavoce.dialogue.vita_audio import VITAAudio, VITAAudioConfig
from vivavoce.dialogue.vita_audio_prompts import VITATokens
from vivavoce.dialogue.vita_audio_session import VITAAudioParts
from vivavoce.errors import CheckpointError, ConfigError
from vivavoce.lm.llama_files import MAX_LAYERS, MAX_SIZE
from vivavoce.nn.decoder import DecoderConfig
from vivavoce.text.tokenizer import Tokenizer
from vivavoce.vocoders.hift import HiFT, HiFTConfig

PLAIN, PLUS = "qwen2_mtp", "qwen2_mtp_sensevoice"
HEARING = "model.audio_model."  # what a Plus checkpoint hears with
CONTEXT_OF_AUDIO = "<|context_of_audio|>"  # a token of Plus tokenizers, behind which every number is one higher
PADDINGS = (1, 8, 64, 128)  # to a multiple of one of these a vocabulary is filled up; as published 8
SHARD = 2_000_000_000  # bytes


def read_config(published: Mapping[str, Any]) -> VITAAudioConfig:
    """The sizes in a published ``config.json``; CheckpointError where it is of another family."""
    kind = published.get("model_type")
    if kind != PLAIN:
        raise CheckpointError(f"model type {kind!r} is not VITA-Audio's {PLAIN}; give a plain checkpoint")
    if published.get("rope_scaling") or published.get("use_sliding_window") or published.get("tie_word_embeddings"):
        raise CheckpointError("this checkpoint scales positions, slides its attention or ties its head: not supported")
    try:
        modules = int(published["num_nextn_predict_layers"])
        heads, dim = int(published["num_attention_heads"]), int(published["hidden_size"])
        decoder = DecoderConfig(
            dim=dim, n_layers=int(published["num_hidden_layers"]) - modules, n_heads=heads,
            n_kv_heads=int(published["num_key_value_heads"]), head_dim=dim // heads,
            ffn_dim=int(published["intermediate_size"]), context=int(published["max_position_embeddings"]),
            rope_base=float(published["rope_theta"]), norm_eps=float(published["rms_norm_eps"]), qkv_bias=True,
        )  # fmt: skip
        config = VITAAudioConfig(
            decoder=decoder, vocab_size=int(published["vocab_size"]), modules=modules,
            module_loss=float(published.get("mtp_loss_weight", 1.0)),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, ZeroDivisionError, ConfigError) as error:
        raise CheckpointError(f"config.json of this checkpoint is incomplete ({error}); fetch it again") from error
    sizes = (dim, heads, decoder.n_kv_heads, decoder.n_layers, decoder.ffn_dim, decoder.context, config.vocab_size)
    odd = dim % heads or heads % decoder.n_kv_heads if min(sizes) > 0 else True
    if odd or max(sizes) > MAX_SIZE or decoder.n_layers + modules > MAX_LAYERS:
        raise CheckpointError("config.json of this checkpoint holds an impossible size; fetch it again")
    return config


def check_family(checkpoint: Checkpoint) -> dict[str, Any]:
    """The published config.json; CheckpointError where there is none, or where it is a plain checkpoint's and the
    weights are a Plus checkpoint's, or the reverse."""
    if "config.json" not in checkpoint.files:
        raise CheckpointError(f"{checkpoint.path.name} has no config.json beside it; give the whole published folder")
    published = read_json(checkpoint.files["config.json"])
    told, held = published.get("model_type") == PLUS, any(key.startswith(HEARING) for key in checkpoint.tensors)
    if published.get("model_type") in (PLAIN, PLUS) and told != held:
        kinds = ("plain VITA-Audio", "VITA-Audio-Plus")
        raise CheckpointError(
            f"the config.json of {describe(checkpoint)} is that of a {kinds[told]} but the weights are those of a "
            f"{kinds[held]}; take all files from one of the two"
        )
    return published


@dataclass(frozen=True)
class Needed:
    """What a model takes in memory: ``parameters``, their ``bytes`` in ``dtype``, and ``beside``: the most bytes that
    are needed for a moment beside them, while the largest matrix of a layer is put together from its parts."""

    parameters: int
    bytes: int
    beside: int
    dtype: torch.dtype

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> Needed:
        counts = {key: math.prod(shape) for key, shape in shapes.items()}
        total = sum(counts.values())
        joined = [count for key, count in counts.items() if key not in ("embedding.weight", "head.weight")]
        return cls(total, total * dtype.itemsize, 4 * max(joined, default=0), dtype)

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"{self.parameters:,} parameters, {size_text(self.bytes)} in {kind}"

    def check(self, what: str) -> None:
        """CheckpointError where the memory that is free does not do."""
        free = free_memory()
        if free is not None and free < self.bytes + self.beside:
            smaller = "" if self.dtype.itemsize <= 2 else f" in bfloat16 ({size_text(2 * self.parameters)}), or"
            raise CheckpointError(
                f"{what} has {self}, and {size_text(self.beside)} more while it is read, but {size_text(free)} of "
                f"memory are free; load it{smaller} where there is more"
            )


def state_shapes(config: VITAAudioConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's state dict."""
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in VITAAudio(config).state_dict().items()}


def import_vita_audio(
    checkpoint: Checkpoint, modules: int | None = None, dtype: torch.dtype = torch.float32
) -> tuple[VITAAudioConfig, dict[str, Tensor]]:
    """Configuration and our state dict in ``dtype``; ``modules``, where given, must be the checkpoint's own number.

    The state dict is in memory of its own, filled matrix by matrix; of the files no more is mapped than is being
    copied. CheckpointError, before a weight is read, where they do not fit or the memory that is free does not do.
    """
    config = read_config(check_family(checkpoint))
    if modules is not None and modules != config.modules:
        raise CheckpointError(
            f"{checkpoint.path.name} has {config.modules} prediction modules, not {modules}; "
            "choose a checkpoint of that size"
        )
    shapes, layout, theirs = state_shapes(config), _layout(config), checkpoint.tensors
    Needed.of(shapes, dtype).check(describe(checkpoint))
    import_weights(layout, {name: torch.empty_like(theirs[name], device="meta") for name in theirs}, shapes)
    # all that stays is laid out before anything passes through, so that what passes leaves no gaps between
    weights = {key: torch.empty(shape, dtype=dtype) for key, shape in shapes.items()}
    for row in layout.rows:
        wanted = {key: shapes[key] for key in _named(row.own, shapes)}
        source = {name: theirs[name] for name in _named(row.foreign, theirs)}
        for key, tensor in import_weights(Layout(layout.name, (), (row,)), source, wanted).items():
            weights[key].copy_(tensor)
    return config, weights


def _named(templates: Iterable[str], known: Container[str]) -> list[str]:
    """The known names that templates of the layout stand for, in which only ``{w}`` is open."""
    names = [template.replace("{w}", w) for template in templates for w in ("weight", "bias")]
    return [name for name in dict.fromkeys(names) if name in known]


def _layout(config: VITAAudioConfig) -> Layout:
    c = config.decoder
    return transformers(c.n_heads, c.n_kv_heads, c.n_layers, config.modules)


def open_published(
    folder: Path, *, modules: int | None = None, dtype: torch.dtype = torch.float32,
    report: Callable[[str], None] | None = None,
) -> tuple[VITAAudio, VITATokens]:  # fmt: skip
    """A published folder to a model in ``dtype`` and its tokens; see :func:`import_vita_audio`.

    ``report`` is told what is about to be read and what memory it takes, before anything is. CheckpointError where
    files are missing or do not belong together.
    """
    checkpoint = open_checkpoint(folder)
    config = read_config(check_family(checkpoint))
    tokens = published_tokens(checkpoint, config)
    if report is not None:
        report(f"{describe(checkpoint)}: {Needed.of(state_shapes(config), dtype)}")
    config, weights = import_vita_audio(checkpoint, modules, dtype)
    with torch.device("meta"):
        model = VITAAudio(config)
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False), tokens


def published_tokens(checkpoint: Checkpoint, config: VITAAudioConfig) -> VITATokens:
    """The tokens of the tokenizer.json beside published weights; CheckpointError where it is another checkpoint's."""
    name = describe(checkpoint)
    if "tokenizer.json" not in checkpoint.files:
        raise CheckpointError(f"{name} has no tokenizer.json beside it; give the whole published folder")
    tokens = VITATokens(Tokenizer.from_file(checkpoint.files["tokenizer.json"]))
    count = tokens.tokenizer.engine.get_vocab_size()
    if config.vocab_size not in {-(-count // multiple) * multiple for multiple in PADDINGS}:
        raise CheckpointError(
            f"tokenizer.json beside {name} has {count} tokens, for which a model has {-(-count // 8) * 8} rows and not "
            f"{config.vocab_size}; take the files of one checkpoint"
        )
    if CONTEXT_OF_AUDIO in tokens.tokenizer.specials:
        raise CheckpointError(
            f"tokenizer.json beside {name} is that of a VITA-Audio-Plus, whose tokens are numbered otherwise; "
            "take the files of one checkpoint"
        )
    return tokens


def write_published(
    folder: Path, config: VITAAudioConfig, weights: Mapping[str, Tensor], tokenizer: Tokenizer, shard: int = SHARD
) -> None:
    """Write a state dict of ours as a folder in the published form, in shards of about ``shard`` bytes.

    A layer is converted at a time, so little memory is needed beside the weights.
    """
    c, kind = config.decoder, next(iter(weights.values())).dtype
    if config.module_reads is not None or c.dim != c.n_heads * c.head_dim or not c.qkv_bias:
        raise ConfigError("the published form holds no such model; keep it in a folder of our own (save_bundle)")
    folder.mkdir(parents=True, exist_ok=True)
    plan: list[list[list[str]]] = [[]]
    filled = 0
    for group in _groups(weights):
        size = sum(weights[key].nbytes for key in group)
        if plan[-1] and filled + size > shard:
            plan, filled = [*plan, []], 0
        plan[-1].append(group)
        filled += size
    layout, places, total = _layout(config), dict[str, str](), 0
    for number, groups in enumerate(plan, 1):
        name = f"model-{number:05d}-of-{len(plan):05d}.safetensors" if len(plan) > 1 else "model.safetensors"
        made: dict[str, Tensor] = {}
        for group in groups:
            made |= export_weights(layout, {key: weights[key] for key in group})
        save_file({key: tensor.contiguous() for key, tensor in made.items()}, folder / name, {"format": "pt"})
        places |= dict.fromkeys(made, name)
        total += sum(tensor.nbytes for tensor in made.values())
    about = {
        "architectures": ["Qwen2MTPForCausalLM"], "model_type": PLAIN, "hidden_act": "silu", "hidden_size": c.dim,
        "intermediate_size": c.ffn_dim, "num_hidden_layers": c.n_layers + config.modules,
        "num_attention_heads": c.n_heads, "num_key_value_heads": c.n_kv_heads, "max_position_embeddings": c.context,
        "rms_norm_eps": c.norm_eps, "rope_theta": c.rope_base, "rope_scaling": None, "use_sliding_window": False,
        "tie_word_embeddings": False, "vocab_size": config.vocab_size, "num_nextn_predict_layers": config.modules,
        "mtp_loss_weight": config.module_loss, "torch_dtype": str(kind).removeprefix("torch."),
    }  # fmt: skip
    tokenizer.save(folder / "tokenizer.json")
    (folder / "config.json").write_text(json.dumps(about, indent=2) + "\n", "utf-8")
    if len(plan) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _groups(keys: Iterable[str]) -> list[list[str]]:
    """Keys of ours in groups that are converted together: a layer or module each, every other tensor alone."""
    found: dict[str, list[str]] = {}
    for key in keys:
        parts = key.split(".")
        length = next((at + 1 for at, part in enumerate(parts) if part.isdigit()), len(parts))
        found.setdefault(".".join(parts[:length]), []).append(key)
    return list(found.values())


# ------------------------------------------------------------------------------------------------------ our own form
@dataclass(frozen=True)
class VITAAudioBundle:
    """Configurations of a model and its codec, as one model folder holds them; see
    :class:`~vivavoce.dialogue.vita_audio_session.VITAAudioParts` for ``interleave``, ``mean`` and ``scale``."""

    model: VITAAudioConfig
    tokenizer: GLM4TokenizerConfig
    decoder: GLM4DecoderConfig
    vocoder: HiFTConfig
    interleave: tuple[int, ...]
    mean: float
    scale: float


MODULES = {"model": VITAAudio, "tokenizer": GLM4Tokenizer, "decoder": GLM4Decoder, "vocoder": HiFT}


def small_weight(name: str, tensor: Tensor) -> Kind:
    """How a bundle keeps a weight: the wide feed-forward layers of the speech tokenizer in 4 bits, other matrices in 8,
    small convolutions in halves."""
    if name.startswith("tokenizer.layers") and ".ffn_" in name and name.endswith("weight"):
        return "int4"
    if name.startswith("vocoder.") or tensor.numel() < 4096:
        return "half"
    return "int8"


def save_bundle(folder: Path, parts: VITAAudioParts) -> None:
    """Write model and codec as one small folder (see :func:`small_weight`)."""
    modules = {"model": parts.model, "tokenizer": parts.tokenizer, "decoder": parts.decoder, "vocoder": parts.vocoder}
    tensors = {f"{part}.{name}": t for part, module in modules.items() for name, t in module.state_dict().items()}
    bundle = VITAAudioBundle(
        parts.model.config, parts.tokenizer.config, parts.decoder.config, parts.vocoder.config, parts.interleave,
        parts.mean, parts.scale,
    )  # fmt: skip
    save_native(folder, "vita_audio", bundle, shrink(tensors, small_weight))
    parts.tokens.tokenizer.save(folder / "tokenizer.json")


def open_bundle(folder: Path, name: str | None = None, modules: int | None = None) -> VITAAudioParts:
    """A model folder to ready parts; ``modules``, where given, must be the folder's own number."""
    about = open_native(folder)
    if about.system != "vita_audio":
        raise CheckpointError(f"{folder} holds a {about.system}, not a vita_audio; give another folder")
    bundle = from_dict(VITAAudioBundle, about.config)
    if modules is not None and modules != bundle.model.modules:
        raise CheckpointError(
            f"{folder.name} has {bundle.model.modules} prediction modules, not {modules}; choose a model of that size"
        )
    stored = about.tensors()
    made: dict[str, Any] = {}
    for part, kind in MODULES.items():
        own = {key.removeprefix(f"{part}."): stored[key] for key in stored if key.startswith(f"{part}.")}
        made[part] = build(kind, getattr(bundle, part), expand(own))
    tokens = VITATokens(Tokenizer.from_file(folder / "tokenizer.json"))
    if tokens.first_code + tokens.codes > bundle.model.vocab_size:
        raise CheckpointError(f"tokenizer.json in {folder} has more tokens than the model; take the files of one model")
    return VITAAudioParts(
        made["model"], tokens, made["tokenizer"], made["decoder"], made["vocoder"], bundle.interleave, bundle.mean,
        bundle.scale, name or folder.name,
    )  # fmt: skip
