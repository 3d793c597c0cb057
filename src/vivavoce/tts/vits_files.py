"""Published VITS files to models: sizes off the tensors (or a transformers config.json), weights through the tables.

authors' G_*.pth | transformers folder | Piper voice.onnx  ->  VITSConfig, VITS
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vivavoce.checkpoints.layouts.vits import LAYOUTS, TRANSFORMERS
from vivavoce.checkpoints.read import open_checkpoint, read_json
from vivavoce.checkpoints.rules import detect, import_weights
from vivavoce.errors import CheckpointError
from vivavoce.nn.hifigan import HiFiGANConfig
from vivavoce.tts.vits import VITS, VITSConfig

Shapes = Mapping[str, tuple[int, ...]]


def open_vits(path: str | Path, *, sample_rate: int = 22_050) -> VITS:
    """The model in a published file or folder, in evaluation mode; ``sample_rate`` where the file does not say it."""
    checkpoint = open_checkpoint(path)
    tensors: Mapping[str, Tensor] = checkpoint.tensors
    layout = detect(tensors, LAYOUTS)
    if layout is TRANSFORMERS:
        if "config.json" not in checkpoint.files:
            raise CheckpointError(f"{path} is a transformers model without its config.json: give the whole folder")
        config = from_transformers(read_json(checkpoint.files["config.json"]))
    else:
        config = from_original({name: tuple(tensor.shape) for name, tensor in tensors.items()}, sample_rate)
    model = VITS(config)
    weights = import_weights(layout, tensors, {name: tuple(p.shape) for name, p in model.state_dict().items()})
    model.load_state_dict(weights)
    return model.eval()


def from_original(shapes: Shapes, sample_rate: int = 22_050) -> VITSConfig:
    """Sizes from the tensor shapes of the authors' layout or of Piper's.

    Dilations and upsampling rates are not in the shapes: every published model has the paper's dilations and
    upsampling kernels of twice the rate.
    """
    embedding = shapes["enc_p.emb.weight"] if "enc_p.emb.weight" in shapes else shapes["sid"]
    relative = shapes["enc_p.encoder.attn_layers.0.emb_rel_k"]
    stochastic = "dp.flows.3.proj.weight" in shapes
    speakers = shapes.get("emb_g.weight", (0, 0))
    ffn = shapes["enc_p.encoder.ffn_layers.0.conv_1.weight"]
    wavenet = next(shape for name, shape in shapes.items() if ".enc.in_layers.0.weight" in name and name[-1] != "g")
    trainable = "enc_q.pre.weight" in shapes
    duration = shapes["dp.pre.weight"] if stochastic else shapes["dp.conv_1.weight"]
    return VITSConfig(
        n_symbols=embedding[0],
        dim=embedding[1],
        n_layers=_count(shapes, "enc_p.encoder.attn_layers.{}.emb_rel_k"),
        n_heads=embedding[1] // relative[2],
        window=relative[1] // 2,
        ffn_dim=ffn[0],
        ffn_kernel=ffn[2],
        durations="stochastic" if stochastic else "deterministic",
        duration_dim=duration[0],
        latent_dim=shapes["enc_p.proj.weight"][0] // 2,
        spectrogram_bins=shapes["enc_q.pre.weight"][1] if trainable else 513,
        posterior_layers=_count(shapes, "enc_q.enc.in_layers.{}.bias") if trainable else 16,
        n_flows=_count(shapes, "flow.flows.{}.pre.weight", 2),
        flow_layers=_count(shapes, "flow.flows.0.enc.in_layers.{}.bias"),
        wavenet_kernel=wavenet[2],
        n_speakers=speakers[0],
        speaker_dim=speakers[1],
        sample_rate=sample_rate,
        trainable=trainable,
        decoder=_decoder(shapes, speakers[1]),
    )


def from_transformers(published: Mapping[str, Any]) -> VITSConfig:
    """Sizes from the config.json of a transformers ``VitsModel``."""
    multi = int(published.get("num_speakers", 1)) > 1
    speaker_dim = int(published.get("speaker_embedding_size", 0)) if multi else 0
    try:
        stochastic = bool(published["use_stochastic_duration_prediction"])
        return VITSConfig(
            n_symbols=published["vocab_size"],
            dim=published["hidden_size"],
            n_layers=published["num_hidden_layers"],
            n_heads=published["num_attention_heads"],
            window=published["window_size"],
            ffn_dim=published["ffn_dim"],
            ffn_kernel=published["ffn_kernel_size"],
            durations="stochastic" if stochastic else "deterministic",
            duration_dim=published["hidden_size"] if stochastic else published["duration_predictor_filter_channels"],
            duration_kernel=published["duration_predictor_kernel_size"],
            n_duration_flows=published["duration_predictor_num_flows"],
            latent_dim=published["flow_size"],
            spectrogram_bins=published["spectrogram_bins"],
            posterior_layers=published["posterior_encoder_num_wavenet_layers"],
            n_flows=published["prior_encoder_num_flows"],
            flow_layers=published["prior_encoder_num_wavenet_layers"],
            wavenet_kernel=published["wavenet_kernel_size"],
            n_speakers=published["num_speakers"] if multi else 0,
            speaker_dim=speaker_dim,
            sample_rate=published["sampling_rate"],
            decoder=HiFiGANConfig(
                in_channels=published["flow_size"],
                channels=published["upsample_initial_channel"],
                upsample_rates=tuple(published["upsample_rates"]),
                upsample_kernels=tuple(published["upsample_kernel_sizes"]),
                block_kernels=tuple(published["resblock_kernel_sizes"]),
                block_dilations=tuple(tuple(row) for row in published["resblock_dilation_sizes"]),
                speaker_dim=speaker_dim,
                post_bias=False,
            ),
        )
    except KeyError as error:
        raise CheckpointError(f"config.json lacks {error}: give the folder that transformers saved") from None


def _decoder(shapes: Shapes, speaker_dim: int) -> HiFiGANConfig:
    def weight(path: str) -> tuple[int, ...]:
        for suffix in ("weight", "weight_v", "parametrizations.weight.original1"):
            if f"{path}.{suffix}" in shapes:
                return shapes[f"{path}.{suffix}"]
        raise CheckpointError(f"the weights of {path} are missing: give a whole VITS checkpoint")

    kernels = tuple(weight(f"dec.ups.{i}")[2] for i in range(_count(shapes, "dec.ups.{}.bias")))
    type_1 = "dec.resblocks.0.convs1.0.bias" in shapes
    conv = "convs1" if type_1 else "convs"
    return HiFiGANConfig(
        in_channels=weight("dec.conv_pre")[1],
        channels=weight("dec.conv_pre")[0],
        upsample_rates=tuple(kernel // 2 for kernel in kernels),
        upsample_kernels=kernels,
        block_type=1 if type_1 else 2,
        block_kernels=tuple(weight(f"dec.resblocks.{i}.{conv}.0")[2] for i in range(3)),
        block_dilations=((1, 3, 5),) * 3 if type_1 else ((1, 2), (2, 6), (3, 12)),
        speaker_dim=speaker_dim,
        post_bias="dec.conv_post.bias" in shapes,
    )


def _count(shapes: Shapes, template: str, stride: int = 1) -> int:
    """How many of ``template`` with 0, stride, 2 * stride ... there are."""
    count = 0
    while template.format(count * stride) in shapes:
        count += 1
    return count
