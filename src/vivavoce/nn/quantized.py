"""Linear layers that compute on 8-bit integer weights: about a quarter of the bytes of float32 per step.

Weights are symmetric int8 with one scale per output row; activations are quantised on the fly to 8 bits. One row is
quantised with its own range by the kernel; several rows are first brought to a common range, each by its own largest
value, so that one loud row cannot coarsen the others and rows of a batch do not touch each other.

    x (..., K) -> / row maximum -> uint8 x int8 -> int32 -> float32 x row maximum x weight scale + bias -> (..., N)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

LEVELS = 127.0  # symmetric: -127 .. 127, so that negation is exact


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Split a float matrix (N, K) into int8 (N, K) and one float32 scale per row (N,): weight ~ int8 * scale."""
    weight = weight.float()
    scale = weight.abs().amax(dim=1).clamp_min(1e-12) / LEVELS
    return (weight / scale[:, None]).round_().to(torch.int8), scale


def _pack(weight: Tensor, scale: Tensor):
    """Hand int8 rows and their scales to the kernel library, which keeps its own rearranged copy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tensor class is deprecated, the kernels are not
        rows = torch._make_per_channel_quantized_tensor(
            weight.contiguous(), scale.double(), torch.zeros(scale.shape[0], dtype=torch.long), 0
        )
        return torch.ops.quantized.linear_prepack(rows, None)


class Int8Linear(nn.Module):
    """A linear layer over packed int8 weights (N, K) with per-row scales; inference on a CPU only.

    The packed weight is the kernel library's own object, so it is not in ``state_dict``: keep the int8 rows and scales of
    :func:`quantize_rows` in the file and build the layer from them.
    """

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._packed = _pack(weight, scale)
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone(), persistent=False)

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> Int8Linear:
        """Quantise a float layer."""
        return cls(*quantize_rows(linear.weight.detach()), linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) float32 -> (..., N) float32."""
        if x.numel() == x.shape[-1]:
            y = torch.ops.quantized.linear_dynamic(x, self._packed, False)
        else:
            # twenty times faster than the infinity norm, which is not vectorised
            peak = torch.maximum(x.amax(dim=-1, keepdim=True), -x.amin(dim=-1, keepdim=True)).clamp_min_(1e-12)
            y = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
                x / peak, 1 / LEVELS, 128, self._packed
            )
            y.mul_(peak)
        return y if self.bias is None else y.add_(self.bias)

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


class Int4Linear(nn.Module):
    """A linear layer over 4-bit levels (N, K) with a scale and a lowest value per 32 weights, exactly as published files of
    the types Q4_0, Q4_1 and Q4_K hold them; half the memory of int8, activations in bfloat16. Inference on a CPU only.
    """

    def __init__(self, levels: Tensor, scale: Tensor, low: Tensor, bias: Tensor | None):
        super().__init__()
        self.out_features, self.in_features = levels.shape
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels.to(torch.int32), 1)
        # the kernel counts levels from 8
        groups = torch.stack([scale, low + 8 * scale], dim=-1).transpose(0, 1)  # (K / 32, N, 2)
        self.register_buffer("groups", groups.contiguous().bfloat16(), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) float32 -> (..., N) float32."""
        flat = x.reshape(-1, x.shape[-1]).bfloat16()
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(flat, self._packed, GROUP, self.groups).float()
        y = y.view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y.add_(self.bias)


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
