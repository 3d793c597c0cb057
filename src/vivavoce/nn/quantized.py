"""Linear layers that compute on integer weights of 8 or 4 bits: a quarter or a sixth of the bytes of float32 per step.

8 bits: weights are symmetric with one scale per output row. 4 bits: a scale and a lowest value per 32 weights.
Activations are quantised on the fly to 8 bits, each row by its own largest value, so that one loud row cannot coarsen
the others and rows of a batch do not touch each other.

    x (..., K) -> / row maximum -> 8 bit x int8 -> int32 -> float32 x row maximum x weight scale + bias -> (..., N)

What multiplies is chosen when a layer is built: the C kernels (nn/native.py) where they are enabled, else torch's own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import CheckpointError
from vivavoce.nn import native
from vivavoce.nn.native import TILE

SLICE = 4096  # rows
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
LEVELS = 127.0  # symmetric: -127 .. 127, so that negation is exact


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Split a float matrix (N, K) into int8 (N, K) and one float32 scale per row (N,): weight ~ int8 * scale."""
    rows, scale = torch.empty(weight.shape, dtype=torch.int8), torch.empty(weight.shape[0])
    for at in range(0, weight.shape[0], SLICE):  # a few rows at a time: no float copy of a whole vocabulary
        part = weight[at : at + SLICE].float()
        scale[at : at + SLICE] = part.abs().amax(dim=1).clamp_min(1e-12) / LEVELS
        rows[at : at + SLICE] = (part / scale[at : at + SLICE, None]).round_()
    return rows, scale


class TorchInt8:
    """x (..., K) times int8 rows by torch's kernels, which keep their own rearranged copy of the rows."""

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None):
        self._bias = bias
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tensor class is deprecated, the kernels are not
            rows = torch._make_per_channel_quantized_tensor(  # pyright: ignore[reportPrivateImportUsage]
                weight.contiguous(), scale.double(), torch.zeros(scale.shape[0], dtype=torch.long), 0
            )
            self._packed = torch.ops.quantized.linear_prepack(rows, None)

    def __call__(self, x: Tensor) -> Tensor:
        if x.numel() == x.shape[-1]:
            y = torch.ops.quantized.linear_dynamic(x, self._packed, False)
        else:
            # the kernel has one range for all rows: bring each to it by its own largest value
            # (the infinity norm is not vectorised and takes twenty times as long)
            peak = torch.maximum(x.amax(dim=-1, keepdim=True), -x.amin(dim=-1, keepdim=True)).clamp_min_(1e-12)
            multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
            y = multiply(x / peak, 1 / LEVELS, 128, self._packed).mul_(peak)
        return y if self._bias is None else y.add_(self._bias)


