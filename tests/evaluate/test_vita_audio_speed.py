"""The measurements of VITA-Audio: what is counted, how it is put together, and the process of the reference."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.evaluate.stand_in import write_stand_in
from vivavoce.dialogue.vita_audio import VITAAudioConfig
from vivavoce.dialogue.vita_audio_cycles import write_scheduled
from vivavoce.dialogue.vita_audio_engine import Engine
from vivavoce.dialogue.vita_audio_files import Needed, state_shapes
from vivavoce.dialogue.vita_audio_writing import MODES, Writer
from vivavoce.errors import ConfigError
from vivavoce.evaluate import vita_audio_speed as speed
from vivavoce.evaluate.vita_audio_reference import Attention
from vivavoce.evaluate.vita_audio_speed import Memory, Ours, Run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ours() -> Ours:
    config = VITAAudioConfig.tiny()
    return Ours(speed.ready_model(config, speed.random_weights(config, CPU)))


def silent(what: str, done: float, total: float) -> None:
    """Nobody looks."""


# --------------------------------------------------------------------------------------------------------------- sizes
def test_sizes_are_what_they_are_called() -> None:
    counts = {
        name: Needed.of(state_shapes(size.config), torch.float32).parameters for name, size in speed.SIZES.items()
    }
    assert counts["7b"] == 10_317_912_576
    assert counts["28x192"] == 21_736_000
    c = speed.SIZES["0.5b"].config
    backbone = Needed.of(state_shapes(c.with_modules(0)), torch.float32).parameters
    table = c.vocab_size * c.decoder.dim
    assert backbone - 2 * table == 494_032_768 - 151_936 * 896  # Qwen2.5-0.5B without its table, which is its head too
    for size in speed.SIZES.values():
        speed.check_tokens(size.config, size.tokens)
        speed.check_tokens(size.config, speed.CHUNK)


def test_weights_are_random_and_repeatable() -> None:
    config = VITAAudioConfig.tiny()
    one, same, other = (speed.random_weights(config, CPU, seed) for seed in (0, 0, 1))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])
    assert float(one["decoder.norm.weight"].min()) == 1 and not one["decoder.layers.0.qkv.bias"].any()
    table = one["embedding.weight"]
    assert speed.ready_model(config, one).embedding.weight.data_ptr() == table.data_ptr() and not one  # it took them


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = speed.SIZES["0.5b"].config
    monkeypatch.setattr(speed, "free_memory", lambda: 4_000_000_000)
    speed.check_room(config, CPU, 100, 1)
    with pytest.raises(ConfigError, match=r"with the reference beside it, but 4\.0 GB of memory are free"):
        speed.check_room(config, CPU, 100, 2)
    with pytest.raises(ConfigError, match=r"takes \d+\.\d GB, but"):
        speed.check_room(config, CPU, 100_000, 1)  # caches count
    monkeypatch.setattr(speed, "free_memory", lambda: None)
    speed.check_room(config, CPU, 100_000, 2)


# ---------------------------------------------------------------------------------------------------------------- runs
@pytest.mark.parametrize("mode", MODES)
def test_a_run_is_that_of_the_schedule(ours: Ours, mode: str) -> None:
    run = ours.write(MODES[mode], 40)
    assert 0 < run.first < run.seconds and len(run.tokens) == 40
    writer = Writer.begin(ours.model)
    writer.add([0] * 32)
    with torch.inference_mode():
        assert list(run.tokens) == [item.token for item in write_scheduled(writer, MODES[mode], 40)]
    assert (run.passes, run.drafts) == (writer.passes, writer.drafts) and run.passes + run.drafts == 40
    assert (run.drafts == 0) == (mode == "vanilla")


class Told:
    """A writer that takes as long as it is told."""

    def __init__(self, name: str, seconds: Sequence[float], log: list[str], tokens: Sequence[int] = (1, 2, 3)):
        self.name, self.seconds, self.log, self.tokens = name, iter(seconds), log, tokens

    def write(self, mode: Sequence[int], count: int) -> Run:
        self.log.append(f"{self.name} {mode[0]}")
        return Run(0.1, next(self.seconds), self.tokens, 7, count)


def test_writers_take_turns() -> None:
    log, seen = list[str](), list[float]()
    who = {name: Told(name, [1.0] * 9, log) for name in ("ours", "reference")}
    runs = speed.measure(who, {"vanilla": (9, 0), "turbo": (1, 3)}, 5, 2, lambda what, done, total: seen.append(done))
    assert log == ["ours 9", "reference 9", "ours 1", "reference 1"] * 2
    assert seen == list(range(9))
    assert [run.drafts for run in runs["reference"]["turbo"]] == [5, 5]


def test_rows_hold_medians_and_ratios() -> None:
    log = list[str]()
    who = {"ours": Told("ours", [4.0, 1.0, 9.0, 2.0, 5.0, 2.0], log),
           "reference": Told("reference", [8.0, 3.0] * 3, log, (1, 2, 9))}  # fmt: skip
    runs = speed.measure(who, {"vanilla": (9, 0), "turbo": (1, 3)}, 10, 3, silent)
    vanilla, turbo = speed.timings(runs, lambda run: run.seconds, comparable=True)
    assert (vanilla.seconds, vanilla.of_vanilla, vanilla.each) == (5.0, 1.0, (4.0, 9.0, 5.0))
    assert (turbo.seconds, turbo.of_vanilla, turbo.passes, turbo.drafts, turbo.agree) == (2.0, 2.5, 7, 10, 2)
    assert turbo.reference is not None and turbo.reference.seconds == 3.0
    assert turbo.reference.of_vanilla == pytest.approx(5 / 3)
    assert speed.timings(runs, lambda run: run.first, comparable=False)[0].agree is None
    only = speed.timings({"ours": {"turbo": runs["ours"]["turbo"]}}, lambda run: run.seconds, comparable=True)
    assert only[0].of_vanilla is None and only[0].reference is None and only[0].agree is None


def test_agreement_counts_from_the_first() -> None:
    assert speed.agreement([1, 2, 3], [1, 2, 3]) == 3
    assert speed.agreement([1, 2, 3], [1, 9, 3]) == 1
    assert speed.agreement([], []) == 0


# ---------------------------------------------------------------------------------------------------------------- many
@pytest.mark.parametrize(("sessions", "count"), [(1, 11), (3, 11), (5, 48)])
@pytest.mark.parametrize("mode", ["vanilla", "turbo"])
def test_places_are_never_empty(
    ours: Ours, monkeypatch: pytest.MonkeyPatch, sessions: int, count: int, mode: str
) -> None:
    at_work, told = list[int](), list[int]()

    class Watched(Engine):
        def tick(self):
            at_work.append(len(self))
            made = super().tick()
            told.append(sum(map(len, made.values())))
            return made

    monkeypatch.setattr(speed, "Engine", Watched)
    row = speed.together(ours.model, mode, count, sessions)
    assert (row.mode, row.sessions) == (mode, sessions) and row.tokens_per_second > 0 and row.cycle > 0 and row.wait > 0
    assert at_work[0] == sessions and set(at_work[2:]) == {sessions}  # the shortest may end before the clock runs
    assert sessions * count <= sum(told[1:]) < sessions * (count + 4)  # three drafts and one more in a cycle


def test_the_share_that_stays_below() -> None:
    assert speed.below([3.0, 1.0, 2.0]) == 3.0 and speed.below([7.0]) == 7.0
    assert speed.below([float(n) for n in range(1, 101)]) == 95.0
    assert speed.below([1.0, 2.0, 3.0, 4.0], share=0.5) == 2.0


# -------------------------------------------------------------------------------------------------------------- memory
def test_a_pass_reads_its_layers_and_the_head() -> None:
    config = VITAAudioConfig.tiny()
    memory = speed.measure_memory(speed.random_weights(config, CPU), stream=1 << 20)
    c, head = config.decoder, 4 * 61 * 24
    layer = 24 * (24 + 2 * 8) + 40 + 24 * 24 + 3 * 24 * c.ffn_dim + 2 * 24  # qkv and its bias, out, ffn, two norms
    assert memory.backbone == head + 4 * (2 * layer + 24)
    assert memory.module == head + 4 * (layer + 2 * 24 * 24 + 2 * 24)
    assert memory.bandwidth > 1e7
    assert speed.measure_memory(speed.random_weights(config.with_modules(0), CPU), stream=1 << 20).module == 0
    rounded = speed.measure_memory(speed.random_weights(config, CPU), 1 << 20, "int8")
    rows = 2 * (24 + 16 + 24 + 2 * c.ffn_dim + 24) + 61  # with a number of 4 bytes each
    vectors = 2 * (24 + 16 + 48) + 24  # biases and norms
    assert rounded.backbone == (memory.backbone - 4 * vectors) // 4 + 4 * rows + 4 * vectors


def test_the_floor_is_bytes_by_bandwidth() -> None:
    memory = Memory(backbone=1000, module=100, bandwidth=10_000.0, cache=None)
    rows = speed.timings(
        {"ours": {"turbo": [Run(0.1, 4.0, (), passes=2, drafts=20)]}}, lambda run: run.seconds, comparable=False
    )
    (floor,) = speed.floors(memory, rows, 20)
    assert floor.bytes == pytest.approx(200) and floor.seconds == pytest.approx(0.02)
    assert floor.reached == pytest.approx(0.1)


# ----------------------------------------------------------------------------------------------------------- reference
@pytest.mark.parametrize(("length", "kept"), [(1, 1), (1, 6), (4, 4), (3, 7)])
def test_attention_of_the_reference_ends_at_the_last_key(length: int, kept: int) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, length, 8), torch.randn(1, 2, kept, 8), torch.randn(1, 2, kept, 8)
    seen, _ = Attention()(torch.nn.Identity(), query, key, value, None, scaling=8**-0.5, dropout=0.0)
    key, value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    scores = (query @ key.transpose(2, 3)) * 8**-0.5
    for row in range(length):
        scores[:, :, row, kept - length + row + 1 :] = float("-inf")
    torch.testing.assert_close(seen, (scores.softmax(-1) @ value).transpose(1, 2))


def test_the_reference_answers_in_its_own_process(ours: Ours, tmp_path: Path) -> None:
    config, code = VITAAudioConfig.tiny(), write_stand_in(tmp_path)
    weights = speed.random_weights(config, CPU)
    with speed.reference(sys.executable, code, config, weights) as beside:
        assert beside.same_weights and beside.versions == {"torch": torch.__version__}
        run = beside.write((1, 3), 12)
        assert list(run.tokens) == [5 + config.vocab_size + n for n in range(12)]  # it was given our weights
        assert (run.passes, run.drafts) == (3, 9) and 0 < run.first <= run.seconds
        assert beside.write((8192, 0), 4).passes == 4
    assert beside.process.poll() is not None
    with speed.reference(sys.executable, code, config, weights, shared=0) as beside:
        assert not beside.same_weights and beside.write((1, 3), 2).tokens == [5, 6]


def test_a_reference_that_does_not_run_is_one_sentence(tmp_path: Path) -> None:
    config = VITAAudioConfig.tiny()
    weights = speed.random_weights(config, CPU)
    broken = write_stand_in(tmp_path / "broken", "import a_library_that_is_not_there")
    with (
        pytest.raises(ConfigError, match="No module named 'a_library_that_is_not_there'"),
        speed.reference(sys.executable, broken, config, weights),
    ):
        pass
    silent_one = tmp_path / "interpreter"
    silent_one.write_text("#!/bin/sh\necho this is no python >&2\nexit 1\n", "utf-8")
    silent_one.chmod(0o755)
    with (
        pytest.raises(ConfigError, match=r"does not run \(this is no python\)"),
        speed.reference(str(silent_one), broken, config, weights),
    ):
        pass


def test_what_is_missing_of_a_reference_is_told(tmp_path: Path) -> None:
    speed.check_reference(None, None)
    speed.check_reference(sys.executable, write_stand_in(tmp_path / "code"))
    for python, folder, said in (
        (sys.executable, None, "go together"),
        (None, tmp_path, "go together"),
        (sys.executable, tmp_path, "does not hold the authors' code"),
        (str(tmp_path / "python"), tmp_path / "code", "there is no interpreter"),
    ):
        with pytest.raises(ConfigError, match=said):
            speed.check_reference(python, folder)


# ----------------------------------------------------------------------------------------------------------- all of it
def test_everything_is_measured(tmp_path: Path) -> None:
    modes = {name: MODES[name] for name in ("vanilla", "turbo")}
    plan = speed.Plan(
        modes, 22, (1, 3), chunks=2, runs=1, stream=1 << 20, python=sys.executable, code=write_stand_in(tmp_path)
    )
    result = speed.bench(VITAAudioConfig.tiny(), CPU, plan, silent)
    assert [row.mode for row in result.chunk] == [row.mode for row in result.run] == ["vanilla", "turbo"]
    assert [len(row.each) for row in (*result.chunk, *result.run)] == [2, 2, 1, 1]
    assert result.run[0].passes == 22 and result.run[1].drafts > 11 and result.chunk[0].passes == 11
    assert all(row.reference is not None and row.agree == 0 for row in result.run)
    assert [floor.mode for floor in result.floor] == ["vanilla", "turbo"]
    found = [(row.mode, row.sessions) for row in result.together]
    assert result.processor and found == [(mode, count) for mode in modes for count in (1, 3)]
    assert result.parameters == Needed.of(state_shapes(VITAAudioConfig.tiny()), torch.float32).parameters
