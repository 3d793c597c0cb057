"""Linear layers that compute on integer weights of 8 or 4 bits: a quarter or an eighth of the bytes of float32 per step.

8 bits: weights are symmetric with one scale per output row. 4 bits: a scale and a lowest value per 32 weights. Activations
are quantised on the fly to 8 bits, each row by its own largest value, so that one loud row cannot coarsen the others and
rows of a batch do not touch each other.

    x (..., K) -> / row maximum -> 8 bit x int8 -> int32 -> float32 x row maximum x weight scale + bias -> (..., N)

What multiplies is chosen when a layer is built: the C kernels (nn/native.py) where they are enabled, else torch's own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from vivavoce.nn import native

LEVELS = 127.0  # symmetric: -127 .. 127, so that negation is exact


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Split a float matrix (N, K) into int8 (N, K) and one float32 scale per row (N,): weight ~ int8 * scale."""
    weight = weight.float()
    scale = weight.abs().amax(dim=1).clamp_min(1e-12) / LEVELS
    return (weight / scale[:, None]).round_().to(torch.int8), scale


class TorchInt8:
    """x (..., K) times int8 rows by torch's kernels, which keep their own rearranged copy of the rows."""

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None):
        self._bias = bias
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tensor class is deprecated, the kernels are not
            rows = torch._make_per_channel_quantized_tensor(
                weight.contiguous(), scale.double(), torch.zeros(scale.shape[0], dtype=torch.long), 0
            )
            self._packed = torch.ops.quantized.linear_prepack(rows, None)

    def __call__(self, x: Tensor) -> Tensor:
        if x.numel() == x.shape[-1]:
            y = torch.ops.quantized.linear_dynamic(x, self._packed, False)
        else:
            # the kernel has one range for all rows: bring each to it by its own largest value
            peak = torch.linalg.vector_norm(x, torch.inf, dim=-1, keepdim=True).clamp_min_(1e-12)
            y = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(x / peak, 1 / LEVELS, 128, self._packed)
            y.mul_(peak)
        return y if self._bias is None else y.add_(self._bias)


class Int8Linear(nn.Module):
    """A linear layer over int8 weights (N, K) with per-row scales; inference on a CPU only.

    The weight is the kernel's own, so it is not in ``state_dict``: keep the int8 rows and scales of
    :func:`quantize_rows` in the file and build the layer from them.
    """

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        bias = None if bias is None else bias.detach().float().clone()
        self.kernel = native.int8_linear(weight, scale, bias) or TorchInt8(weight, scale, bias)

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


def pack_levels(levels: Tensor) -> Tensor:
    """Levels 0 to 15 (N, K) uint8 -> (N, K / 2): of every 32 the first 16 in low halves, the last 16 in high halves."""
    halves = levels.view(levels.shape[0], -1, 2, GROUP // 2)
    return (halves[:, :, 0] | halves[:, :, 1] << 4).flatten(1)


def unpack_groups(levels: Tensor, scale: Tensor, low: Tensor) -> Tensor:
    """The float32 matrix (N, K) that packed levels (N, K / 2), scales and lowest values (N, K / 32) stand for."""
    packed = levels.view(levels.shape[0], -1, GROUP // 2)
    weights = torch.cat([packed & 15, packed >> 4], dim=2).float()
    return weights.mul_(scale.float()[..., None]).add_(low.float()[..., None]).flatten(1)


class Int4Linear(nn.Module):
    """A linear layer over 4-bit levels with a scale and a lowest value per 32 weights, exactly as published files of the
    types Q4_0, Q4_1 and Q4_K hold them; half the memory of int8. Inference on a CPU only.

    levels (N, K / 2) as :func:`pack_levels` gives them, scale and low (N, K / 32). Without the C kernels the groups become
    int8 rows, which torch multiplies faster than it does 4 bits.
    """

    def __init__(self, levels: Tensor, scale: Tensor, low: Tensor, bias: Tensor | None):
        super().__init__()
        self.out_features, self.in_features = levels.shape[0], 2 * levels.shape[1]
        bias = None if bias is None else bias.detach().float().clone()
        self.kernel = native.int4_linear(levels, scale, low, bias) or TorchInt8(
            *quantize_rows(unpack_groups(levels, scale, low)), bias
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) float32 -> (..., N) float32."""
        return self.kernel(x)


class Int8Embedding(nn.Module):
    """Rows of int8 with one scale each: ids (...) -> float32 (..., D). The table may stay memory-mapped."""

    def __init__(self, weight: Tensor, scale: Tensor):
        super().__init__()
        self.num_embeddings, self.embedding_dim = weight.shape
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("scale", scale.float(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.weight[ids].float() * self.scale[ids][..., None]


def install_int8(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace every layer whose weight is stored as integers by its integer form: int8 rows (``X.weight`` beside
    ``X.weight_scale``), or 4-bit groups (``X.levels``, ``X.group_scale``, ``X.group_low``).

    Returns the tensors that are left for ``load_state_dict``.
    """
    layers = {key.removesuffix(".weight_scale") for key in tensors if key.endswith(".weight_scale")}
    known = {name for name, _ in module.named_modules()}
    taken = {f"{name}.{part}" for name in layers & known for part in ("weight", "weight_scale", "bias")}
    for name in sorted(layers & known):  # one after another: only one layer's file pages are in memory at a time
        old = module.get_submodule(name)
        weight, scale = tensors[f"{name}.weight"], tensors[f"{name}.weight_scale"]
        bias = tensors[f"{name}.bias"] if f"{name}.bias" in tensors else None
        new = Int8Embedding(weight, scale) if isinstance(old, nn.Embedding) else Int8Linear(weight, scale, bias)
        setattr(module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], new)
    for name in sorted({key.removesuffix(".levels") for key in tensors if key.endswith(".levels")} & known):
        parts = [f"{name}.{part}" for part in ("levels", "group_scale", "group_low", "bias")]
        new = Int4Linear(*(tensors[key] for key in parts[:3]), tensors[parts[3]] if parts[3] in tensors else None)
        setattr(module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], new)
        taken.update(parts)
    return {key: tensors[key] for key in tensors if key not in taken}