class Int8Linear(nn.Module):
    """A linear layer over int8 weights (N, K) with per-row scales; inference on a CPU only.

    The weight is the kernel's own, so it is not in ``state_dict``: keep the int8 rows and scales of
    :func:`quantize_rows` in the file and build the layer from them.
    """

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None, many_rows: bool = False):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        bias = None if bias is None else bias.detach().float().clone()
        # with hundreds of rows at once (an encoder) torch's kernels win, with few (a decoder) ours
        ours = None if many_rows else native.int8_linear(weight, scale, bias)
        self.kernel = ours or TorchInt8(weight, scale, bias)

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> Int8Linear:
        """Quantise a float layer."""
        return cls(*quantize_rows(linear.weight.detach()), linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) float32 -> (..., N) float32."""
        return self.kernel(x)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def quantize_linears(module: nn.Module, chosen: Callable[[str, nn.Linear], bool] | None = None) -> nn.Module:
    """Replace every (chosen) ``nn.Linear`` below ``module`` by an :class:`Int8Linear`, in place; returns the module."""
    for name, child in list(module.named_modules()):
        if isinstance(child, nn.Linear) and (chosen is None or chosen(name, child)):
            parent = module.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], Int8Linear.from_linear(child))
    return module


GROUP = 32  # weights that share a scale in the 4-bit types


def pack_tiles(levels: Tensor, scale: Tensor, low: Tensor) -> Tensor:
    """A 4-bit matrix in the order in which nn/native.c reads it: uint8 (N / 16 rounded up, K / 32, 320).

    levels (N, K) uint8, 0 to 15; scale and low (N, K / 32); weight = level * scale + low. A tile holds one group of 16
    rows: 16 levels bytes a row, four bytes of each row in turn, with weights 0 to 15 in the low halves and 16 to 31 in
    the high ones; then 16 scales and 16 lowest values in half precision.
    """
    n, groups = scale.shape
    halves = levels.view(n, groups, 2, GROUP // 2)
    packed = halves[:, :, 0] | halves[:, :, 1] << 4
    numbers = torch.stack([scale, low], dim=2).half().view(torch.uint8).view(n, groups, 2, 2)
    spare = -n % TILE
    packed, numbers = F.pad(packed, (0, 0, 0, 0, 0, spare)), F.pad(numbers, (0, 0, 0, 0, 0, 0, 0, spare))
    packed = packed.view(-1, TILE, groups, 4, 4).permute(0, 2, 3, 1, 4).reshape(-1, groups, 16 * TILE)
    numbers = numbers.view(-1, TILE, groups, 2, 2).permute(0, 2, 3, 1, 4).reshape(-1, groups, 4 * TILE)
    return torch.cat([packed, numbers], dim=2)


def tiles_shape(rows: int, width: int) -> tuple[int, int, int]:
    """The shape of the tiles of a matrix (rows, width)."""
    return -(-rows // TILE), width // GROUP, 20 * TILE


def unpack_tiles(tiles: Tensor, rows: int) -> Tensor:
    """The float32 matrix (rows, K) that tiles stand for: the inverse of :func:`pack_tiles`."""
    groups = tiles.shape[1]
    packed = tiles[:, :, : 16 * TILE].reshape(-1, groups, 4, TILE, 4).permute(0, 3, 1, 2, 4).reshape(-1, groups, 16)
    numbers = tiles[:, :, 16 * TILE :].contiguous().view(torch.float16).view(-1, groups, 2, TILE)
    scale, low = numbers.permute(2, 0, 3, 1).reshape(2, -1, groups, 1).float()
    return torch.cat([packed & 15, packed >> 4], dim=2).float().mul_(scale).add_(low).flatten(1)[:rows]


def quantize_groups(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A float matrix (N, K) in 4 bits: levels (N, K) uint8, 0 to 15, scale and low (N, K / 32), as
    :func:`pack_tiles` takes them: weight ~ level * scale + low."""
    groups = weight.detach().float().unflatten(1, (-1, GROUP))
    low, high = groups.amin(2).half().float(), groups.amax(2)
    scale = ((high - low) / 15).clamp_min(1e-7).half().float().clamp_min(6e-8)
    levels = ((groups - low[..., None]) / scale[..., None]).round_().clamp_(0, 15)
    return levels.flatten(1).to(torch.uint8), scale, low


