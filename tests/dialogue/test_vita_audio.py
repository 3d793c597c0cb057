"""VITA-Audio: scheduled, cached writing equals the uncached chain; grammar; stages; sessions do not touch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.tiny import randomised
from torch import Tensor

from vivavoce.dialogue.vita_audio import VITAAudio, VITAAudioConfig, begin_module, copy_module, freeze_backbone
from vivavoce.dialogue.vita_audio_cycles import slots, write_by_grammar, write_scheduled
from vivavoce.dialogue.vita_audio_grammar import Grammar
from vivavoce.dialogue.vita_audio_writing import MODES, Writer, mode_named
from vivavoce.errors import ConfigError

PROMPT = [7, 3, 44, 50, 12, 1, 9, 30]


class Words:
    """Special tokens of a vocabulary of 61: text 0 to 39, codes from 45 on."""

    start, end, begin_audio, end_audio, first_code, codes = 40, 41, 42, 43, 45, 16
    text_ids = range(40)


def model(modules: int = 10, reads: int | None = None, seed: int = 0) -> VITAAudio:
    config = replace(VITAAudioConfig.tiny(), modules=modules, module_reads=reads)
    return randomised(VITAAudio(config), seed)


def writer(net: VITAAudio, prompt: list[int] = PROMPT, pieces: int = 1) -> Writer:
    """A writer that has been given a prompt, the first of it read in pieces."""
    w = Writer.begin(net)
    size = -(-len(prompt) // pieces)
    for at in range(0, len(prompt), size):
        w.add(prompt[at : at + size])
        if at + size < len(prompt):
            w.prefill()
    w.begin_answer()
    return w


@torch.inference_mode()
def uncached(net: VITAAudio, text: list[int], answer: int, module: int | None) -> Tensor:
    """The logits of the token behind ``text`` by teacher forcing over all of it; the answer begins at ``answer``."""
    reads = net.config.module_reads
    starts = None if reads is None else torch.tensor([max(0, answer - reads)])
    states = net(torch.tensor([text]), starts=starts)
    return net.logits(states[0 if module is None else module + 1][0, -1])


@pytest.mark.parametrize("reads", [None, 4])
@pytest.mark.parametrize("mode", MODES)
def test_cached_writing_equals_the_uncached_chain(mode, reads):
    net = model(reads=reads)
    w = writer(net, pieces=3)
    with torch.inference_mode():
        written = list(write_scheduled(w, MODES[mode], 33))
    for i, step in enumerate(written):
        text = PROMPT + [s.token for s in written[:i]]
        assert int(uncached(net, text, len(PROMPT), step.module).argmax()) == step.token


@pytest.mark.parametrize("reads", [None, 4])
@pytest.mark.parametrize("mode", MODES)
def test_by_grammar_too(mode, reads):
    net = model(reads=reads)
    w, grammar = writer(net), Grammar(Words(), 61, speaking=True, interleave=(1, 10, 4, 10))
    with torch.inference_mode():
        written = list(write_by_grammar(w, grammar, MODES[mode], 60))
    again = Grammar(Words(), 61, speaking=True, interleave=(1, 10, 4, 10))
    for i, step in enumerate(written):
        logits = uncached(net, PROMPT + [s.token for s in written[:i]], len(PROMPT), step.module)
        assert int(logits.masked_fill(~again.allowed(), float("-inf")).argmax()) == step.token
        again.take(step.token)


def favouring(net: VITAAudio, text: int, speech: int) -> VITAAudio:
    """The same model with a head that prefers a word and a code, so that answers have both."""
    with torch.no_grad():
        net.head.weight.zero_()
        net.head.weight[text] = net.head.weight[45 + speech] = 1e-3
    return net


def test_boost_has_eight_speech_tokens_after_one_backbone_pass():
    net = model(reads=4)
    w, passes = writer(net), []
    hook = net.decoder.layers[0].qkv.register_forward_hook(lambda *_: passes.append(1))
    grammar = Grammar(Words(), 61, speaking=True, interleave=(1, 10, 4, 10))
    with torch.inference_mode():
        # an untrained model might end its block early: of logits, the mean is never the largest
        net.head.weight[Words.end_audio] = net.head.weight[Words.first_code :].mean(0)
        first = [s.token for _, s in zip(range(10), write_by_grammar(w, grammar, MODES["boost"], 40), strict=False)]
    hook.remove()
    assert len(passes) == 1 == w.passes
    assert first[0] in Words.text_ids and first[1] == Words.begin_audio
    assert all(token >= Words.first_code for token in first[2:]) and len(first[2:]) == 8


def test_vanilla_needs_a_pass_a_token():
    w = writer(model(reads=4))
    with torch.inference_mode():
        list(write_by_grammar(w, Grammar(Words(), 61, speaking=True, interleave=(1, 10)), MODES["vanilla"], 11))
    assert w.passes == 11 and w.drafts == 0


@pytest.mark.parametrize("mode", ["balance", "boost", "turbo"])
def test_text_is_never_drafted_and_only_what_may_stand_is_written(mode):
    for seed in range(5):
        net = model(seed=seed)
        grammar = Grammar(Words(), 61, speaking=True, interleave=(1, 10, 4, 10))
        with torch.inference_mode():
            written = list(write_by_grammar(writer(net), grammar, MODES[mode], 80))
        drafted = [s.token for s in written if s.module is not None]
        assert drafted and not any(token in Words.text_ids or token == Words.end for token in drafted)
        inside = False
        for step in written:
            if inside:
                assert step.token >= Words.first_code or step.token == Words.end_audio
            else:
                assert step.token in Words.text_ids or step.token in (Words.begin_audio, Words.end)
            inside = step.token == Words.begin_audio or (inside and step.token != Words.end_audio)
        assert (written[-1].token == Words.end) == grammar.done


def test_a_transcript_has_no_speech_and_no_drafts():
    w = writer(model())
    with torch.inference_mode():
        grammar = Grammar(Words(), 61, speaking=False, interleave=(1, 10))
        written = list(write_by_grammar(w, grammar, MODES["turbo"], 30))
    assert all(s.module is None and (s.token in Words.text_ids or s.token == Words.end) for s in written)


def test_two_texts_written_in_turns_do_not_touch():
    net, other = model(reads=4), [5, 6, 50, 2]
    with torch.inference_mode():
        alone = [list(write_scheduled(writer(net, p), MODES["boost"], 30)) for p in (PROMPT, other)]
        turns = [write_scheduled(writer(net, p), MODES["boost"], 30) for p in (PROMPT, other)]
        mixed = [[], []]
        for _ in range(30):
            for row, source in zip(mixed, turns, strict=True):
                row.append(next(source))
    assert mixed == alone


def test_the_schedule_over_two_hundred_tokens():
    wanted = "M" + "m" * 4 + "MMM" + "m" * 8 + ("MMMM" + "m" * 10) * 20
    got = "".join("m" if by_module else "M" for _, by_module in zip(range(200), slots(MODES["balance"]), strict=False))
    assert got == wanted[:200]


def test_packed_documents_do_not_see_one_another():
    net = model(modules=3)
    one, two = torch.tensor([PROMPT]), torch.tensor([[5, 6, 50, 2, 8]])
    packed = torch.cat([one, two], dim=1)
    positions = torch.cat([torch.arange(8), torch.arange(5)])[None]
    together, alone = net(packed, positions), net(two)
    for number in range(4):
        torch.testing.assert_close(together[number][:, 8 + number :], alone[number][:, number:])


def test_stages_freeze_and_begin_as_they_should():
    net = model(modules=1)
    begin_module(net)
    assert torch.equal(net.mctp[0].layer.qkv.weight, net.decoder.layers[-1].qkv.weight)
    freeze_backbone(net)
    tokens = torch.randint(0, 61, (2, 20))
    net.loss_terms(tokens, tokens, detach=True)["modules"].sum().backward()
    assert all((p.grad is not None) == name.startswith("mctp") for name, p in net.named_parameters())
    grown = VITAAudio(net.config.with_modules(3))
    grown.load_state_dict(net.state_dict(), strict=False)
    copy_module(grown)
    assert torch.equal(grown.mctp[2].project.weight, net.mctp[0].project.weight)


def test_in_the_joint_stage_modules_teach_the_backbone():
    net = model(modules=2, reads=4)
    tokens = torch.randint(0, 61, (3, 24))
    labels = tokens.clone()
    labels[:, :10] = -100
    net.loss_terms(tokens, labels)["modules"].sum().backward()
    assert net.embedding.weight.grad is not None and net.decoder.layers[0].qkv.weight.grad is not None


def test_too_long_a_prompt_and_an_unknown_mode_are_told_in_one_sentence():
    with pytest.raises(ConfigError, match="reads at most 128"):
        writer(model(), list(range(40)) * 4)
    with pytest.raises(ConfigError, match="did you mean 'boost'"):
        mode_named("bost")
