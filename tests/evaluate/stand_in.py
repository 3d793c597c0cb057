"""A repository that looks like the authors' from where the benchmark looks: their folder, classes and generate."""

from __future__ import annotations

from pathlib import Path

from vivavoce.evaluate.vita_audio_speed import CODE

CONFIGURATION = """
class Qwen2MTPConfig:
    def __init__(self, **sizes):
        self.__dict__.update(sizes)
"""
MODELING = '''
from types import SimpleNamespace

import torch
from torch import nn

ALL_ATTENTION_FUNCTIONS = {}
print("what a library prints is no answer")


class Qwen2MTPForCausalLM(nn.Module):
    """Calls what the schedule says and writes 5, 6, 7, ... or, with weights, the same shifted by their vocabulary."""

    def __init__(self, config):
        super().__init__()
        self.config, self.generation_config, self.shift = config, SimpleNamespace(), 0
        backbone = config.num_hidden_layers - config.num_nextn_predict_layers
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(nn.Identity() for _ in range(backbone))
        self.mtp_projs = nn.ModuleList(nn.Linear(1, 1) for _ in range(config.num_nextn_predict_layers))

    def load_state_dict(self, weights):
        assert "mtp_projs.2.weight" in weights and "model.layers.4.self_attn.q_proj.weight" in weights
        self.shift = weights["lm_head.weight"].shape[0]

    def generate(self, prompt, attention_mask, streamer):
        settings, x = self.generation_config, torch.ones(1, 1)
        assert prompt.shape == attention_mask.shape and settings.eos_token_id is None and not settings.do_sample
        streamer.put(prompt.cpu())
        first, then = settings.mtp_inference_mode[:2]
        for number in range(settings.max_new_tokens):
            at = number % (first + then)
            (self.model.layers[0] if at < first else self.mtp_projs[(at - first) % len(self.mtp_projs)])(x)
            streamer.put(torch.tensor([5 + number + self.shift]))
        streamer.end()
'''


def write_stand_in(folder: Path, modeling: str = MODELING) -> Path:
    """Write it below a folder, and give the folder."""
    package = (folder / CODE).parent
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("", "utf-8")
    (package / "configuration_qwen2.py").write_text(CONFIGURATION, "utf-8")
    (package / "modeling_qwen2.py").write_text(modeling, "utf-8")
    return folder
