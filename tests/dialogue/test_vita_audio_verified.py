"""Verified drafts: going back leaves no trace; greedy answers are the backbone's own, draws distributed as its own."""

from __future__ import annotations

import random
from collections import Counter
from copy import copy
from dataclasses import replace

import pytest
import torch
from tests.dialogue.test_vita_audio import PROMPT, Words, model, uncached, writer
from tests.tiny import randomised
from torch import Tensor

from vivavoce.dialogue.vita_audio import VITAAudio
from vivavoce.dialogue.vita_audio_cycles import Checked, TakenBack, write_by_grammar, write_scheduled, write_verified
from vivavoce.dialogue.vita_audio_grammar import Grammar
from vivavoce.dialogue.vita_audio_policies import Acceptance, Choice, Exact, Policy, Sampled, Scores, Threshold
from vivavoce.dialogue.vita_audio_writing import MODES, Writer
from vivavoce.errors import ConfigError
from vivavoce.search.sampling import SamplingOptions, probabilities
from vivavoce.state import fork

EVERYTHING = Threshold(1e-30)  # any draft stands


def grammar(interleave: tuple[int, ...] = (1, 10, 4, 10), speaking: bool = True) -> Grammar:
    return Grammar(Words(), 61, speaking=speaking, interleave=interleave)


def wide(modules: int, reads: int | None, seed: int) -> VITAAudio:
    """Random, with large logits."""
    net = randomised(model(modules, reads), seed)
    assert isinstance(net, VITAAudio)
    with torch.no_grad():
        net.head.weight *= 8
    return net


def agreeing(modules: int, reads: int | None, seed: int, noise: float = 0.03) -> VITAAudio:
    """Random, but backbone and modules go mostly by the token read last, so that they often say the same."""
    net = wide(modules, reads, seed)
    with torch.no_grad():
        for layer in (*net.decoder.layers, *(module.layer for module in net.mctp)):
            for parameter in layer.parameters():
                parameter *= noise / 0.15
        for module in net.mctp:
            module.embed_norm.weight.fill_(1.0)
            module.project.weight *= noise / 0.15
            module.project.weight[:, : module.project.out_features] += torch.eye(module.project.out_features)
    return net


# ----------------------------------------------------------------------------------------------------------- going back
def drafted(w: Writer, tokens: list[int]) -> list[Tensor]:
    """Modules write as far as they reach, one after the other, and the backbone reads it: all the logits. What is
    written is not what they say, but ``tokens``."""
    found = []
    for number, token in enumerate(tokens[: len(w.drafted)]):
        found.append(w.module(number))
        w.add([token])
    return [*found, w.backbone()]


