"""One door to every weight file: :func:`open_checkpoint` tells the format by content and gives lazy tensors.

    safetensors (one file, or shards with an index) -> PyTorch files -> CTranslate2 -> GGUF -> ONNX

Nothing in a file is executed. PyTorch archives go through ``weights_only`` first and through our own inert reader when
that refuses; this is the only place of the project that calls ``torch.load``.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vivavoce.checkpoints.binary import LazyTensors, damaged, map_file
from vivavoce.checkpoints.ctranslate2 import open_ctranslate2
from vivavoce.checkpoints.gguf import MAGIC, open_gguf
from vivavoce.checkpoints.inert_pickle import LazyTensor, Record, read_inert
from vivavoce.checkpoints.onnx import open_onnx
from vivavoce.errors import CheckpointError

MAX_INDEX = 1 << 26
MAX_DEPTH = 48
MAX_LEAVES = 2_000_000
SIDE_FILES = 64

_WEIGHT_PATTERNS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "*.safetensors.index.json",
    "*.safetensors",
    "*.gguf",
    "model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "*.onnx",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.jit",
    "*.bin",
)
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.safetensors|\.bin)")
_CGROUPS = (  # the limit of a container, what it uses, and what of that could be let go: version 2, version 1
    tuple(Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current", "memory.stat")),
    tuple(
        Path("/sys/fs/cgroup/memory") / name
        for name in ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
    ),
)
_TRAINING_STATE = ("optim", "sched", "lr_sched", "scaler", "amp", "rng", "loops", "callbacks")


@dataclass(frozen=True)
class Checkpoint:
    """What a weight file or folder holds.

    ``format`` is one of safetensors, torch, ctranslate2, gguf, onnx. ``tensors`` are lazy: each is read when asked for
    and not kept; for GGUF they are a :class:`~vivavoce.checkpoints.gguf.GGUFFile` and for ONNX an
    :class:`~vivavoce.checkpoints.onnx.OnnxFile`, which know more. ``metadata`` is what stands beside the tensors in the
    file, ``files`` what lies beside it in its folder, ``foreign`` the names of the globals that a pickle asked for and
    did not get, and ``shards`` the weight files where ``path`` is their index.
    """

    format: str
    path: Path
    tensors: Mapping[str, Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    foreign: tuple[str, ...] = ()
    shards: tuple[Path, ...] = ()


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a weight file, or the weights in a folder; CheckpointError says what is wrong with it."""
    given = Path(path)
    if not given.exists():
        raise CheckpointError(f"there is no file or folder {given}; check the path")
    file = _choose(given) if given.is_dir() else given
    opened = _open_file(file)
    # a CTranslate2 model.bin is half a model: its settings lie in the files next to it
    together = given.is_dir() or opened.format == "ctranslate2"
    beside = sorted(file.parent.iterdir())[:SIDE_FILES] if together else [file]
    files = {item.name: item for item in beside if item.is_file() and item != file}
    return replace(opened, path=file, files=files)


def describe(checkpoint: Checkpoint) -> str:
    """A few words for messages: name, model type, format, number of tensors, bytes on disk. No weight is read."""
    files = checkpoint.shards or (checkpoint.path,)
    said = read_json(checkpoint.files["config.json"]).get("model_type") if "config.json" in checkpoint.files else None
    form = f"{checkpoint.format} in {len(files)} shards" if checkpoint.shards else checkpoint.format
    facts = [str(said)[:40]] if said else []
    facts += [form, f"{len(checkpoint.tensors)} tensors", size_text(sum(file.stat().st_size for file in files))]
    whole = checkpoint.path.name.startswith("model.")  # then the folder's name tells more
    return f"{checkpoint.path.resolve().parent.name if whole else checkpoint.path.name} ({', '.join(facts)})"


