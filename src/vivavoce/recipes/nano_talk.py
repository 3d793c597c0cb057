"""The last steps to nano-talk, and the one between: make the tokenizer small before anything learns from its codes, and
bind the trained parts into the folder that ships.

    python -m vivavoce.recipes.nano_talk shrink ~/viva-runs/glm4_tokenizer/model ~/viva-runs/tokenizer
    python -m vivavoce.recipes.nano_talk bind --model ~/viva-runs/vita_audio-4 --tokenizer ~/viva-runs/tokenizer
        --decoder ~/viva-runs/glm4_decoder/model --vocoder ~/viva-runs/hift/model --out src/vivavoce/nano/talk

The chain of ``viva train`` recipes around them is in docs/training.md.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from vivavoce.checkpoints.compact import expand, shrink
from vivavoce.checkpoints.native import build, open_native, save_native
from vivavoce.codecs.glm4_decoder import GLM4Decoder, GLM4DecoderConfig
from vivavoce.codecs.glm4_tokenizer import GLM4Tokenizer, GLM4TokenizerConfig
from vivavoce.config import from_dict
from vivavoce.dialogue.vita_audio import VITAAudio, VITAAudioConfig
from vivavoce.dialogue.vita_audio_files import save_bundle, small_weight
from vivavoce.dialogue.vita_audio_prompts import INTERLEAVES, VITATokens
from vivavoce.dialogue.vita_audio_session import VITAAudioParts
from vivavoce.errors import ConfigError
from vivavoce.recipes.vita_audio_records import make_tokenizer
from vivavoce.train.codes import fingerprint, read_tokenizer
from vivavoce.train.loop import ABOUT, restore
from vivavoce.vocoders.hift import HiFT, HiFTConfig

WINDOW = 704  # frames of 20 ms that the shipped tokenizer hears at once: 11 blocks, 14.1 s


def shrink_tokenizer(model: Path, out: Path) -> GLM4Tokenizer:
    """Round a trained tokenizer's weights to their shipped form, so that all codes are those of the shipped network."""
    about = open_native(model)
    if about.system != "glm4_tokenizer":
        raise ConfigError(f"{model} holds a {about.system}, not a glm4_tokenizer; name the run's model folder")
    small = shrink({f"tokenizer.{name}": tensor for name, tensor in about.tensors().items()}, small_weight)
    weights = {name.removeprefix("tokenizer."): tensor for name, tensor in expand(small).items()}
    config = from_dict(GLM4TokenizerConfig, about.config)
    save_native(out, "glm4_tokenizer", config, weights)
    return build(GLM4Tokenizer, config, weights)


def bind(model: Path, tokenizer: Path, decoder: Path, vocoder: Path, out: Path) -> VITAAudioParts:
    """The finished parts as one model folder."""
    run = json.loads((model / ABOUT).read_text("utf-8"))["settings"]
    config = from_dict(VITAAudioConfig, run["config"])
    wanted = fingerprint(read_tokenizer(tokenizer))
    learned = {"model": run.get("tokenizer"), "decoder": open_native(decoder).settings.get("tokenizer")}
    for name, made_with in learned.items():
        if made_with != wanted:
            raise ConfigError(f"the {name} learned from the codes of another tokenizer than {tokenizer}; train it anew")
    net = VITAAudio(config)
    restore(model, net)
    tok_config = from_dict(GLM4TokenizerConfig, open_native(tokenizer).config)
    window = min(WINDOW, tok_config.context)
    weights = dict(open_native(tokenizer).tensors())
    weights["positions"] = weights["positions"][:window].clone()
    tok = build(GLM4Tokenizer, replace(tok_config, context=window), weights)
    flow = build(GLM4Decoder, from_dict(GLM4DecoderConfig, open_native(decoder).config), open_native(decoder).tensors())
    hift = build(HiFT, from_dict(HiFTConfig, open_native(vocoder).config), open_native(vocoder).tensors())
    settings = open_native(decoder).settings
    tokens = VITATokens(make_tokenizer(tok_config.codes))
    parts = VITAAudioParts(
        net.eval(),
        tokens,
        tok,
        flow,
        hift,
        INTERLEAVES["boost"],
        float(settings["mean"]),
        float(settings["scale"]),
        out.name,
    )
    save_bundle(out, parts)
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="what", required=True)
    first = verbs.add_parser("shrink")
    first.add_argument("model", type=Path)
    first.add_argument("out", type=Path)
    second = verbs.add_parser("bind")
    for name in ("model", "tokenizer", "decoder", "vocoder", "out"):
        second.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    with torch.inference_mode():
        if args.what == "shrink":
            shrink_tokenizer(args.model.expanduser(), args.out.expanduser())
        else:
            paths = {
                name: getattr(args, name).expanduser() for name in ("model", "tokenizer", "decoder", "vocoder", "out")
            }
            bind(**paths)
            print(f"{sum(file.stat().st_size for file in paths['out'].iterdir()) / 1e6:.1f} MB in {paths['out']}")


if __name__ == "__main__":
    main()