@torch.inference_mode()
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("reads", [None, 4])
@pytest.mark.parametrize("modules", [0, 1, 3])
def test_who_goes_back_has_never_read_what_was_there(modules, reads, seed):
    draw, net = random.Random(seed), wide(modules, reads, seed)
    some = lambda count: [draw.randrange(61) for _ in range(count)]  # noqa: E731
    for kept in range(modules + 1):
        gone, other = writer(net), writer(net)
        for w in (gone, other):
            for _ in write_scheduled(w, (2, modules), 4 + seed):
                pass
            w.backbone()
        begun, first, wrong, right = len(gone.tokens), some(1)[0], some(modules), some(modules)
        for w in (gone, other):
            w.add([first])
        drafted(gone, wrong)
        gone.roll_back(begun + 1 + kept)
        drafted(other, wrong[:kept])
        if kept == 0:
            assert len(gone.state.hidden) == modules and gone.drafted == [min(n, begun + 1) for n in gone.drafted]
        for _ in range(3):
            token, rest = some(1), right[:]
            for w in (gone, other):
                w.add(token)
            for ours, theirs in zip(drafted(gone, rest), drafted(other, rest), strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
            right = some(modules)
        assert gone.tokens == other.tokens and gone.drafted == other.drafted
        alone = uncached(net, gone.tokens, len(PROMPT), None)
        gone.add([5])
        gone.roll_back(len(gone.tokens) - 2)  # one that was never read, and one of the backbone's
        gone.add([other.tokens[-1]])
        torch.testing.assert_close(gone.backbone(), alone, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_modules_do_not_go_back_further_than_their_last_pass():
    w = writer(model(3))
    list(write_scheduled(w, (1, 3), 12))
    with pytest.raises(ValueError, match="last pass"):
        w.roll_back(len(PROMPT) + 2)


# --------------------------------------------------------------------------------------------------------- sliced head
@torch.inference_mode()
def test_only_the_rows_of_a_place_are_scored_and_nothing_is_lost():
    net, rules = wide(1, None, 0), grammar()
    hidden = torch.randn(40, 24, generator=torch.Generator().manual_seed(0))
    widths = {}
    for token in (7, Words.begin_audio, 50, 51, Words.end_audio, 8, 9):
        full = net.logits(hidden).masked_fill(~rules.allowed(), float("-inf"))
        here = rules.here
        ours = here.masked(net.logits(hidden, here.rows))
        torch.testing.assert_close(ours, full[:, here.rows])
        assert torch.equal(ours.argmax(-1) + here.rows.start, full.argmax(-1))
        assert int(rules.allowed().sum()) == int(here.allowed.sum())
        widths[rules.place] = ours.shape[1]
        rules.take(token)
    assert widths == {"text": 43, "turn over": 1, "audio first": 18, "audio": 18, "text first": 42}


@torch.inference_mode()
def test_drafts_never_score_the_whole_vocabulary(monkeypatch):
    net, scored = agreeing(10, 4, 0), list[int]()
    whole = net.logits

    def watched(hidden: Tensor, rows: slice) -> Tensor:
        scored.append(rows.stop - rows.start)
        return whole(hidden, rows)

    monkeypatch.setattr(net, "logits", watched)
    counts = Acceptance()
    list(write_verified(writer(net), grammar((1, 10)), MODES["turbo"], 40, acceptance=counts))
    assert counts.drafted and max(scored) < 61 and scored.count(18) >= sum(counts.drafted[1:])


# ------------------------------------------------------------------------------------------------------ greedy writing
@torch.inference_mode()
def same_but_for_ties(net: VITAAudio, ours: list[int], vanilla: list[int], interleave: tuple[int, ...]) -> bool:
    """Equal, or parting at a place where the backbone's two logits are the same within rounding."""
    for at, (one, other) in enumerate(zip(ours, vanilla, strict=False)):
        if one != other:
            rules = grammar(interleave)
            for token in vanilla[:at]:
                rules.take(token)
            logits = uncached(net, PROMPT + vanilla[:at], len(PROMPT), None)
            assert rules.allowed()[one] and abs(float(logits[one] - logits[other])) < 1e-5
            return False
    assert len(ours) == len(vanilla)
    return True


@pytest.mark.parametrize("reads", [None, 4])
@pytest.mark.parametrize("modules", [1, 3, 10])
def test_exact_drafts_give_the_answer_of_the_backbone_alone(modules, reads):
    ties, counts, told = 0, Acceptance(), Counter[int]()
    for seed in range(4):
        net, interleave = (wide, agreeing)[seed % 2](modules, reads, seed), ((1, 10, 4, 10), (2, 5, 3, 8))[seed % 2]
        with torch.inference_mode():
            alone = writer(net)
            vanilla = [w.token for w in write_by_grammar(alone, grammar(interleave), MODES["vanilla"], 28)]
            for mode in MODES.values():
                w, own = writer(net, pieces=2), Acceptance()
                ours = [c.token for c in write_verified(w, grammar(interleave), mode, 28, acceptance=own)]
                assert w.tokens == PROMPT + ours and w.passes == own.passes + 1 and own.written == len(ours)
                ties += not same_but_for_ties(net, ours, vanilla, interleave)
                for run in own.runs:
                    counts.count(*run)
        told.update(vanilla)
    assert ties <= 1 and len(told) > 15
    stood = Counter(accepted for _, accepted in counts.runs)
    assert stood[0] and stood[1] and any(a == d for d, a in counts.runs), "drafts of every fate"
    assert modules < 10 or any(1 < a < d for d, a in counts.runs)


@torch.inference_mode()
def test_drafts_save_passes_where_modules_are_right():
    net, counts = agreeing(10, 4, 1, noise=0.001), Acceptance()
    vanilla = writer(net)
    wanted = [w.token for w in write_by_grammar(vanilla, grammar((1, 10)), MODES["vanilla"], 60)]
    w = writer(net)
    assert [c.token for c in write_verified(w, grammar((1, 10)), MODES["turbo"], 60, acceptance=counts)] == wanted
    assert counts.passes == w.passes < vanilla.passes / 2
    assert counts.drafted[0] == counts.judged[0] == len(counts.runs) and sum(counts.accepted) == sum(
        accepted for _, accepted in counts.runs
    )


@torch.inference_mode()
@pytest.mark.parametrize("limit", [1, 2, 5, 12])
def test_the_limit_is_kept_and_a_transcript_is_never_drafted(limit):
    net = agreeing(10, 4, 1)
    vanilla = [w.token for w in write_by_grammar(writer(net), grammar(), MODES["vanilla"], limit)]
    assert [c.token for c in write_verified(writer(net), grammar(), MODES["turbo"], limit)] == vanilla
    w = writer(net)
    said = list(write_verified(w, grammar(speaking=False), MODES["turbo"], limit))
    assert w.drafts == 0 and w.passes == len(said) <= limit


@torch.inference_mode()
@pytest.mark.parametrize("mode", MODES)
def test_whoever_lets_every_draft_stand_writes_unverified(mode):
    for seed in range(3):
        net, interleave = wide(10, 4, seed), (2, 14, 3, 9)
        blind = list(write_by_grammar(writer(net), grammar(interleave), MODES[mode], 60))
        ours = list(write_verified(writer(net), grammar(interleave), MODES[mode], 90, EVERYTHING))
        assert [(c.token, c.module) for c in ours][: len(blind)] == [(w.token, w.module) for w in blind]


@torch.inference_mode()
def test_a_threshold_lies_between_exact_and_everything():
    net, accepted = agreeing(10, 4, 5, noise=0.1), []
    for policy in (Exact(), Threshold(1.0), Threshold(0.3), EVERYTHING):
        counts = Acceptance()
        tokens = [
            c.token for c in write_verified(writer(net), grammar(), MODES["turbo"], 60, policy, acceptance=counts)
        ]
        accepted.append((sum(counts.accepted) / sum(counts.drafted), tokens))
    assert accepted[0] == accepted[1] and accepted[1][0] < accepted[2][0] <= accepted[3][0] == 1


# ---------------------------------------------------------------------------------------------------------- early sound
@torch.inference_mode()
def test_what_is_told_early_and_not_taken_back_is_the_answer():
    taken = 0
    for seed, policy in ((0, Exact()), (1, Exact()), (1, Sampled(SamplingOptions(temperature=1.0)))):
        net, draws = agreeing(10, 4, seed, noise=0.1), [torch.Generator().manual_seed(3) for _ in range(2)]
        late = list(write_verified(writer(net), grammar(), MODES["turbo"], 60, policy, generator=draws[0]))
        answer, held, doubtful = [c.token for c in late], list[int](), 0
        assert all(isinstance(event, Checked) and event.verified for event in late)
        events = write_verified(writer(net), grammar(), MODES["turbo"], 60, policy, early=True, generator=draws[1])
        for event in events:
            if isinstance(event, TakenBack):
                assert 0 < event.count <= doubtful
                del held[-event.count :]
                taken += event.count
                continue
            held.append(event.token)
            doubtful = 0 if event.verified else doubtful + 1
            if event.verified:
                assert held == answer[: len(held)]
        assert held == answer
    assert taken


# -------------------------------------------------------------------------------------------------------------- drawing
OPTIONS = SamplingOptions(temperature=0.9, top_k=6, top_p=0.95, repetition_penalty=1.2)
TEXT = [*PROMPT, 7, Words.begin_audio]  # one word has been said, then speech begins


@torch.inference_mode()
def backbone_odds(net: VITAAudio, texts: list[list[int]]) -> list[Tensor]:
    """What the backbone alone draws from behind texts (61,), by teacher forcing and full logits."""
    logits = net.logits(net(torch.tensor(texts))[0][:, -1])
    found = []
    for text, row in zip(texts, logits, strict=True):
        rules = grammar((1, 10))
        for token in text[len(PROMPT) :]:
            rules.take(token)
        found.append(probabilities(row.masked_fill(~rules.allowed(), float("-inf")), text, OPTIONS))
    return found


def expected(net: VITAAudio) -> tuple[dict[tuple[int, ...], float], dict[tuple[int, ...], float]]:
    """Odds of the first two tokens of speech together, and of the third, whatever came before it."""
    (first,) = backbone_odds(net, [TEXT])
    one = [token for token in range(61) if first[token] > 0]
    second = backbone_odds(net, [[*TEXT, token] for token in one])
    pairs = {
        (a, b): float(first[a] * odds[b]) for a, odds in zip(one, second, strict=True) for b in range(61) if odds[b] > 0
    }
    third = backbone_odds(net, [[*TEXT, *pair] for pair in pairs])
    rest = sum(share * odds for share, odds in zip(pairs.values(), third, strict=True))
    assert isinstance(rest, Tensor)
    return pairs, {(token,): float(share) for token, share in enumerate(rest) if share > 0}


def chance(seen: Counter[tuple[int, ...]], odds: dict[tuple[int, ...], float]) -> float:
    """Pearson's chi-square test: how often draws from ``odds`` differ as much from them as those seen."""
    count = sum(seen.values())
    if not set(seen) <= set(odds):
        return 0.0
    cells, rare = [], [0.0, 0.0]
    for key, share in odds.items():
        if count * share >= 5:
            cells.append((seen[key], count * share))
        else:
            rare = [rare[0] + seen[key], rare[1] + count * share]
    cells += [tuple(rare)] if rare[1] >= 1 else []
    statistic = sum((found - wanted) ** 2 / wanted for found, wanted in cells)
    freedom = (len(cells) - 1) / 2
    return float(torch.special.gammaincc(torch.tensor(freedom).double(), torch.tensor(statistic / 2).double()))


@torch.inference_mode()
def drawn(net: VITAAudio, policy: Policy, times: int) -> tuple[Counter[tuple[int, ...]], Counter[tuple[int, ...]]]:
    """The first two tokens of speech and the third, many times; drafts reach to the second."""
    begun = Writer.begin(net, 32)
    begun.add(PROMPT)
    begun.begin_answer()
    begun.prefill()
    begun.add([7])
    pairs, thirds = Counter[tuple[int, ...]](), Counter[tuple[int, ...]]()
    generator, begun_rules = torch.Generator().manual_seed(11), grammar((1, 10))
    begun_rules.take(7)
    for _ in range(times):
        w = replace(begun, state=fork(begun.state), tokens=begun.tokens[:], drafted=begun.drafted[:])
        events = write_verified(w, copy(begun_rules), (1, 3), 4, policy, generator=generator)
        _, *tokens = (event.token for event in events if isinstance(event, Checked))
        pairs[tuple(tokens[:2])] += 1
        thirds[tuple(tokens[2:])] += 1
    return pairs, thirds


class Credulous(Sampled):
    """Lets every draft stand, which is wrong."""

    def stands(self, draft: Choice, scores: Scores, generator: torch.Generator | None) -> int:
        return draft.token


class Careless(Sampled):
    """Draws from the backbone's odds where a draft fell, not from what is left of them, which is wrong as well."""

    def stands(self, draft: Choice, scores: Scores, generator: torch.Generator | None) -> int:
        token = super().stands(draft, scores, generator)
        return token if token == draft.token else self.choose(scores, generator).token


def test_drawn_drafts_are_distributed_as_the_backbone_alone_would_draw():
    net = wide(3, None, 2)
    pairs, third = expected(net)
    seen, later = drawn(net, Sampled(OPTIONS), 300)
    assert chance(seen, pairs) > 0.01 and chance(later, third) > 0.01
    for wrong, times in ((Credulous(OPTIONS), 100), (Careless(OPTIONS), 300)):
        assert chance(drawn(net, wrong, times)[0], pairs) < 1e-4


def test_policies_that_say_nothing_are_refused():
    with pytest.raises(ConfigError, match="take the policy Exact"):
        Sampled(SamplingOptions())
    for share in (0.0, 1.5):
        with pytest.raises(ConfigError, match="above 0 and up to 1"):
            Threshold(share)
