"""Silero VAD: the TorchScript archive (both rates in one file) and the 16 kHz safetensors file of the package."""

from __future__ import annotations

from vivavoce.checkpoints.rules import Drop, Layout, Row, Squeeze


def _archive(name: str, theirs: str, other: str) -> Layout:
    return Layout(
        name,
        (f"{theirs}.stft.forward_basis_buffer", f"{theirs}.decoder.rnn.weight_ih"),
        (
            Row(f"{theirs}.stft.forward_basis_buffer", "fourier.weight"),
            Row(f"{theirs}.encoder.{{i}}.reparam_conv.{{w}}", "convs.{i}.{w}"),
            Row(f"{theirs}.decoder.rnn.{{w}}", "recurrent.{w}_l0"),
            Row(f"{theirs}.decoder.decoder.2.weight", "head.weight", Squeeze(-1)),
            Row(f"{theirs}.decoder.decoder.2.bias", "head.bias"),
            Row(f"{other}.*", None, Drop("the network of the other sample rate")),
            Row("_state", None, Drop("the streaming state at saving time")),
            Row("_context", None, Drop("the streaming state at saving time")),
        ),
    )


TORCHSCRIPT = _archive("silero, TorchScript at 16 kHz", "_model", "_model_8k")
TORCHSCRIPT_8K = _archive("silero, TorchScript at 8 kHz", "_model_8k", "_model")

SAFETENSORS = Layout(
    "silero, safetensors",
    ("stft_conv.weight", "lstm_cell.weight_ih"),
    (
        Row("stft_conv.weight", "fourier.weight"),
        Row("conv{i+1}.{w}", "convs.{i}.{w}"),
        Row("lstm_cell.{w}", "recurrent.{w}_l0"),
        Row("final_conv.weight", "head.weight", Squeeze(-1)),
        Row("final_conv.bias", "head.bias"),
    ),
)

LAYOUTS = (TORCHSCRIPT, TORCHSCRIPT_8K, SAFETENSORS)
