"""The authors' VITA-Audio, timed from outside: a script for an interpreter that has torch and transformers 4.48.3.

    PYTHON vita_audio_reference.py FOLDER      FOLDER: a copy of their repository

It imports nothing of this project. One JSON object a line: first come the sizes (see :func:`main`), answered by what
was built; then one request a line, ``{"mode": [1, 10], "prompt": 32, "tokens": 512}``, each answered by one run of
their own ``generate``. What goes wrong is answered as ``{"error": "..."}``. Everything else goes to standard error.

Their attention over several new tokens behind a cache is right with flash-attn only, which needs certain GPUs; here the
same attention is written with PyTorch's kernel, and their mask, which is wrong for it, is left out.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PACKAGE = "qwen2_mtp_v4_48_3"  # the folder of their model, which does not need the rest of their code
CHUNK = 11  # the token with which the first block of speech is complete


class Attention:
    """Causal attention whose newest position is that of the last key, as flash-attn has it."""

    def __init__(self) -> None:
        self.masks: dict[tuple[int, int], Tensor] = {}

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        """query (B, H, T, D), key and value (B, G, K, D) -> (B, T, H, D); the mask given is not used."""
        length, kept = query.shape[2], key.shape[2]
        seen = F.scaled_dot_product_attention(
            query, key, value, attn_mask=self.mask(length, kept, query.device) if 1 < length < kept else None,
            is_causal=1 < length == kept, scale=options.get("scaling"), enable_gqa=query.shape[1] != key.shape[1],
        )  # fmt: skip
        return seen.transpose(1, 2).contiguous(), None

    def mask(self, length: int, kept: int, device: torch.device) -> Tensor:
        """Which keys each new position sees, bool (T, K); made once for all layers of a pass."""
        if (length, kept) not in self.masks:
            ones = torch.ones(length, kept, dtype=torch.bool, device=device)
            self.masks = {(length, kept): ones.tril(kept - length)}
        return self.masks[length, kept]


class Clock:
    """What generate tells its tokens to: when the first block was complete, and the tokens."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.prompt_told = False
        self.first = 0.0

    def put(self, tokens: Tensor) -> None:
        if not self.prompt_told:
            self.prompt_told = True
            return
        self.tokens += tokens.flatten().tolist()
        if len(self.tokens) == CHUNK:
            self.first = time.perf_counter()

    def end(self) -> None:
        """Nothing more comes."""


class Calls:
    """How often the backbone and a module were called."""

    def __init__(self, model: Any) -> None:
        self.backbone = self.modules = 0
        model.model.layers[0].register_forward_pre_hook(self._of_backbone)
        for project in model.mtp_projs:
            project.register_forward_pre_hook(self._of_module)

    def _of_backbone(self, module: nn.Module, given: Any) -> None:
        self.backbone += 1

    def _of_module(self, module: nn.Module, given: Any) -> None:
        self.modules += 1


def build(folder: Path, sizes: dict[str, Any]) -> Any:
    """Their model at the sizes asked for, ready to generate."""
    sys.path.insert(0, str(folder / "vita_audio" / "models"))
    configuration = importlib.import_module(f"{PACKAGE}.configuration_qwen2")
    modeling = importlib.import_module(f"{PACKAGE}.modeling_qwen2")
    modeling.ALL_ATTENTION_FUNCTIONS["bottom_right"] = Attention()
    torch.manual_seed(sizes["seed"])
    torch.set_default_dtype(getattr(torch, sizes["dtype"]))
    with torch.device(sizes["device"]):
        model = modeling.Qwen2MTPForCausalLM(configuration.Qwen2MTPConfig(**sizes["config"])).eval()
    torch.set_default_dtype(torch.float32)
    model.config._attn_implementation = "bottom_right"
    model.model._update_causal_mask = lambda *given: None
    if sizes["weights"]:
        files = importlib.import_module("safetensors.torch")
        model.load_state_dict(files.load_file(sizes["weights"], device=sizes["device"]))
    settings = model.generation_config
    settings.use_cache, settings.do_sample, settings.eos_token_id, settings.pad_token_id = True, False, None, 0
    return model


def generate(model: Any, calls: Calls, wanted: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """One greedy answer by a schedule, with the clock running from the prompt's tensors on."""
    model.generation_config.mtp_inference_mode = list(wanted["mode"])
    model.generation_config.max_new_tokens = wanted["tokens"]
    prompt = torch.zeros(1, wanted["prompt"], dtype=torch.long, device=device)
    mask = torch.ones_like(prompt)
    before, clock = (calls.backbone, calls.modules), Clock()
    wait(device)
    began = time.perf_counter()
    model.generate(prompt, attention_mask=mask, streamer=clock)
    wait(device)
    seconds = time.perf_counter() - began
    return {
        "first": clock.first - began, "seconds": seconds, "tokens": clock.tokens,
        "passes": calls.backbone - before[0], "drafts": calls.modules - before[1],
    }  # fmt: skip


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Build what the first line asks for: ``config`` (of their class), ``weights`` (a safetensors file in their layout,
    or null for random ones), ``dtype``, ``device``, ``threads``, ``seed``; then answer requests until none comes."""
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        try:
            sizes = json.loads(sys.stdin.readline())
            torch.set_num_threads(sizes["threads"])
            device = torch.device(sizes["device"])
            model = build(Path(sys.argv[1]), sizes)
            calls = Calls(model)
            versions = {
                name: sys.modules[name].__version__ for name in ("torch", "transformers") if name in sys.modules
            }
            parameters = sum(parameter.numel() for parameter in model.parameters())
            print(json.dumps({"parameters": parameters, "versions": versions}), file=answers, flush=True)
            for line in sys.stdin:
                print(json.dumps(generate(model, calls, json.loads(line), device)), file=answers, flush=True)
        except Exception as error:
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers, flush=True)
            raise


if __name__ == "__main__":
    main()
