"""Our own form of a model on disk: ``model.safetensors`` and ``config.json`` (system, configuration, side settings).

Weights may be float, or int8 rows with scales (``X.weight`` beside ``X.weight_scale``), which load as integer layers.
A head that is the embedding is stored once: without a ``head.weight``, ``embedding.weight`` beside it serves both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vivavoce.checkpoints.binary import LazyTensors
from vivavoce.config import to_dict
from vivavoce.errors import CheckpointError
from vivavoce.nn.quantized import install_int8

M = TypeVar("M", bound=nn.Module)
MAX_CONFIG_BYTES = 1 << 24


@dataclass(frozen=True)
class NativeFolder:
    """A model folder: which system, its plain configuration, extra settings, and the weights' path."""

    path: Path
    system: str
    config: dict[str, Any]
    settings: dict[str, Any]

    def tensors(self) -> Mapping[str, Tensor]:
        """All tensors, each mapped into memory when asked for and let go with its last use."""
        file = self.path / "model.safetensors"

        def one(key: str) -> Tensor:
            with safe_open(file, framework="pt") as handle:
                return handle.get_tensor(key)

        try:
            with safe_open(file, framework="pt") as handle:
                return LazyTensors({key: partial(one, key) for key in handle.keys()})  # noqa: SIM118 (not a mapping)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{file} is not a readable safetensors file: "
                f"run  viva rm {file.parent.name}  and  viva pull {file.parent.name}"
            ) from error


def save_native(
    folder: Path, system: str, config: Any, tensors: Mapping[str, Tensor], settings: Mapping[str, Any] | None = None
) -> None:
    """Write a model folder; a head that equals its embedding is left out, other shared tensors are stored each."""
    folder.mkdir(parents=True, exist_ok=True)
    left_out = {head for head, embedding in tied_names(tensors).items() if _equal(tensors, head, embedding)}
    left_out |= {f"{head}_scale" for head in left_out}
    seen: set[int] = set()
    plain = {}
    for key, tensor in tensors.items():
        if key in left_out:
            continue
        shared = tensor.data_ptr() in seen
        seen.add(tensor.data_ptr())
        plain[key] = tensor.clone() if shared else tensor.contiguous()
    save_file(plain, folder / "model.safetensors")
    about = {"system": system, "config": to_dict(config), "settings": dict(settings or {})}
    (folder / "config.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def tied_names(keys: Iterable[str]) -> dict[str, str]:
    """The weight of each head -> that of the embedding beside it."""
    return {
        f"{prefix}head.weight": f"{prefix}embedding.weight"
        for key in keys
        if (prefix := key.removesuffix("embedding.weight")) != key and (not prefix or prefix.endswith("."))
    }


def _equal(tensors: Mapping[str, Tensor], head: str, embedding: str) -> bool:
    """Whether two weights hold the same numbers, and the same scales where they have some."""
    pairs = [(head, embedding), (f"{head}_scale", f"{embedding}_scale")]
    return head in tensors and all(
        torch.equal(tensors[a], tensors[b]) if a in tensors and b in tensors else a not in tensors and b not in tensors
        for a, b in pairs
    )


def open_native(folder: Path) -> NativeFolder:
    """Read the description of a model folder."""
    file = folder / "config.json"
    try:
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise CheckpointError(
                f"{file} is too large for a configuration: "
                f"run  viva rm {file.parent.name}  and  viva pull {file.parent.name}"
            )
        about = json.loads(file.read_text(encoding="utf-8"))
        return NativeFolder(folder, about["system"], about["config"], about.get("settings", {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file} is not a model description of this program: "
            f"run  viva rm {file.parent.name}  and  viva pull {file.parent.name}"
        ) from error


class _WithoutInitialising(TorchFunctionMode):
    """Leaves out the random filling of new parameters, which on the meta device only imports a compiler (1.4 s)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if getattr(func, "__module__", "") == "torch.nn.init":
            return given["tensor"] if "tensor" in given else args[0]
        return func(*args, **given)


def build(
    module: Callable[[Any], M],
    config: Any,
    tensors: Mapping[str, Tensor],
    many_rows: Callable[[str], bool] | None = None,
) -> M:
    """Make a module and fill it: float tensors become float32 parameters, int8 rows become integer layers.

    With ``many_rows`` (see :func:`~vivavoce.nn.quantized.install_int8`) float layers become integer layers as well.
    """
    with torch.device("meta"), _WithoutInitialising():
        model = module(config)
    wanted = model.state_dict()
    tied = {
        head: embedding
        for head, embedding in tied_names(tensors).items()
        if head in wanted and head not in tensors and f"{head.removesuffix('weight')}tiles" not in tensors
    }
    rest = install_int8(model, _with_heads(tensors, tied, many_rows is not None), many_rows)
    floats = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in rest.items()}
    floats |= {head: floats[embedding] for head, embedding in tied.items() if embedding in floats}
    try:
        model.load_state_dict(floats, strict=True, assign=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights do not fit their configuration: {' '.join(str(error).split())[:300]}"
        ) from error
    for head, embedding in tied.items():
        if embedding in floats:
            layer = model.get_submodule(head.removesuffix(".weight"))
            layer.weight = model.get_submodule(embedding.removesuffix(".weight")).weight
    return model.eval().requires_grad_(False)


def _with_heads(tensors: Mapping[str, Tensor], tied: Mapping[str, str], floats: bool) -> Mapping[str, Tensor]:
    """The tensors, and the rows of an embedding (integers, or ``floats`` to be rounded) again under its head's name."""
    names = {key: key for key in tensors}
    for head, embedding in tied.items():
        if f"{embedding}_scale" in tensors:
            names |= {head: embedding, f"{head}_scale": f"{embedding}_scale"}
        elif floats:
            names[head] = embedding
    return LazyTensors({name: partial(tensors.__getitem__, key) for name, key in names.items()})
