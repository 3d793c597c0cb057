"""The recipe of the small VITA-Audio: records are what was said, stages build on one another, and it learns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.spoken import write_corpus, write_tokenizer
from vivavoce.errors import ConfigError
from vivavoce.recipes.vita_audio import Options, VITAAudioRecipe, open, shares
from vivavoce.recipes.vita_audio_records import Disturbance, Record, batch, nearest_codes
from vivavoce.train.codes import read_tokenizer
from vivavoce.train.loop import CHECKPOINT, train


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("spoken") / "corpus")


@pytest.fixture(scope="module")
def tiny(corpus: Path) -> Options:
    folder = write_tokenizer(corpus, corpus.parent / "tokenizer")
    return Options(size="tiny", tokenizer=str(folder), budget=600, rates=8.0)


@pytest.fixture(scope="module")
def first(corpus: Path, tiny: Options, tmp_path_factory: pytest.TempPathFactory) -> tuple[VITAAudioRecipe, Path]:
    """Stage 1 and its run."""
    recipe, run = open(corpus, replace(tiny, steps=60)), tmp_path_factory.mktemp("stage") / "vita_audio-1"
    train(recipe, run)
    return recipe, run


def terms(recipe: VITAAudioRecipe) -> dict[str, float]:
    """Losses over everything held out."""
    held_out = [record for part in recipe.dev.values() for record in part]
    ids, labels = batch(held_out, recipe.tokens, np.random.default_rng(0))
    with torch.no_grad():
        found = recipe.net.loss_terms(ids, labels)
    return {"main": float(found["main"]), "modules": float(found["modules"].mean())}


def frequencies(recipe: VITAAudioRecipe) -> float:
    """Cross-entropy of the held-out labels by how often each token is said in training: the trivial predictor."""
    said = torch.tensor([label for record in recipe.records for label in record.labels if label >= 0])
    share = (torch.bincount(said, minlength=recipe.config.vocab_size) + 0.1).log()
    labels = [label for part in recipe.dev.values() for record in part for label in record.labels if label >= 0]
    return float((share.exp().sum().log() - share[labels]).mean())


def test_stage_one_beats_the_frequencies_of_tokens(first: tuple[VITAAudioRecipe, Path]) -> None:
    recipe, run = first
    assert terms(recipe)["main"] < 0.9 * frequencies(recipe)
    assert recipe.name == "vita_audio-1" and not len(recipe.net.mctp)
    lines = (run / "samples" / "000060.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line).keys() for line in lines] == [{"task", "heard", "wanted", "written"}] * 3


def test_the_stages_build_on_one_another(
    corpus: Path, tiny: Options, first: tuple[VITAAudioRecipe, Path], tmp_path: Path
) -> None:
    backbone, before = load_file(first[1] / CHECKPOINT), first[1]
    for number, modules in ((2, 1), (3, 10), (4, 10)):
        recipe = open(corpus, replace(tiny, stage=number, before=str(before), steps=2))
        recipe.evaluate = lambda: {}
        recipe.sample = lambda folder, step: None
        state = recipe.net.state_dict()
        assert len(recipe.net.mctp) == modules
        assert all(torch.equal(state[name.removeprefix("model.")], backbone[name]) for name in backbone
                   if name.startswith("model.") and ".mctp" not in name)  # fmt: skip
        if number == 3:
            assert all(
                torch.equal(state[f"mctp.{copy}.project.weight"], state["mctp.0.project.weight"]) for copy in range(10)
            )
        start = {name: tensor.clone() for name, tensor in state.items()}
        train(recipe, tmp_path / str(number))
        moved = {name.split(".")[0] for name, tensor in recipe.net.state_dict().items()
                 if not torch.equal(tensor, start[name])}  # fmt: skip
        assert moved == ({"mctp"} if number < 4 else {"mctp", "decoder", "embedding", "head"})
        before = tmp_path / str(number)
        backbone = load_file(before / CHECKPOINT)


def test_a_module_learns_behind_a_frozen_backbone(
    corpus: Path, tiny: Options, first: tuple[VITAAudioRecipe, Path], tmp_path: Path
) -> None:
    recipe = open(corpus, replace(tiny, stage=2, before=str(first[1]), steps=30))
    recipe.evaluate = lambda: {}
    recipe.sample = lambda folder, step: None
    before = terms(recipe)
    train(recipe, tmp_path / "run")
    after = terms(recipe)
    assert after["modules"] < before["modules"] - 0.2 and after["main"] == pytest.approx(before["main"])


def test_two_runs_are_equal(corpus: Path, tiny: Options, tmp_path: Path) -> None:
    for name in ("one", "two"):
        recipe = open(corpus, replace(tiny, steps=3))
        recipe.evaluate = lambda: {}
        train(recipe, tmp_path / name)
    one, two = (load_file(tmp_path / name / CHECKPOINT) for name in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_records_hold_what_was_said(first: tuple[VITAAudioRecipe, Path], corpus: Path) -> None:
    recipe, _ = first
    tasks = {task: [r for r in recipe.records if r.task == task] for task in ("answer", "transcribe", "speak")}
    assert [len(rows) for rows in tasks.values()] == [18, 18, 18]
    for record in recipe.records:
        learnt = [label for label in record.labels if label >= 0]
        assert learnt == record.ids[len(record.prompt) :] and record.ids[: len(record.prompt)] == record.prompt
        text = recipe.tokens.tokenizer.decode([token for token in learnt if token in recipe.tokens.text_ids])
        assert text.strip() == record.answer
    heard = [recipe.tokens.code(token) for token in tasks["answer"][0].prompt]
    assert any(code is not None for code in heard), "a question is heard as codes"


def test_disturbed_prompts_leave_the_answer_alone(first: tuple[VITAAudioRecipe, Path]) -> None:
    recipe, _ = first
    asked = [record for record in recipe.records if record.task == "answer"][:4]
    plain, labels = batch(asked, recipe.tokens, np.random.default_rng(0))
    noisy, noisy_labels = batch(asked, recipe.tokens, np.random.default_rng(0), Disturbance(0.5))
    changed = 0
    for row, record in enumerate(asked):
        assert plain[row, : len(record.ids)].tolist() == record.ids
        learnt = noisy_labels[row][noisy_labels[row] >= 0]
        assert torch.equal(learnt, labels[row][labels[row] >= 0])
        first_learnt = int((noisy_labels[row] >= 0).nonzero()[0])
        prompt = noisy[row, :first_learnt].tolist()
        changed += prompt != record.prompt
        words = [token for token in record.prompt if recipe.tokens.code(token) is None]
        assert [token for token in prompt if recipe.tokens.code(token) is None] == words
    assert changed >= 3


def test_blurred_codes_become_their_neighbours(first: tuple[VITAAudioRecipe, Path], tiny: Options) -> None:
    recipe, _ = first
    tokenizer = read_tokenizer(Path(tiny.tokenizer))
    rows, near = tokenizer.codebook.weight.detach(), nearest_codes(tokenizer, 3)
    for code in (0, 7):
        distance = (rows - rows[code]).norm(dim=1)
        assert sorted(near[code].tolist()) == sorted(distance.argsort()[1:4].tolist())
    asked = [record for record in recipe.records if record.task == "answer"][:4]
    all_of_them = Disturbance(0.0, 1.0, near)
    blurred, _ = batch(asked, recipe.tokens, np.random.default_rng(0), all_of_them)
    for row, record in enumerate(asked):
        for before, after in zip(record.prompt, blurred[row].tolist(), strict=False):
            old, new = recipe.tokens.code(before), recipe.tokens.code(after)
            assert before == after if old is None else new in near[old]


def test_any_view_may_be_heard(first: tuple[VITAAudioRecipe, Path]) -> None:
    recipe, _ = first
    record = next(r for r in recipe.records if r.task == "answer")
    other = np.array([3, 1, 4, 1, 5, 9, 2, 6], dtype="<i2")
    twofold, seen = replace(record, views=(other,)), set[tuple[int, ...]]()
    for seed in range(12):
        ids, _ = batch([twofold], recipe.tokens, np.random.default_rng(seed), Disturbance(0.0))
        seen.add(tuple(ids[0].tolist()))
    assert len(seen) == 2 and tuple(record.ids) in seen
    codes = [recipe.tokens.code(token) for token in next(ids for ids in seen if ids != tuple(record.ids))]
    assert [code for code in codes if code is not None][:8] == other.tolist()


def test_small_tasks_are_repeated_to_their_share() -> None:
    def record(task) -> Record:
        return Record(task, [], [], "", "", "", "", [])

    found = [record("answer")] * 110 + [record("transcribe")] * 20 + [record("speak")] * 30
    order = shares(found, 0)
    counts = [sum(found[i].task == task for i in order) for task in ("answer", "transcribe", "speak")]
    assert counts == [110, 60, 30] and set(order) == set(range(160))
    assert shares(found[:130], 0) == shares(found[:130], 0)
    assert shares(found[:127], 0) != shares(found[:127], 1), "which ones are said once more is drawn"


def test_what_is_missing_is_said(corpus: Path, tiny: Options, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run of the stage before in"):
        open(corpus, replace(tiny, stage=2, before=str(tmp_path)))
