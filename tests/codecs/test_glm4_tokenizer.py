"""The speech tokenizer: any cutting of the sound gives the codes of the whole, blocks are final, work is bounded."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vivavoce.codecs.glm4_tokenizer import GLM4Tokenizer, GLM4TokenizerConfig, block_causal


@pytest.fixture(scope="module")
def model() -> GLM4Tokenizer:
    torch.manual_seed(0)
    return GLM4Tokenizer(GLM4TokenizerConfig.tiny()).eval()


@torch.inference_mode()
def streamed(model: GLM4Tokenizer, wave: torch.Tensor, cuts: list[int]) -> torch.Tensor:
    state, codes, at = model.init_state(len(wave)), [], 0
    for size in cuts:
        ready, state = model.step(wave[:, at : at + size], state)
        codes.append(ready)
        at += size
    ready, state = model.step(wave[:, at:], state)
    return torch.cat([*codes, ready, model.flush(state)], dim=1)


@settings(max_examples=25, deadline=None)
@given(samples=st.integers(1, 40_000), cuts=st.lists(st.integers(0, 9_000), max_size=8))
def test_any_cutting_gives_the_codes_of_the_whole(samples, cuts):
    torch.manual_seed(1)
    model = GLM4Tokenizer(GLM4TokenizerConfig.tiny()).eval()
    wave = torch.randn(2, samples) * 0.1
    with torch.inference_mode():
        whole = model(wave).values[:, 0]
    assert torch.equal(streamed(model, wave, cuts), whole)


def test_codes_of_a_complete_block_are_given_at_once_and_never_change(model):
    wave = torch.randn(1, 20_000) * 0.1
    block = 320 * model.config.block
    with torch.inference_mode():
        early, _ = model.step(wave[:, : block + 40], model.init_state(1))
        whole = model(torch.cat([wave, torch.randn(1, 5_000)], dim=1)).values[:, 0]
    assert early.shape[1] == model.config.block // model.config.pooling
    assert torch.equal(early, whole[:, : early.shape[1]])


def test_rows_of_a_padded_batch_do_not_touch(model):
    long, short = torch.randn(1, 30_000) * 0.1, torch.randn(1, 4_321) * 0.1
    batch = torch.cat([long, torch.cat([short, torch.randn(1, 30_000 - 4_321)], dim=1)])
    with torch.inference_mode():
        both = model(batch, torch.tensor([30_000, 4_321]))
        alone = model(short)
    assert both.lengths.tolist() == [24, 4]
    assert torch.equal(both.values[1, 0, :4], alone.values[0, 0])


def test_work_of_a_step_does_not_grow(model):
    """Every block calls each layer once, with the frames of that block only."""
    sizes = []
    hook = model.layers[0].ffn_in.register_forward_hook(lambda _m, x, _y: sizes.append(x[0].shape[1]))
    streamed(model, torch.randn(1, 60_000) * 0.1, [1_000] * 50)
    hook.remove()
    assert sum(sizes) == 4 * -(-60_000 // 1280) and max(sizes) == model.config.block


def test_the_published_ceiling_is_the_clips_maximum(model):
    published = GLM4Tokenizer(GLM4TokenizerConfig(**{**vars(model.config), "ceiling": None}))
    quiet = torch.randn(1, 6_400) * 1e-4
    loud = torch.cat([quiet, torch.randn(1, 6_400)], dim=1)
    assert not torch.allclose(published.mel(loud)[..., :30], published.mel(quiet)[..., :30])
    assert torch.allclose(model.mel(loud)[..., :30], model.mel(quiet)[..., :30])


def test_a_block_sees_itself_and_the_past():
    mask = block_causal(5, 2)[0, 0].int().tolist()
    assert mask == [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
