"""The DeepSpeed files are what DeepSpeed takes, told without it: known keys, their types, and no contradictions.

The table holds the keys of its JSON configuration that concern training with ZeRO, as its public documentation and
versions 0.15 to 0.19 have them.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import pytest

from vivavoce.recipes.vita_audio_finetune import MODULE_RATE, RATES
from vivavoce.train.loop import Schedule

FOLDER = files("vivavoce.recipes") / "deepspeed"
NAMES = ("zero2.json", "zero3.json")


# ------------------------------------------------------------------------------------------------------ types of values
def flag(value: Any) -> bool:
    return isinstance(value, bool)


def count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def positive(value: Any) -> bool:
    return count(value) and value > 0


def number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def words(value: Any) -> bool:
    return isinstance(value, str)


def pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(number(item) and item < 1 for item in value)


def one_of(*choices: Any) -> Callable[[Any], bool]:
    return lambda value: any(value == choice and type(value) is type(choice) for choice in choices)


def size(value: Any) -> bool:
    """Part of a batch; "auto" is filled in by launchers such as transformers' Trainer."""
    return value == "auto" or positive(value)


Table = dict[str, Any]  # key -> what its value must be, or the table of an object
DTYPE = one_of("fp32", "fp16", "bf16")
OFFLOAD: Table = {
    "device": one_of("none", "cpu", "nvme"), "nvme_path": words, "buffer_count": count, "pin_memory": flag,
}  # fmt: skip
ZERO: Table = {
    "stage": one_of(0, 1, 2, 3), "contiguous_gradients": flag, "overlap_comm": flag, "reduce_scatter": flag,
    "reduce_bucket_size": positive, "use_multi_rank_bucket_allreduce": flag, "allgather_partitions": flag,
    "allgather_bucket_size": count, "load_from_fp32_weights": flag, "elastic_checkpoint": flag,
    "round_robin_gradients": flag, "ignore_unused_parameters": flag, "legacy_stage1": flag, "sub_group_size": count,
    "offload_param": {**OFFLOAD, "buffer_size": count, "max_in_cpu": count},
    "offload_optimizer": {
        **OFFLOAD, "pipeline_read": flag, "pipeline_write": flag, "fast_init": flag, "ratio": number,
    },
    "stage3_prefetch_bucket_size": count, "stage3_param_persistence_threshold": count,
    "stage3_model_persistence_threshold": count, "stage3_max_live_parameters": count,
    "stage3_max_reuse_distance": count, "stage3_gather_16bit_weights_on_model_save": flag,
    "stage3_use_all_reduce_for_fetch_params": flag, "zero_hpz_partition_size": count, "zero_quantized_weights": flag,
    "zero_quantized_nontrainable_weights": flag, "zero_quantized_gradients": flag, "mics_shard_size": count,
    "mics_hierarchical_params_gather": flag, "memory_efficient_linear": flag, "pipeline_loading_checkpoint": flag,
    "override_module_apply": flag,
}  # fmt: skip
WHOLE: Table = {
    "train_batch_size": size, "train_micro_batch_size_per_gpu": size, "gradient_accumulation_steps": size,
    "gradient_clipping": number, "prescale_gradients": flag, "gradient_predivide_factor": number,
    "communication_data_type": DTYPE, "steps_per_print": positive, "wall_clock_breakdown": flag,
    "memory_breakdown": flag, "dump_state": flag, "disable_allgather": flag, "dataloader_drop_last": flag,
    "zero_allow_untested_optimizer": flag, "zero_force_ds_cpu_optimizer": flag, "zero_optimization": ZERO,
    "bf16": {"enabled": flag, "immediate_grad_update": flag},
    "fp16": {
        "enabled": flag, "auto_cast": flag, "loss_scale": number, "initial_scale_power": count,
        "loss_scale_window": positive, "hysteresis": positive, "consecutive_hysteresis": flag,
        "min_loss_scale": number,
    },
    "optimizer": {
        "type": one_of("Adam", "AdamW"), "legacy_fusion": flag,
        "params": {"lr": number, "betas": pair, "eps": number, "weight_decay": number, "torch_adam": flag,
                   "adam_w_mode": flag},
    },
    "scheduler": {"type": words, "params": dict},
    "activation_checkpointing": {
        "partition_activations": flag, "cpu_checkpointing": flag, "contiguous_memory_optimization": flag,
        "number_checkpoints": positive, "synchronize_checkpoint_boundary": flag, "profile": flag,
    },
    "data_types": {"grad_accum_dtype": DTYPE},
    "checkpoint": {
        "tag_validation": one_of("Ignore", "Warn", "Fail"), "load_universal": flag, "use_node_local_storage": flag,
        "parallel_write": {"pipeline_stage": flag},
    },
    "flops_profiler": {
        "enabled": flag, "profile_step": positive, "module_depth": lambda value: value == -1 or count(value),
        "top_modules": positive, "detailed": flag, "output_file": words,
    },
    "comms_logger": {"enabled": flag, "verbose": flag, "prof_all": flag, "debug": flag, "prof_ops": list},
    "tensorboard": {"enabled": flag, "output_path": words, "job_name": words},
    "csv_monitor": {"enabled": flag, "output_path": words, "job_name": words},
}  # fmt: skip
WARMUP: Table = {"warmup_num_steps": positive, "warmup_type": one_of("log", "linear")}
SCHEDULERS: dict[str, Table] = {
    "WarmupLR": {**WARMUP, "warmup_min_lr": number, "warmup_max_lr": number},
    "WarmupDecayLR": {**WARMUP, "warmup_min_lr": number, "warmup_max_lr": number, "total_num_steps": positive},
    "WarmupCosineLR": {
        **WARMUP, "warmup_min_ratio": number, "cos_min_ratio": number, "total_num_steps": positive,
    },
}  # fmt: skip
STAGE_1_2 = {"allgather_partitions", "allgather_bucket_size", "reduce_scatter", "round_robin_gradients",
             "ignore_unused_parameters", "use_multi_rank_bucket_allreduce"}  # fmt: skip