def size_text(size: int) -> str:
    """Bytes for people to read, such as "20.6 GB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def free_memory() -> int | None:
    """Bytes that can still be filled here, in the machine or in the container where that has less; None where the
    system does not tell."""
    free: list[int] = []
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        free += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        pass
    for limit, used, stat in _CGROUPS:
        try:
            rows = dict(line.split(" ", 1) for line in stat.read_text("ascii").splitlines())
            cached = int(rows["inactive_file"]) + int(rows["active_file"])
            free.append(int(limit.read_text("ascii")) - int(used.read_text("ascii")) + cached)
        except (OSError, ValueError, KeyError):  # no such container, or one without a limit
            continue
    return max(0, min(free)) if free else None


def _choose(folder: Path) -> Path:
    """The weight file of a folder, in the order of ``_WEIGHT_PATTERNS``."""
    for pattern in _WEIGHT_PATTERNS:
        found = sorted(item for item in folder.glob(pattern) if item.is_file())
        parts = [shard for item in found if (shard := _SHARD.fullmatch(item.name)) and int(shard[2]) > 1]
        if parts:
            raise CheckpointError(
                f"{folder} holds {len(parts)} of {int(parts[0][2])} shards without their index; "
                f"fetch {parts[0][1]}{parts[0][3]}.index.json too"
            )
        if len(found) > 1:
            names = ", ".join(item.name for item in found[:5])
            raise CheckpointError(f"{folder} holds several weight files ({names}); name one of them")
        if found:
            return found[0]
    raise CheckpointError(f"{folder} holds no weight file; give a folder or file in a published format")


def _open_file(file: Path) -> Checkpoint:
    if file.name.endswith(".index.json"):
        return _open_shards(file)
    data = map_file(file)
    head = bytes(data[:16])
    if head[:4] == MAGIC:
        gguf = open_gguf(file)
        return Checkpoint("gguf", file, gguf, gguf.metadata)
    if head[8:9] == b"{" and 8 + int.from_bytes(head[:8], "little") <= len(data):
        return _open_safetensors(file)
    if head[:4] == b"PK\x03\x04" or (head[:1] == b"\x80" and head[1:2] <= b"\x05"):
        return _open_torch(file)
    if head[:4] in (b"\4\0\0\0", b"\5\0\0\0", b"\6\0\0\0"):
        stored = open_ctranslate2(file)
        metadata = {"spec": stored.spec, "revision": stored.revision, "aliases": stored.aliases}
        return Checkpoint("ctranslate2", file, stored.tensors, metadata)
    if head[:1] == b"\x08":
        onnx = open_onnx(file)
        return Checkpoint("onnx", file, onnx, dict(onnx.metadata))
    raise CheckpointError(f"{file.name} is no known weight file; give safetensors, PyTorch, GGUF, ONNX or model.bin")


# ---------------------------------------------------------------------------------------------------- safetensors


def _open_safetensors(file: Path) -> Checkpoint:
    try:
        handle = safe_open(file, framework="pt")
        names, metadata = list(handle.keys()), dict(handle.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(file, str(error).splitlines()[0][:120] if str(error) else "safetensors") from error
    return Checkpoint(
        "safetensors", file, LazyTensors({name: partial(_get, handle, name, file) for name in names}), metadata
    )


def _get(handle: Any, name: str, file: Path) -> Tensor:
    try:
        return handle.get_tensor(name)
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise damaged(file, f"{name} cannot be read") from error


def _open_shards(index: Path) -> Checkpoint:
    """Tensors of all shards that an index names, shard by shard; each shard must lie beside the index.

    A tensor of a safetensors shard is mapped when asked for and let go with its last use, so that what has been read of
    a large model does not pile up in memory.
    """
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise damaged(index, "it has no weight_map")
    keys: dict[str, list[str]] = {name: [] for name in sorted(set(places.values()))}
    for key, name in places.items():
        keys[name].append(key)
    if any(name.endswith(".index.json") for name in keys):
        raise damaged(index, "it names an index among its shards")
    missing = [name for name in keys if Path(name).name != name or not (index.parent / name).is_file()]
    if missing:
        count = f"{len(missing)} of its {len(keys)} shards" if len(missing) > 1 else "the shard"
        do, them = ("do", "them") if len(missing) > 1 else ("does", "it")
        listed = ", ".join(repr(name[:80]) for name in missing[:5])
        raise CheckpointError(f"{index.name} names {count} {listed}, which {do} not lie beside it; fetch {them} too")
    makers: dict[str, Callable[[], Tensor]] = {}
    form = "safetensors"
    for name, own in keys.items():
        file = index.parent / name
        shard = _open_file(file)
        form = shard.format
        for key in own:
            if key not in shard.tensors:
                raise damaged(index, f"{name} does not hold {key}")
            alone = form == "safetensors"
            makers[key] = partial(_get_alone, file, key) if alone else partial(shard.tensors.__getitem__, key)
    return Checkpoint(form, index, LazyTensors(makers), shards=tuple(index.parent / name for name in keys))


def _get_alone(file: Path, name: str) -> Tensor:
    try:
        with safe_open(file, framework="pt") as handle:
            return _get(handle, name, file)
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(file, f"{name} cannot be read") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of bounded size."""
    try:
        if path.stat().st_size > MAX_INDEX:
            raise damaged(path, "it is too large")
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise damaged(path, "it is not JSON") from error
    if not isinstance(found, dict):
        raise damaged(path, "it is not a JSON object")
    return found


