"""HiFi-GAN as a vocoder (Kong, Kim, Bae 2020, arXiv 2010.05646): the generator of ``nn/hifigan.py`` and its published
configurations. mel (B, M, T) -> wave (B, T * hop_length).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vivavoce.errors import ConfigError
from vivavoce.nn.hifigan import HiFiGAN, HiFiGANConfig, HiFiGANState

__all__ = ["HiFiGAN", "HiFiGANConfig", "HiFiGANState", "from_original", "from_parallel_wavegan"]


def from_original(published: Mapping[str, Any]) -> HiFiGANConfig:
    """The sizes in the authors' ``config.json``; ConfigError where one is missing."""
    try:
        return HiFiGANConfig(
            in_channels=int(published["num_mels"]),
            channels=int(published["upsample_initial_channel"]),
            upsample_rates=tuple(published["upsample_rates"]),
            upsample_kernels=tuple(published["upsample_kernel_sizes"]),
            block_type=1 if str(published["resblock"]) == "1" else 2,
            block_kernels=tuple(published["resblock_kernel_sizes"]),
            block_dilations=tuple(tuple(row) for row in published["resblock_dilation_sizes"]),
        )
    except KeyError as error:
        raise ConfigError(
            f"this HiFi-GAN configuration lacks {error}: give the config.json of the checkpoint"
        ) from None


def from_parallel_wavegan(published: Mapping[str, Any]) -> HiFiGANConfig:
    """The sizes in ``generator_params`` of a ParallelWaveGAN configuration; ConfigError where one is missing."""
    try:
        return HiFiGANConfig(
            in_channels=int(published["in_channels"]),
            channels=int(published["channels"]),
            upsample_rates=tuple(published["upsample_scales"]),
            upsample_kernels=tuple(published["upsample_kernel_sizes"]),
            block_type=1 if published.get("use_additional_convs", True) else 2,
            block_kernels=tuple(published["resblock_kernel_sizes"]),
            block_dilations=tuple(tuple(row) for row in published["resblock_dilations"]),
        )
    except KeyError as error:
        raise ConfigError(f"this HiFi-GAN configuration lacks {error}: give the config.yml of the checkpoint") from None