STAGE_3 = {key for key in ZERO if key.startswith(("stage3_", "mics_", "zero_"))} | {
    "offload_param", "sub_group_size", "memory_efficient_linear", "pipeline_loading_checkpoint",
    "override_module_apply",
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- the lint
def read(text: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a key stands twice")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=once)


def misfits(found: Any, table: Table, where: str = "") -> list[str]:
    """Keys that are unknown and values of another type."""
    if not isinstance(found, dict):
        return [f"{where} is no object"]
    faults = []
    for key, value in found.items():
        wanted, place = table.get(key), f"{where}.{key}".lstrip(".")
        if wanted is None:
            faults.append(f"{place} is unknown")
        elif isinstance(wanted, dict):
            faults += misfits(value, wanted, place)
        elif isinstance(wanted, type):
            faults += [] if isinstance(value, wanted) else [f"{place} has another type"]
        elif not wanted(value):
            faults.append(f"{place} cannot be {value!r}")
    return faults


def contradictions(found: dict[str, Any], world: int) -> list[str]:
    """What says two things at once, or one that means nothing, with ``world`` processes."""
    faults, zero = [], found.get("zero_optimization", {})
    whole, micro, accumulated = (
        found.get(key) for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    )
    if whole is None and micro is None:
        faults.append("no size of a batch is given")
    if "auto" not in (whole, micro, accumulated) and None not in (whole, micro, accumulated):
        faults += [] if whole == micro * accumulated * world else ["the sizes of a batch contradict each other"]
    if found.get("bf16", {}).get("enabled") and found.get("fp16", {}).get("enabled"):
        faults.append("bf16 and fp16 at once")
    meaningless = {2: STAGE_3, 3: STAGE_1_2}.get(zero.get("stage"), STAGE_3 | STAGE_1_2) & zero.keys()
    faults += [f"zero_optimization.{key} means nothing in this stage" for key in sorted(meaningless)]
    if "scheduler" in found:
        kind, params = found["scheduler"].get("type"), found["scheduler"].get("params", {})
        if kind not in SCHEDULERS:
            return [*faults, f"there is no scheduler {kind}"]
        faults += misfits(params, SCHEDULERS[kind], "scheduler.params")
        if not faults and "total_num_steps" in params and params["warmup_num_steps"] >= params["total_num_steps"]:
            faults.append("the warm-up outlasts the run")
    return faults


def lint(text: str, world: int = 8) -> list[str]:
    found = read(text)
    return misfits(found, WHOLE) or contradictions(found, world)


# ------------------------------------------------------------------------------------------------------------ the tests
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("world", [1, 8, 16])
def test_the_files_are_sound(name: str, world: int) -> None:
    assert lint((FOLDER / name).read_text("utf-8"), world) == []


def test_no_other_file_is_left_unread() -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_they_say_what_the_paper_and_the_recipe_say(name: str) -> None:
    """Stage 4: bf16, one row and sixteen of them a process, clip 1.0, 3 % of 4,000 steps of warm-up, a tenth at the
    end."""
    found, ours = read((FOLDER / name).read_text("utf-8")), Schedule(steps=4000)
    assert found["bf16"] == {"enabled": True} and found["gradient_clipping"] == ours.clip == 1.0
    assert (found["train_micro_batch_size_per_gpu"], found["gradient_accumulation_steps"]) == (1, 16)
    rates = found["scheduler"]["params"]
    assert rates["total_num_steps"] == ours.steps and rates["cos_min_ratio"] == ours.floor
    assert rates["warmup_num_steps"] == round(ours.warmup * ours.steps)
    assert found["zero_optimization"]["stage"] == int(name[4])
    # an optimizer named here would have one rate; the modules' is ten times the backbone's, so it comes from the recipe
    assert "optimizer" not in found and 10 * RATES["all"] == MODULE_RATE


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("gradient_cliping", 1.0), ("gradient_clipping", "1.0"), ("gradient_clipping", True), ("bf16.enable", True),
        ("bf16.enabled", "true"), ("bf16", True), ("fp16", {"enabled": True}), ("train_batch_size", 100),
        ("train_micro_batch_size_per_gpu", 0), ("gradient_accumulation_steps", 1.5), ("zero_optimization.stage", 4),
        ("zero_optimization.stage", 1), ("zero_optimization.reduce_bucket_size", "5e8"),
        ("zero_optimization.overlap_com", True), ("zero_optimization", True), ("scheduler.type", "WarmupCosinusLR"),
        ("scheduler.params.warmup_num_steps", 5000), ("scheduler.params.warmup_max_lr", 5e-5),
        ("scheduler.params.warmup_type", "square"), ("optimizer", {"type": "AdamW", "params": {"betas": [0.9, 95]}}),
        ("train_micro_batch_size_per_gpu", None),
    ],
)  # fmt: skip
def test_a_changed_file_fails(name: str, path: str, value: Any) -> None:
    found = read((FOLDER / name).read_text("utf-8"))
    place = found
    *folders, last = path.split(".")
    for folder in folders:
        place = place[folder]
    place[last] = value
    if value is None:
        del place[last]
    assert lint(json.dumps(found)) != []


def test_fields_of_another_stage_fail() -> None:
    two, three = (read((FOLDER / name).read_text("utf-8")) for name in NAMES)
    own = [set(found["zero_optimization"]) for found in (two, three)]
    for found, others in ((two, own[1] - own[0]), (three, own[0] - own[1])):
        assert others
        for key in others:
            changed = copy.deepcopy(found)
            changed["zero_optimization"][key] = {**two["zero_optimization"], **three["zero_optimization"]}[key]
            assert any(key in fault for fault in lint(json.dumps(changed))), key


def test_batches_that_agree_pass_and_a_key_that_stands_twice_does_not() -> None:
    found = read((FOLDER / NAMES[0]).read_text("utf-8"))
    assert lint(json.dumps({**found, "train_batch_size": 16 * 8})) == []
    assert lint(json.dumps({**found, "train_batch_size": "auto"})) == []
    with pytest.raises(ValueError, match="twice"):
        lint('{"gradient_clipping": 1.0, "gradient_clipping": 1.0}')