class Int4Linear(nn.Module):
    """A linear layer over 4-bit levels with a scale and a lowest value per 32 weights, as published files of the types
    Q4_0, Q4_1 and Q4_K hold them; little more than half the memory of int8. Inference on a CPU only.

    tiles as :func:`pack_tiles` gives them; they may stay memory-mapped. Without the C kernels the groups become int8
    rows, which torch multiplies faster than it does 4 bits.
    """

    def __init__(self, tiles: Tensor, out_features: int, bias: Tensor | None):
        super().__init__()
        self.out_features, self.in_features = out_features, GROUP * tiles.shape[1]
        bias = None if bias is None else bias.detach().float().clone()
        self.kernel = native.int4_linear(tiles, out_features, bias) or TorchInt8(
            *quantize_rows(unpack_tiles(tiles, out_features)), bias
        )

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> Int4Linear:
        """Quantise a float layer whose inputs are whole groups of 32."""
        return cls(pack_tiles(*quantize_groups(linear.weight)), linear.out_features, linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) float32 -> (..., N) float32."""
        return self.kernel(x)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


class Int8Embedding(nn.Module):
    """Rows of int8 with one scale each: ids (...) -> float32 (..., D). The table may stay memory-mapped."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor):
        super().__init__()
        self.num_embeddings, self.embedding_dim = weight.shape
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("scale", scale.float(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.weight[ids].float() * self.scale[ids][..., None]


def install_int8(
    module: nn.Module, tensors: Mapping[str, Tensor], many_rows: Callable[[str], bool] | None = None
) -> dict[str, Tensor]:
    """Replace every layer whose weight is stored as integers by its integer form: int8 rows (``X.weight`` beside
    ``X.weight_scale``), or 4-bit groups (``X.tiles``).

    With ``many_rows``, linear layers and embeddings stored as floats are rounded to int8 too, one after another, so
    that a model is never held as floats; it says of a layer's name whether many rows at once are its rule.
    Returns the tensors that are left for ``load_state_dict``; CheckpointError where integers do not fit their layer.
    """
    layers = {key.removesuffix(".weight_scale") for key in tensors if key.endswith(".weight_scale")}
    tiled = {key.removesuffix(".tiles") for key in tensors if key.endswith(".tiles")}
    known = dict(module.named_modules())
    if many_rows is not None:
        kinds = nn.Linear | nn.Embedding
        layers |= {n for n, child in known.items() if isinstance(child, kinds) and f"{n}.weight" in tensors}
    taken: set[str] = set()
    for name in sorted((layers | tiled) & known.keys()):  # one by one: the file pages of one layer are in memory
        old, rounded = known[name], f"{name}.weight_scale" not in tensors
        parts = {part: tensors.get(f"{name}.{part}") for part in ("weight", "weight_scale", "tiles", "bias")}
        rows = _check(name, old, parts, rounded and name in layers)
        weight, scale, tiles, bias = parts.values()
        if tiles is not None:
            new = Int4Linear(tiles, rows, bias)
        else:
            assert weight is not None
            weight, scale = (weight, scale) if scale is not None else quantize_rows(weight)
            many = many_rows is not None and many_rows(name)
            embeds = isinstance(old, nn.Embedding)
            new = Int8Embedding(weight, scale) if embeds else Int8Linear(weight, scale, bias, many)
        setattr(module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], new)
        taken |= {f"{name}.{part}" for part in parts}
    return {key: tensors[key] for key in tensors if key not in taken}


def _check(name: str, old: nn.Module, parts: Mapping[str, Tensor | None], rounded: bool) -> int:
    """Compare what a file holds for one integer layer with the layer it replaces -> its rows; ``rounded``: they are
    floats."""
    weight, scale, tiles, bias = parts.values()
    if not isinstance(old, nn.Linear if tiles is not None else nn.Linear | nn.Embedding):
        raise CheckpointError(f"integer weights are stored for {name}, which has none: pull the model again")
    if tiles is not None and (weight is not None or scale is not None):
        raise CheckpointError(f"{name} is stored in 4 bits and in another form as well: pull the model again")
    n, k = old.weight.shape
    wanted: dict[str, tuple[Tensor | None, tuple[int, ...] | None, tuple[torch.dtype, ...]]] = (
        {"tiles": (tiles, tiles_shape(n, k), (torch.uint8,))}
        if tiles is not None
        else {
            "weight": (weight, (n, k), FLOATS if rounded else (torch.int8,)),
            "weight_scale": (scale, None if rounded else (n,), FLOATS),
        }
    )
    wanted["bias"] = (bias, (n,) if getattr(old, "bias", None) is not None else None, FLOATS)
    for part, (tensor, shape, types) in wanted.items():
        if tensor is None and shape is not None:
            raise CheckpointError(f"{name}.{part} is missing beside other integer weights: pull the model again")
        if tensor is not None and (shape is None or tuple(tensor.shape) != shape or tensor.dtype not in types):
            found, kind = list(tensor.shape), str(tensor.dtype).removeprefix("torch.")
            fit = "nothing" if shape is None else f"{list(shape)} of the type {str(types[0]).removeprefix('torch.')}"
            raise CheckpointError(f"{name}.{part} is {found} of the type {kind}, not {fit}: pull the model again")
    if tiles is not None and k % GROUP:
        raise CheckpointError(f"the {k} inputs of {name} are no whole groups of {GROUP} weights: pull the model again")
    return n
