"""GLM-4-Voice's speech decoder against recorded outputs of the reference: the flow, the vocoder, and the reference's
own way to stream both. Waves are made from the recorded source: the reference's own differs with its threads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tests.parity import golden_hift
from tests.parity.compare import relative
from vivavoce.checkpoints.layouts.glm4_decoder import PUBLISHED
from vivavoce.checkpoints.read import open_checkpoint
from vivavoce.checkpoints.rules import export_weights, import_weights
from vivavoce.codecs.glm4_decoder import GLM4Decoder, GLM4DecoderConfig
from vivavoce.codecs.glm4_decoder_stream import ReferenceStream
from vivavoce.vocoders.hift import HiFT

SIZES = replace(
    GLM4DecoderConfig.published(), vocab_size=256, dim=48, n_heads=4, ffn_dim=88, n_layers=2, block=8,
    channels=(24, 24), n_blocks=1, n_mid_blocks=2, unet_heads=3, unet_head_dim=16, unet_ffn_dim=96,
)  # fmt: skip
CUTS = (8, 8, 5)


def load(case_dir: Path) -> GLM4Decoder:
    model = GLM4Decoder(SIZES).eval()
    weights = open_checkpoint(case_dir / "flow.pt").tensors
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict(import_weights(PUBLISHED, weights, shapes))
    return model


def names(path: Path) -> dict[str, float]:
    """Every published name and shape (a JSON file) is read once, every parameter filled, and all are written back."""
    shapes = json.loads(path.read_text(encoding="utf-8"))
    with torch.device("meta"):
        ours = GLM4Decoder(GLM4DecoderConfig.published()).state_dict()
        theirs = {name: torch.empty(shape) for name, shape in shapes.items()}
    read = import_weights(PUBLISHED, theirs, {key: tuple(value.shape) for key, value in ours.items()})
    written = {name: list(value.shape) for name, value in export_weights(PUBLISHED, ours).items()}
    return {"flow names": float(read.keys() != ours.keys() or written != shapes)}


def check(case_dir: Path) -> dict[str, float]:
    """The largest error of each output, over its largest expected value."""
    tensors = dict(open_checkpoint(case_dir / "io.safetensors").tensors)
    flow = load(case_dir)
    with torch.inference_mode():
        found = dict(_offline(flow, tensors)) | dict(_stream(flow, golden_hift.load(case_dir / "hift.pt"), tensors))
    flows = {name: relative(value, tensors[name]) for name, value in found.items()}
    return golden_hift.check(case_dir) | flows


def _offline(flow: GLM4Decoder, given: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    tokens, noise = given["offline_tokens"][None], given["offline_noise"][None]
    hidden = flow.encode(tokens)
    mu = flow.condition(hidden)
    yield "encoder", hidden[0]
    yield "mu", mu[0]
    x, past = given["estimator_x"], given["estimator_cond"]
    assert flow.speaker is not None
    nobody = flow.speaker.bias[:, None].expand_as(x)
    told = torch.cat([x, mu[0, :, : x.shape[1]], nobody, past])
    yield "estimator_out", flow.unet(told[None], given["estimator_t"])[0]
    for steps in (3, 10):
        yield f"offline_mel_steps{steps}", flow(tokens, noise, steps=steps)[0]
    past = given["prompt_feat"].T
    yield "prompted_mel", flow(tokens, noise, prompt_mel=past[None])[0, :, past.shape[1] :]
    tinted = flow(tokens[:, :13], given["speaker_noise"][None], speaker=given["speaker"][None], steps=4)
    yield "speaker_mel", tinted[0]


def _stream(flow: GLM4Decoder, hift: HiFT, given: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Mel and wave of each call, with the recorded source; the part of it that is kept must be the next one's start."""
    sources = iter([given[f"stream{call}_source"] for call in range(len(CUTS))])

    def vocoder(mel: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        source = next(sources)[None]
        torch.testing.assert_close(kept, source[:, : kept.shape[1]])
        return hift(mel, source=source[:, None]), source

    stream = ReferenceStream(flow, vocoder)
    state = stream.init_state()
    for call, tokens in enumerate(given["stream_tokens"][None].split(CUTS, dim=1)):
        noise = given[f"stream{call}_noise"][None]
        assert noise.shape[2] == stream.frames(state, tokens.shape[1])
        wave, mel, state = stream.step(tokens, state, noise, final=call + 1 == len(CUTS))
        yield f"stream{call}_mel", mel[0]
        yield f"stream{call}_wave", wave[0]
