"""Many texts at once are each as if alone; C kernels write what torch writes; texts are cut, forked, written down."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from tests.dialogue.test_vita_audio import PROMPT, Words, model

from vivavoce.dialogue.vita_audio import VITAAudio
from vivavoce.dialogue.vita_audio_cycles import (
    CycledText,
    ScheduledText,
    TakenBack,
    Text,
    Written,
    write,
    write_by_grammar,
    write_scheduled,
)
from vivavoce.dialogue.vita_audio_engine import PROMPT_PIECE, Engine
from vivavoce.dialogue.vita_audio_grammar import Grammar
from vivavoce.dialogue.vita_audio_policies import Exact, Policy, Sampled, Threshold, Trusted
from vivavoce.dialogue.vita_audio_writing import MODES, Writer
from vivavoce.errors import ConfigError
from vivavoce.nn import native
from vivavoce.nn.packed import Weights, make_ready
from vivavoce.search.sampling import SamplingOptions

WARM = SamplingOptions(temperature=0.9, top_k=12)


@pytest.fixture
def kernels(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not any(map(shutil.which, native.COMPILERS)):
        pytest.skip("no C compiler here")
    monkeypatch.delenv("VIVA_NATIVE", raising=False)
    native.disable()
    assert native.enable(tmp_path_factory.getbasetemp() / "kernels"), native.status()
    yield
    native.disable()


def ready(net: VITAAudio, form: str) -> VITAAudio:
    return net if form == "torch" else make_ready(deepcopy(net), form)  # pyright: ignore


def begun(net: VITAAudio, prompt: Sequence[int] = PROMPT) -> Writer:
    w = Writer.begin(net)
    w.add(prompt)
    w.begin_answer()
    return w


def spoken(net: VITAAudio, mode: str, limit: int, policy: Policy, seed: int, early: bool = False) -> CycledText:
    """A text by the grammar, whose prompt and turns depend on the seed."""
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randint(0, 40, (3 + 7 * seed % 23,), generator=generator).tolist()
    interleave = [(1, 10, 4, 10), (2, 6), (3, 14, 2, 9)][seed % 3]
    grammar = Grammar(Words(), 61, speaking=seed != 4, interleave=interleave)
    return CycledText(begun(net, prompt), grammar, MODES[mode], limit, policy, early, generator)


def cast(net: VITAAudio) -> list[Text]:
    """Texts of all kinds."""
    policies = [Trusted(), Exact(), Sampled(WARM), Threshold(0.2), Trusted(WARM), Exact()]
    texts: list[Text] = [
        spoken(net, list(MODES)[(n + 1) % 4], 30 + n, policy, n, early=n == 5) for n, policy in enumerate(policies)
    ]
    long = [n % 40 for n in range(2 * PROMPT_PIECE + 9)]
    texts.append(ScheduledText(begun(net, long), MODES["boost"], 25))
    texts.append(ScheduledText(begun(net), (1, 13, 2, 3), 31, options=WARM, generator=torch.Generator().manual_seed(3)))
    return texts


def wide_window(net: VITAAudio) -> VITAAudio:
    """The same weights with room for the long prompt."""
    config = replace(net.config, decoder=replace(net.config.decoder, context=256))
    other = VITAAudio(config).eval()
    other.load_state_dict(net.state_dict())
    return other


@pytest.mark.parametrize("form", ["torch", "float32", "int8"])
@pytest.mark.parametrize("reads", [None, 4])
def test_texts_beside_each_other_are_as_if_alone(kernels: None, form: str, reads: int | None) -> None:
    net = ready(wide_window(model(10, reads, seed=2)), form)
    with torch.inference_mode():
        alone = [list(write(text)) for text in cast(net)]
    engine, told = Engine(net), dict[int, list[Written | TakenBack]]()
    waiting = list(enumerate(cast(net)))
    keys = dict[int, int]()
    while len(engine) or waiting:
        if (waiting and len(told) % 2 == 0) or not len(engine):  # they come one after the other
            number, text = waiting.pop(0)
            keys[number] = engine.admit(text)
        for key, items in engine.tick().items():
            told.setdefault(key, []).extend(items)
    assert [told[keys[n]] for n in range(len(alone))] == alone
    assert any(isinstance(item, TakenBack) for items in alone for item in items)
    assert len(engine.waits) == len(alone)


def test_a_tick_is_one_backbone_pass_and_one_of_each_module_for_all(kernels: None) -> None:
    net, passes = model(10, 4), {"backbone": 0, "module": 0}

    def count(name: str) -> None:
        passes[name] += 1

    net.decoder.layers[0].qkv.register_forward_hook(lambda *_: count("backbone"))  # pyright: ignore
    for module in net.mctp:
        module.project.register_forward_hook(lambda *_: count("module"))
    engine = Engine(net)
    for number in range(5):
        engine.admit(ScheduledText(begun(net, PROMPT[number:]), MODES["turbo"], 60))
    engine.tick()
    assert passes == {"backbone": 1, "module": 0}
    told = engine.tick()
    assert passes == {"backbone": 2, "module": 10}
    assert [len(items) for items in told.values()] == [11] * 5


def test_texts_come_wait_and_go_at_ticks() -> None:
    net, now = model(3, 4), [0.0]
    engine = Engine(net, most=2, clock=lambda: now[0])
    texts = [ScheduledText(begun(net), (1, 3), limit) for limit in (9, 40, 5)]
    first, second, third = map(engine.admit, texts)
    now[0] = 0.25
    assert set(engine.tick()) == {first, second} and list(engine.waits) == [0.25, 0.25]
    let_go = engine.cancel(second)
    assert let_go is texts[1] and len(engine) == 2
    with pytest.raises(KeyError):
        engine.cancel(second)
    now[0] = 0.5
    assert set(engine.tick()) == {first, third} and list(engine.waits) == [0.25, 0.25, 0.5]
    while len(engine):
        engine.tick()
    with torch.inference_mode():  # what was let go goes on elsewhere as if it had stayed
        rest = [item.token for item in write(let_go) if isinstance(item, Written)]  # pyright: ignore[reportArgumentType]
        whole = [item.token for item in write_scheduled(begun(net), (1, 3), 40)]
    assert let_go.writer.tokens == PROMPT + whole and whole[-len(rest) :] == rest
    with pytest.raises(ConfigError, match="another model"):
        engine.admit(ScheduledText(begun(model(3, 4)), (1, 3), 9))
    with pytest.raises(ConfigError, match="may grow to 208 tokens and its caches hold 128"):
        engine.admit(ScheduledText(begun(net), (1, 3), 200))
    assert len(engine) == 0
    with pytest.raises(ConfigError, match="1 text or more"):
        Engine(net, most=0)


@pytest.mark.parametrize("form", ["float32", "int8", "int4"])
@pytest.mark.parametrize("reads", [None, 4])
def test_drafts_of_the_c_kernels_are_those_of_torch(kernels: None, form: Weights, reads: int | None) -> None:
    """The very same weights, module by module and in one go: tokens, caches and states that wait."""
    plain = model(10, reads, seed=5)
    if form == "int4":  # inputs in whole groups of 32
        config = replace(plain.config.decoder, dim=32, n_heads=4, head_dim=8, ffn_dim=64)
        torch.manual_seed(0)
        plain = VITAAudio(replace(plain.config, decoder=config)).eval().requires_grad_(False)
        for parameter in plain.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    net = make_ready(deepcopy(plain), form)
    assert isinstance(net, VITAAudio)
    slow = make_ready(deepcopy(plain), form)
    assert isinstance(slow, VITAAudio)
    slow.write_drafts = lambda places, runs: False  # pyright: ignore
    with torch.inference_mode():
        for mode in ("balance", "boost", "turbo"):
            for limit in (11, 24, 50):
                ours, wanted = (spoken(m, mode, limit, Trusted(), limit % 5) for m in (net, slow))
                assert list(write(ours)) == list(write(wanted))
                assert ours.writer.drafts == wanted.writer.drafts and ours.writer.drafted == wanted.writer.drafted
                compare(ours.writer, wanted.writer, form)
                ours, wanted = (spoken(m, mode, limit, Exact(), limit % 5) for m in (net, slow))
                assert list(write(ours)) == list(write(wanted))  # with roll-back
                compare(ours.writer, wanted.writer, form)


def compare(ours: Writer, wanted: Writer, form: Weights) -> None:
    """All that two states hold is the same, to rounding, which beside integer weights is that of activations too."""
    a, b = ours.to_tensors(), wanted.to_tensors()
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        if not tensor.is_floating_point():
            assert torch.equal(tensor, b[name])
        elif tensor.numel():
            near = 1e-5 if form == "float32" else 5e-2
            assert float((tensor - b[name]).abs().max()) <= near * float(b[name].abs().max()), name


@torch.inference_mode()
@pytest.mark.parametrize("modules", [0, 3])
@pytest.mark.parametrize("reads", [None, 4])
def test_a_text_is_cut_anywhere_in_its_answer(modules: int, reads: int | None) -> None:
    net = model(modules, reads, seed=1)
    for kept in range(0, 26):
        w = begun(net)
        list(write_scheduled(w, (1, 3, 2, 3), 25))
        w.cut(len(PROMPT) + kept)
        fresh = begun(net)
        fresh.add(w.tokens[len(PROMPT) :])
        for token in (3, 8):
            w.add([token])
            fresh.add([token])
            torch.testing.assert_close(w.backbone(), fresh.backbone(), rtol=0, atol=1e-4)
            for number in range(modules):
                w.add([number])
                fresh.add([number])
                torch.testing.assert_close(w.module(number), fresh.module(number), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="cut to"):
        w.cut(0)


@torch.inference_mode()
def test_a_fork_and_a_file_go_on_as_the_text_does() -> None:
    net = model(10, 4)
    text = spoken(net, "boost", 60, Sampled(WARM), 1)
    events = [event for _, event in zip(range(20), write(text), strict=False)]
    assert events
    other, before = text.fork(), dict(text.writer.to_tensors())
    rest = list(write(other))
    for name, tensor in text.writer.to_tensors().items():  # the fork has not touched it
        assert torch.equal(tensor, before[name])
    assert list(write(text)) == rest

    w = begun(net)
    list(write_scheduled(w, MODES["turbo"], 20))
    again = Writer.from_tensors(net, {name: tensor.clone() for name, tensor in w.to_tensors().items()}, 90)
    assert again.room == 90
    assert list(write_scheduled(again, MODES["turbo"], 20)) == list(write_scheduled(w, MODES["turbo"], 20))


@torch.inference_mode()
def test_tensors_that_are_no_text_are_refused() -> None:
    net = model(3, 4)
    w = begun(net)
    list(write_by_grammar(w, Grammar(Words(), 61, speaking=True, interleave=(1, 10)), MODES["turbo"], 20))
    good = w.to_tensors()
    wrong = [
        {name: tensor for name, tensor in good.items() if name != "backbone.1.key"},
        {**good, "more": torch.zeros(1)},
        {**good, "tokens": torch.tensor([*w.tokens[:-1], 61])},
        {**good, "tokens": torch.tensor(w.tokens[:3])},
        {**good, "counts": good["counts"][:-1]},
        {**good, "counts": good["counts"] + 1},
        {**good, "counts": good["counts"] + torch.tensor([0, 3, 0, 0, 0, 0, 0])},  # modules begin behind where they are
        {**good, "counts": good["counts"] + torch.tensor([0, 0, 0, 0, 0, 0, 99])},
        {**good, "modules.0.value": good["modules.0.value"][:, :, 1:]},
        {**good, "hidden.1": good["hidden.1"][..., 1:]},
        {**good, "backbone.0.key": good["backbone.0.key"].double()},
    ]
    for tensors in wrong:
        with pytest.raises(ValueError):
            Writer.from_tensors(net, tensors)
    with pytest.raises(ValueError):
        Writer.from_tensors(net, good, 8)
    with pytest.raises(ValueError):
        Writer.from_tensors(model(10, 4), good)


@torch.inference_mode()
def test_what_would_lead_c_astray_is_refused(kernels: None) -> None:
    net = ready(model(3, 4), "float32")
    for token in (-1, 61, 1 << 40):
        text = ScheduledText(begun(net), (1, 3), 8)
        list(zip(range(2), write(text), strict=False))
        text.writer.tokens[-1] = token
        with pytest.raises((ValueError, IndexError)):
            list(write(text))
    text = ScheduledText(begun(net), (1, 3), 8)
    next(write(text))
    text.writer.drafted[1] = text.writer.begun
    with pytest.raises(ValueError, match="before its beginning"):
        list(write(text))


@torch.inference_mode()
def test_weights_that_were_moved_are_those_that_count(kernels: None) -> None:
    """Plans for the C kernels point to weights, which a change of their type puts elsewhere."""
    plain = model(3, 4)
    net = ready(plain, "float32")
    list(write_scheduled(begun(net), (1, 3), 9))
    net.double().float()
    for norm in (net.decoder.norm, net.mctp[1].embed_norm):  # pyright: ignore[reportAttributeAccessIssue]
        norm.weight.mul_(1.5)  # pyright: ignore
    for norm in (plain.decoder.norm, plain.mctp[1].embed_norm):  # pyright: ignore[reportAttributeAccessIssue]
        norm.weight.mul_(1.5)  # pyright: ignore
    wanted = list(write_scheduled(begun(plain), (1, 3), 40))
    assert list(write_scheduled(begun(net), (1, 3), 40)) == wanted