# ---------------------------------------------------------------------------------------------------- PyTorch


def _open_torch(file: Path) -> Checkpoint:
    root = _load_weights_only(file)
    if root is None:
        root = read_inert(file)
    try:
        leaves, rest, foreign = _flatten(root, file)
        tensors, metadata = _unwrap(leaves, rest)
    except (RecursionError, TypeError, ValueError) as error:
        raise damaged(file, "its contents are no tree of tensors") from error
    if not tensors:
        raise CheckpointError(f"{file.name} holds no tensors; give the file that holds the weights")
    makers = {name: partial(_materialise, leaf, file) for name, leaf in tensors.items()}
    return Checkpoint("torch", file, LazyTensors(makers), metadata, foreign=foreign)


def _load_weights_only(file: Path) -> Any:
    """The object that torch accepts as plain weights, or None; archives claiming more than they hold are not tried."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
        stored = all(info.compress_type == zipfile.ZIP_STORED for info in entries)
        scripted = any(info.filename.endswith("constants.pkl") for info in entries)
        if scripted or not stored or sum(info.file_size for info in entries) > file.stat().st_size:
            return None
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # refused or damaged: the inert reader looks at it next and names the fault
        return None


def _materialise(leaf: Tensor | LazyTensor, file: Path) -> Tensor:
    if isinstance(leaf, LazyTensor):
        return leaf.tensor(file)
    return leaf.detach().clone(memory_format=torch.contiguous_format)


def _children(value: Any) -> Iterable[tuple[str, Any]]:
    """The named parts of one piece of data."""
    if isinstance(value, Mapping):
        return ((str(key), item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return ((str(index), item) for index, item in enumerate(value))
    if isinstance(value, Record):
        state = value.state
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):  # (dict, slots)
            state = {**(state[0] or {}), **state[1]}
        return _children(state) if isinstance(state, Mapping) else ()
    return ()


def _flatten(root: Any, file: Path) -> tuple[dict[tuple[str, ...], Any], dict[tuple[str, ...], Any], tuple[str, ...]]:
    """Tensors and other values by path, and the foreign names met; bounded in depth and number."""
    leaves: dict[tuple[str, ...], Any] = {}
    rest: dict[tuple[str, ...], Any] = {}
    foreign: dict[str, None] = {}
    waiting: list[tuple[tuple[str, ...], Any]] = [((), root)]
    steps, limit = 0, 16 * file.stat().st_size + (1 << 20)
    while waiting:
        path, value = waiting.pop()
        steps += 1
        if steps > MAX_LEAVES or len(path) > MAX_DEPTH:
            raise damaged(file, "its contents are nested without end")
        if isinstance(value, Record):
            foreign[value.name] = None
        if isinstance(value, Tensor | LazyTensor):
            if isinstance(value, Tensor) and value.numel() * value.element_size() > limit:
                raise damaged(file, "a tensor repeats its elements without end")
            leaves[path] = value
        elif isinstance(value, str | int | float | bool | bytes | type(None)):
            rest[path] = value
        else:
            waiting += [((*path, name), item) for name, item in reversed(list(_children(value)))]
    return leaves, rest, tuple(foreign)


def _unwrap(
    leaves: dict[tuple[str, ...], Any], rest: dict[tuple[str, ...], Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Drop the wrappers around the one state dict of a file, and training state beside it; the rest is metadata."""
    leaves = {
        path: leaf for path, leaf in leaves.items() if not path or not path[0].lower().startswith(_TRAINING_STATE)
    }
    depth = 0
    while len({path[depth] for path in leaves if len(path) > depth + 1}) == 1 and all(
        len(path) > depth + 1 for path in leaves
    ):
        depth += 1
    metadata: dict[str, Any] = {}
    for path, value in rest.items():
        if not path or _is_training_state(path):
            continue
        target = metadata
        for name in path[:-1]:
            inner = target.setdefault(name, {})
            target = inner if isinstance(inner, dict) else target
        target[path[-1]] = value
    return {".".join(path[depth:]): leaf for path, leaf in leaves.items()}, metadata


def _is_training_state(path: tuple[str, ...]) -> bool:
    return len(path) > 1 and path[0].lower().startswith(_TRAINING_STATE)
