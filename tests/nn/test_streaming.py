"""Streaming convolutions: equal to torch's own offline, equal to themselves under any cutting."""

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from vivavoce.nn.streaming import (
    Conv1d,
    ConvTranspose1d,
    Delay,
    Edges,
    _channels_last,
    _plain,
    bfloat16_pays,
    causal,
    convolution_kernel,
    stream,
)


def cut(x, cuts, unit=1):
    """Pieces of x whose lengths are multiples of ``unit``, from positions in [0, 1]."""
    steps = x.shape[-1] // unit
    places = sorted({0, steps, *(round(c * steps) for c in cuts)})
    return [x[..., a * unit : b * unit] for a, b in itertools.pairwise(places)]


def run(layer, pieces, flush_frames):
    """All of a layer's output frames but the ``delay`` before the start."""
    state, out = layer.init_state(pieces[0].shape[0]), []
    silence = [pieces[0].new_zeros(*pieces[0].shape[:2], flush_frames)] if flush_frames else []
    for piece in [*pieces, *silence]:
        y, state = layer.step(piece, state)
        out.append(y)
    return torch.cat(out, -1)[..., layer.delay :]


cuttings = st.lists(st.floats(0, 1), max_size=6)


@settings(max_examples=60, deadline=None)
@given(
    kernel=st.integers(1, 8),
    dilation=st.integers(1, 3),
    stride=st.integers(1, 3),
    groups=st.sampled_from([1, 2]),
    ahead=st.booleans(),
    cuts=cuttings,
)
def test_convolution_streams_like_torch(kernel, dilation, stride, groups, ahead, cuts):
    if (kernel - 1) * dilation + 1 < stride:
        return
    left = None if ahead else causal(kernel, stride=stride, dilation=dilation)
    layer = Conv1d(4, 6, kernel, stride=stride, dilation=dilation, groups=groups, left=left).double()
    x = torch.randn(2, 4, 12 * stride, dtype=torch.float64)
    with torch.no_grad():
        padded = F.pad(x, (layer.left, layer.right))
        expected = F.conv1d(padded, layer.weight, layer.bias, stride, 0, dilation, groups)[..., :12]
        assert torch.allclose(layer(x)[..., :12], expected, atol=1e-12)
        streamed = run(layer, cut(x, cuts, stride), stride * max(1, layer.delay))[..., :12]
    assert torch.allclose(streamed, expected, atol=1e-12)
    assert ahead or layer.delay == 0


@settings(max_examples=40, deadline=None)
@given(rate=st.integers(1, 5), extra=st.integers(0, 8), whole_crop=st.booleans(), cuts=cuttings)
def test_transposed_convolution_streams_like_torch(rate, extra, whole_crop, cuts):
    kernel = rate + extra
    crop = None if whole_crop else 0
    layer = ConvTranspose1d(3, 5, kernel, rate, crop=crop).double()
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 3, 9, dtype=torch.float64)
    with torch.no_grad():
        full = F.conv_transpose1d(x, layer.weight, layer.bias, rate)
        expected = full[..., layer.delay : layer.delay + 9 * rate]
        assert torch.allclose(layer(x)[..., : expected.shape[-1]], expected, atol=1e-12)
        streamed = run(layer, cut(x, cuts), -(-layer.delay // rate))[..., : 9 * rate]
    assert torch.allclose(streamed[..., : expected.shape[-1]], expected, atol=1e-12)


def test_transposed_convolution_sees_new_weights():
    layer = ConvTranspose1d(2, 2, 4, 2)
    x = torch.randn(1, 2, 3)
    with torch.inference_mode():
        before = layer(x)
    with torch.no_grad():
        layer.weight.mul_(2)
    with torch.inference_mode():
        assert torch.allclose(layer(x), 2 * before, atol=1e-6)


def test_later_input_and_other_rows_change_nothing():
    layer = Conv1d(2, 2, 5)
    x = torch.randn(2, 2, 10)
    other = x.clone()
    other[..., 6:], other[1] = 7.0, 3.0
    with torch.no_grad():
        first, _ = layer.step(x[..., :6], layer.init_state(2))
        second, _ = layer.step(other[..., :6], layer.init_state(2))
    assert torch.equal(first[0], second[0])


def test_one_output_channel_and_kernels_agree():
    x, weight, bias = torch.randn(2, 16, 50), torch.randn(1, 16, 7), torch.randn(1)
    layer = Conv1d(16, 1, 7)
    with torch.no_grad():
        layer.weight.copy_(weight), layer.bias.copy_(bias)
        assert torch.allclose(layer(x), F.conv1d(x, weight, bias, padding=3), atol=1e-5)
    wide = torch.randn(8, 16, 3)
    arguments = (x, wide, None, 2, 1, 1, 1)
    assert torch.allclose(_channels_last(*arguments), _plain(*arguments), atol=1e-5)
    assert convolution_kernel("cpu", torch.float32) in (_channels_last, _plain)
    assert isinstance(bfloat16_pays("cpu"), bool)


def test_results_lie_channels_last_where_that_kernel_is_chosen():
    y = _channels_last(torch.randn(1, 4, 9), torch.randn(6, 4, 3), None, 1, 1, 1, 1)
    assert y.transpose(1, 2).is_contiguous()


def test_edges_clear_what_lies_outside():
    edges = Edges(torch.tensor([-2, 3]), torch.tensor([100, 5]))
    inside = edges.clear(torch.ones(2, 1, 4))[:, 0]
    assert inside.tolist() == [[0, 0, 1, 1], [1, 1, 0, 0]]
    assert edges.upsampled(2).delayed(1).first.tolist() == [-5, 5]


def test_delay_holds_back():
    x, wait = torch.arange(6.0).view(1, 1, 6), Delay(2)
    first, state = wait.step(x[..., :1], torch.zeros(1, 1, 2))
    rest, _ = wait.step(x[..., 1:], state)
    assert torch.cat([first, rest], -1)[0, 0].tolist() == [0, 0, 0, 1, 2, 3]


def test_stream_drops_what_lies_before_and_behind():
    layer = Conv1d(1, 1, 5).double()
    x = torch.randn(1, 1, 11, dtype=torch.float64)
    box = [layer.init_state(1)]

    def step(piece):
        y, box[0] = layer.step(piece, box[0])
        return y

    with torch.no_grad():
        got = torch.cat(list(stream(x.split(3, -1), step, lambda: step(x.new_zeros(1, 1, 4)), 2, lambda n: n)), -1)
        assert torch.allclose(got, layer(x), atol=1e-12)
