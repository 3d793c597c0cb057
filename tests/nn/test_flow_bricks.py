"""WaveNet stack, couplings, splines and alignment search."""

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vivavoce.nn.alignment import expand, gaussian_scores, monotonic_path
from vivavoce.nn.coupling import CouplingFlow
from vivavoce.nn.splines import spline
from vivavoce.nn.streaming import Edges, whole
from vivavoce.nn.wavenet import WaveNet


def flow(speaker_dim=0):
    torch.manual_seed(0)
    model = CouplingFlow(6, 8, 3, 2, 2, 3, speaker_dim).double()
    for coupling in model.couplings:
        torch.nn.init.normal_(coupling.post.weight)
        torch.nn.init.normal_(coupling.post.bias)
    return model


def test_flow_inverts_itself():
    model, x, speaker = flow(4), torch.randn(2, 6, 13).double(), torch.randn(2, 4).double()
    with torch.no_grad():
        y = model(x, None, speaker)
        assert torch.allclose(model.inverse(y, None, speaker), x, atol=1e-12)
    assert (y - x.flip(1)).abs().max() > 0.1


def test_padded_flow_equals_rows_alone():
    model, x = flow(), torch.randn(2, 6, 13).double()
    with torch.no_grad():
        both = model.inverse(x, whole(torch.tensor([13, 7])))
        assert torch.allclose(both[1, :, :7], model.inverse(x[1:, :, :7])[0], atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(1, 8), min_size=1, max_size=6))
def test_inverse_streams(sizes):
    model, x = flow(), torch.randn(1, 6, sum(sizes)).double()
    length = torch.tensor([sum(sizes)])
    padded = torch.cat([x, torch.zeros(1, 6, model.delay).double()], -1)
    state, out, position = model.init_state(1), [], 0
    with torch.no_grad():
        for piece in padded.split([*sizes, model.delay], -1):
            y, state = model.step(piece, state, Edges(torch.tensor([position]), length))
            position += piece.shape[-1]
            out.append(y)
        assert torch.allclose(torch.cat(out, -1)[..., model.delay :], model.inverse(x), atol=1e-11)


def test_wavenet_delay_is_its_reach():
    torch.manual_seed(0)
    model = WaveNet(4, 3, 2, 3).double()
    x = torch.randn(1, 4, 41).double()
    nudged = x.clone()
    nudged[..., 20] += 1
    with torch.no_grad():
        moved = (model(x) - model(nudged)).abs().amax((0, 1)) > 1e-12
    assert moved.nonzero().flatten().tolist() == list(range(20 - model.delay, 20 + model.delay + 1))


def test_spline_inverts_and_tells_its_slope():
    torch.manual_seed(0)
    x = torch.linspace(-7, 7, 201).double()
    shape = [torch.randn(201, n).double() for n in (10, 10, 9)]
    y, slope = spline(x, *shape)
    back, back_slope = spline(y, *shape, inverse=True)
    assert torch.allclose(back, x, atol=1e-9) and torch.allclose(slope, -back_slope, atol=1e-8)
    assert torch.equal(y[x.abs() > 5], x[x.abs() > 5])
    near, _ = spline(x + 1e-6, *shape)
    inside = x.abs() < 4.9
    assert torch.allclose(((near - y) / 1e-6).log()[inside], slope[inside], atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_alignment_search_is_the_best_of_all_paths(data):
    n_text = data.draw(st.integers(1, 4))
    n_frames = data.draw(st.integers(n_text, 7))
    text = data.draw(st.integers(1, n_text))
    frames = data.draw(st.integers(text, n_frames))
    scores = torch.randn(2, n_text, n_frames)
    path = monotonic_path(scores, torch.tensor([text, n_text]), torch.tensor([frames, n_frames]))
    for row, (n, t) in enumerate([(text, frames), (n_text, n_frames)]):
        best = max(
            sum(float(scores[row, k, i]) for k, i in zip(_positions(cuts, t), range(t), strict=True))
            for cuts in itertools.combinations(range(1, t), n - 1)
        )
        assert abs(float((path[row] * scores[row]).sum()) - best) < 1e-4
        assert path[row, :n, :t].sum(0).eq(1).all() and path[row, :n].sum(1).ge(1).all() and path[row, :, t:].sum() == 0


def _positions(cuts, frames):
    return [sum(i >= cut for cut in cuts) for i in range(frames)]


def test_scores_are_log_densities_and_expand_repeats():
    x, mean, log_scale = torch.randn(1, 3, 5), torch.randn(1, 3, 2), torch.randn(1, 3, 2) * 0.3
    expected = torch.distributions.Normal(mean[..., None], log_scale.exp()[..., None]).log_prob(x[:, :, None]).sum(1)
    assert torch.allclose(gaussian_scores(x, mean, log_scale), expected, atol=1e-4)
    durations = torch.tensor([[2, 0, 1], [1, 1, 0]])
    repeated = expand(torch.tensor([[[1.0, 2, 3]], [[4.0, 5, 6]]]), durations, 4)
    assert repeated[:, 0].tolist() == [[1, 1, 3, 0], [4, 5, 0, 0]]
