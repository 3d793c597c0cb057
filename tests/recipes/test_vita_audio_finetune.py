"""Tuning on one's own records: it learns them, only what should move moves, and the tuned folder talks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.own_records import rows, write_records, write_talk
from vivavoce import vita_audio_verbs
from vivavoce.checkpoints.native import open_native
from vivavoce.dialogue.vita_audio_files import open_bundle
from vivavoce.dialogue.vita_audio_prompts import answer_prompt
from vivavoce.errors import CheckpointError, ConfigError
from vivavoce.nn.lora import merge
from vivavoce.recipes.vita_audio_finetune import (
    ADAPTERS,
    FinetuneRecipe,
    Options,
    fingerprint,
    load_adapters,
    open,
    split,
)
from vivavoce.train.loop import CHECKPOINT, train
from vivavoce.train.parallel import Share
from vivavoce.train.speech_records import TASKS, read_records


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    write_records(folder)
    write_talk(folder / "packing", modules=3, reads=None)
    write_talk(folder / "able", modules=3, able=True)
    return folder


def options(desk: Path, model: str = "able", **others) -> Options:
    values = {"data": str(desk / "data.jsonl"), "model": str(desk / model), "rank": 4, "steps": 3, "budget": 500,
              "written": 1, "evaluate_every": 100}  # fmt: skip
    return Options(**{**values, **others})


def opened(desk: Path, model: str = "able", **others) -> FinetuneRecipe:
    return open(desk, options(desk, model, **others))


@pytest.fixture(scope="module")
def tuned(desk: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[FinetuneRecipe, dict[str, float], Path]:
    """A recipe that has learned its records by heart, its last figures, and its run."""
    judged = write_records(desk, 3, "judge.jsonl")
    recipe = opened(desk, "able", held_out=str(judged), rank=8, steps=40, rate=2e-2, module_rate=2e-2, written=2)
    run = tmp_path_factory.mktemp("run")
    return recipe, train(recipe, run), run


def test_it_learns(tuned: tuple[FinetuneRecipe, dict[str, float], Path]) -> None:
    _, figures, run = tuned
    assert figures["loss"] < 0.6 * figures["loss before"]
    assert {f"{task} text" for task in TASKS} <= figures.keys() and "answer speech" in figures
    assert figures["transcribe text"] > 20 and figures["answer modules"] > 5
    told = [json.loads(line) for line in (run / "samples" / "000040.jsonl").read_text("utf-8").splitlines()]
    assert [row["line"] for row in told] == [1, 2] and told[0].keys() == {"line", "task", "wanted", "written"}


def test_the_tuned_folder_talks(
    tuned: tuple[FinetuneRecipe, dict[str, float], Path], desk: Path, tmp_path: Path
) -> None:
    recipe = tuned[0]
    recipe.finish(tmp_path / "model")
    again = open_bundle(tmp_path / "model")
    merge(recipe.net)
    own = recipe.net.state_dict()
    for name, tensor in again.model.state_dict().items():
        assert (tensor - own[name]).abs().max() <= 2**-11 * own[name].abs().max() + 1e-7, name
    old, new = open_native(desk / "able").tensors(), open_native(tmp_path / "model").tensors()
    assert all(torch.equal(old[name], new[name]) for name in old if not name.startswith("model."))
    parts = vita_audio_verbs.open_speech_model(str(tmp_path / "model"))
    made = vita_audio_verbs.converse(parts, [0.1 * torch.randn(8_000)], real_time=False)
    assert len(made.wave) and made.models == {"speech model": str(tmp_path / "model")}

    # what was learned alone, put into the model it was learned for
    base = open_bundle(desk / "able").model
    load_adapters(base, tmp_path / "model" / ADAPTERS, fingerprint(desk / "able"))
    assert all(torch.allclose(t, own[name], atol=1e-6) for name, t in base.state_dict().items())
    assert (tmp_path / "model" / ADAPTERS).stat().st_size < (tmp_path / "model" / "model.safetensors").stat().st_size
    with pytest.raises(CheckpointError, match="belongs to another model"):
        load_adapters(base, tmp_path / "model" / ADAPTERS, fingerprint(desk / "packing"))
    with pytest.raises(CheckpointError, match="holds no adapters"):
        load_adapters(base, tmp_path / "model" / "model.safetensors", "")


def test_small_differences_survive_the_file(desk: Path, tmp_path: Path) -> None:
    """In the 8 bits of the model that was tuned they would be rounded away."""
    recipe = opened(desk, rate=1e-4, steps=2)
    before = {name: tensor.clone() for name, tensor in recipe.net.state_dict().items()}
    train(recipe, tmp_path / "run")
    recipe.finish(tmp_path / "model")
    merge(recipe.net)
    kept, own = open_bundle(tmp_path / "model").model.state_dict(), recipe.net.state_dict()
    for name in ("mctp.0.project.weight", "mctp.2.layer.qkv.weight"):
        moved = own[name] - before[name]
        assert (kept[name] - own[name]).norm() < 0.3 * moved.norm(), name


def test_only_adapters_and_modules_move(desk: Path, tmp_path: Path) -> None:
    recipe = opened(desk)
    before = {name: tensor.clone() for name, tensor in recipe.net.state_dict().items()}
    train(recipe, tmp_path / "run")
    moved = {name for name, tensor in recipe.net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved and all(name.startswith("mctp.") or ".difference." in name for name in moved)
    assert any(name.endswith("difference.up") for name in moved) and any(name.startswith("mctp.2.") for name in moved)
    stored = {name for name in load_file(tmp_path / "run" / CHECKPOINT) if name.startswith("model.")}
    assert stored and all(name.startswith(("model.adapters.", "model.mctp.")) for name in stored)


def test_without_adapters_everything_moves(desk: Path, tmp_path: Path) -> None:
    recipe = opened(desk, rank=0)
    before = {name: tensor.clone() for name, tensor in recipe.net.state_dict().items()}
    train(recipe, tmp_path / "run")
    moved = {name.split(".")[0] for name, tensor in recipe.net.state_dict().items()
             if not torch.equal(tensor, before[name])}  # fmt: skip
    assert moved == {"embedding", "decoder", "mctp", "head"}
    recipe.finish(tmp_path / "model")
    assert not (tmp_path / "model" / ADAPTERS).exists() and open_bundle(tmp_path / "model").model.config.modules == 3


def test_it_goes_on_to_the_same_bits(desk: Path, tmp_path: Path) -> None:
    train(opened(desk), tmp_path / "whole")
    train(opened(desk), tmp_path / "cut", stop_after=0)
    train(opened(desk), tmp_path / "cut", resume=True)
    one, other = (load_file(tmp_path / name / CHECKPOINT) for name in ("whole", "cut"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(ConfigError, match="has rank 4, not 2"):
        train(opened(desk, rank=2), tmp_path / "cut", resume=True)
    with pytest.raises(ConfigError, match="has records "):
        train(opened(desk, data=str(write_records(desk, 5, "fewer.jsonl"))), tmp_path / "cut", resume=True)


def test_packed_records_lose_what_each_loses_alone(desk: Path) -> None:
    recipe = opened(desk, "packing")
    rows_of_step = recipe.batches(0)
    assert max(len(row) for row in rows_of_step) > 1, "several records share a row"
    chosen = [recipe.documents[number] for row in rows_of_step for number in row]
    terms = recipe.loss(0)
    alone, learned = torch.zeros(4), torch.zeros(4)
    for document in chosen:
        pairs = recipe._predicted([[(document.ids, document.labels)]])
        for number, (hidden, wanted) in enumerate(pairs):
            alone[number] += torch.nn.functional.cross_entropy(recipe.net.logits(hidden), wanted, reduction="sum")
            learned[number] += len(wanted)
    means = alone / learned
    assert terms["main"].item() == pytest.approx(means[0].item(), rel=1e-5)
    assert terms["modules"].item() == pytest.approx(means[1:].mean().item(), rel=1e-5)
    assert terms["loss"].item() == pytest.approx((means[0] + means[1:].mean()).item(), rel=1e-5)
    assert all(len(row) == 1 for row in opened(desk).batches(0)), "modules that read a prompt's end want whole rows"


def test_the_shares_of_a_step_average_to_the_whole(desk: Path) -> None:
    """Rows hold unlike numbers of tokens, and the last of three processes finds no row left."""
    recipe = opened(desk, "packing", budget=700)
    rows_of_step = [[(d.ids, d.labels) for d in map(recipe.documents.__getitem__, row)] for row in recipe.batches(0)]
    pairs = recipe._predicted(rows_of_step)
    counts = torch.tensor([len(wanted) for _, wanted in pairs])
    assert len(rows_of_step) == 2

    class Third(Share):
        def total(self, value: torch.Tensor) -> torch.Tensor:
            return counts

    learned = [parameter for parameter in recipe.model.parameters() if parameter.requires_grad]
    whole = recipe.loss(0)["loss"]
    wanted = torch.autograd.grad(whole, learned)
    losses, slopes = [], [torch.zeros_like(parameter) for parameter in learned]
    for rank in range(3):
        recipe.share = Third(rank, 3)
        losses.append(recipe.loss(0)["loss"])
        for slope, own in zip(slopes, torch.autograd.grad(losses[-1], learned), strict=True):
            slope += own / 3
    assert torch.stack(losses).mean().item() == pytest.approx(whole.item(), rel=1e-5) and losses[2].item() == 0
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(slopes, wanted, strict=True))


def test_records_are_put_as_they_will_be_asked(desk: Path) -> None:
    recipe = opened(desk, held_out="0")
    tokens, document = recipe.parts.tokens, recipe.documents[0]
    codes = [code for token in document.ids[: document.last_answer] if (code := tokens.code(token)) is not None]
    assert document.ids[: document.last_answer] == tokens.prompt(answer_prompt(), [codes]) and len(codes) == 3
    given = opened(desk, held_out="0", prompts="given").documents[0]
    assert len(given.ids) < len(document.ids) and len(recipe.documents) == len(rows()) == 24


def test_some_of_each_task_are_held_out(desk: Path) -> None:
    found = read_records(desk / "data.jsonl")
    learned, judged = split(found, "0.3", 0)
    assert sorted(record.task for record in judged) == sorted([*TASKS] * 2) and len(learned) == 16
    assert not {record.line for record in learned} & {record.line for record in judged}
    assert split(found, "0.3", 0)[1] == judged != split(found, "0.3", 1)[1]
    assert split(found, "0", 0) == (found, []) and len(split(found, "0.01", 0)[1]) == 4
    assert split(found[:2], "0.5", 0) == (found[:2], []), "the only one of its task is learned"
    recipe = opened(desk, held_out="0", steps=0, passes=2.0)
    assert recipe.evaluate() == {} and recipe.schedule.steps > 2


def test_that_nothing_is_held_out_is_told(desk: Path) -> None:
    """With one record of each task all are learned from; whoever asks for none to be held out knows."""
    (desk / "few.jsonl").write_text("\n".join(json.dumps(row) for row in rows(1)), "utf-8")
    few = str(desk / "few.jsonl")
    (remark,) = opened(desk, data=few, held_out="0.5").remarks
    assert remark.startswith("nothing is held out") and "--held-out" in remark
    assert [opened(desk, data=few, held_out=asked).remarks for asked in ("0.0", few)] == [[], []]


def test_what_cannot_be_is_told(desk: Path, tmp_path: Path) -> None:
    for wrong, said in (
        ({"data": ""}, "name their file"), ({"model": str(tmp_path)}, "is no VITA-Audio"),
        ({"budget": 0}, "budget must be 1"), ({"held_out": "1.5"}, "share from 0 to below 1"),
        ({"held_out": "nowhere.jsonl"}, "nowhere.jsonl cannot be read"), ({"rank": 25}, "rank of 25 does not fit"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            open(tmp_path, replace(options(desk), **wrong))
    long = {"messages": [{"role": "user", "content": "x y " * 400}, {"role": "assistant", "content": "so"}]}
    lines = [json.dumps(long), *(json.dumps(row) for row in rows(2))]
    (desk / "long.jsonl").write_text("\n".join(lines), "utf-8")
    recipe = opened(desk, data=str(desk / "long.jsonl"), held_out="0")
    assert len(recipe.documents) == 8
    assert recipe.remarks == ["1 records are longer than 256 tokens and left out; cut them to use them"]
    (tmp_path / "only.jsonl").write_text(json.dumps(long), "utf-8")
    with pytest.raises(ConfigError, match=r"every record of .* is longer than the 256 tokens"):
        open(tmp_path, options(desk, data=str(tmp_path / "only.jsonl")))
