"""How quick VITA-Audio is on this machine, with random weights: the two measurements of arXiv 2505.03739 (time to the
first block of speech, a long run by each mode), what memory allows, and the authors' own code beside ours.

Everything is greedy and follows the mode's list blindly, as the authors' benchmark does, so what is written does not
matter. A reference runs in a process of its own (vita_audio_reference.py), in turns with ours.
"""

from __future__ import annotations

import json
import math
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from vivavoce.checkpoints.layouts.vita_audio import transformers
from vivavoce.checkpoints.read import free_memory, size_text
from vivavoce.checkpoints.rules import export_weights
from vivavoce.dialogue.vita_audio import VITAAudio, VITAAudioConfig
from vivavoce.dialogue.vita_audio_cycles import ScheduledText, write_scheduled
from vivavoce.dialogue.vita_audio_engine import Engine
from vivavoce.dialogue.vita_audio_files import Needed, state_shapes
from vivavoce.dialogue.vita_audio_writing import MODES, Writer
from vivavoce.errors import ConfigError, nearest
from vivavoce.nn import native
from vivavoce.nn.decoder import DecoderConfig
from vivavoce.nn.packed import Weights, make_ready

PROMPT = 32  # tokens read before the answer, as in the authors' benchmark
CHUNK = 11  # the first block of speech is complete: a word, its beginning, eight codes, its end
WARM = 34  # tokens written before anything counts
STREAM = 512_000_000  # bytes read to measure the memory, far more than caches hold
SHARED = 4_000_000_000  # bytes of weights up to which the reference is given ours
CODE = Path("vita_audio") / "models" / "qwen2_mtp_v4_48_3" / "modeling_qwen2.py"  # where the authors' model lies

Report = Callable[[str, float, float], None]


# --------------------------------------------------------------------------------------------------------------- sizes
@dataclass(frozen=True)
class Size:
    """A configuration to measure, and how many tokens a run of it writes if nothing else is asked for."""

    config: VITAAudioConfig
    tokens: int


def _size_of(sizes: DecoderConfig, vocab_size: int, tokens: int) -> Size:
    return Size(VITAAudioConfig(decoder=sizes, vocab_size=vocab_size, modules=10), tokens)


SIZES = {
    "nano": Size(VITAAudioConfig.nano(1936), 512),
    "28x192": _size_of(  # as many layers as the published one, small enough to be measured in a minute
        DecoderConfig(
            dim=192, n_layers=28, n_heads=6, n_kv_heads=2, head_dim=32, ffn_dim=768, context=8192, rope_base=1e6,
            norm_eps=1e-6, qkv_bias=True,
        ), 1100, 512,
    ),
    "0.5b": _size_of(  # Qwen2.5-0.5B
        DecoderConfig(
            dim=896, n_layers=24, n_heads=14, n_kv_heads=2, head_dim=64, ffn_dim=4864, context=32_768, rope_base=1e6,
            norm_eps=1e-6, qkv_bias=True,
        ), 168_072, 112,
    ),
    "7b": Size(VITAAudioConfig.published(), 112),
}  # fmt: skip


def size_named(name: str) -> Size:
    """The size of a name; ConfigError offers the nearest."""
    if name not in SIZES:
        raise ConfigError(f"no size is called {name!r}{nearest(name, SIZES)}; use one of {', '.join(SIZES)}")
    return SIZES[name]


def modes_named(name: str) -> dict[str, tuple[int, ...]]:
    """One mode, or ``all``; ConfigError offers the nearest name."""
    if name != "all" and name not in MODES:
        known = ("all", *MODES)
        raise ConfigError(f"no mode is called {name!r}{nearest(name, known)}; use one of {', '.join(known)}")
    return MODES if name == "all" else {name: MODES[name]}


def check_tokens(config: VITAAudioConfig, tokens: int) -> None:
    """ConfigError where a run would end before the first block of speech, or not fit the model."""
    most = config.decoder.context - PROMPT
    if not CHUNK <= tokens <= most:
        raise ConfigError(f"a run of this size has {CHUNK} to {most} tokens, not {tokens}; give another --tokens")


def check_room(config: VITAAudioConfig, device: torch.device, positions: int, copies: int) -> None:
    """ConfigError where weights, in so many copies, and caches of so many positions do not fit the free memory."""
    weights, c = Needed.of(state_shapes(config), dtype_of(device)), config.decoder
    caches = 2 * (c.n_layers + config.modules) * c.n_kv_heads * c.head_dim * positions * weights.dtype.itemsize
    needed = copies * (weights.bytes + caches)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    if free is not None and needed > free:
        beside = " with the reference beside it" if copies > 1 else ""
        raise ConfigError(
            f"this size has {weights} and takes {size_text(needed)}{beside}, but {size_text(free)} of memory are free; "
            "give a smaller --size, or measure where there is more"
        )


def dtype_of(device: torch.device) -> torch.dtype:
    """Weights are measured in float32 on a processor and in bfloat16 on a GPU."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def random_weights(config: VITAAudioConfig, device: torch.device, seed: int = 0) -> dict[str, Tensor]:
    """A state dict whose matrices are random (Glorot and Bengio 2010), always alike for a seed."""
    generator, weights = torch.Generator(device).manual_seed(seed), dict[str, Tensor]()
    for key, shape in state_shapes(config).items():
        weights[key] = torch.empty(shape, dtype=dtype_of(device), device=device)
        if len(shape) > 1:
            weights[key].normal_(std=math.sqrt(2 / sum(shape)), generator=generator)
        else:
            weights[key].fill_(0 if key.endswith("bias") else 1)
    return weights


def ready_model(config: VITAAudioConfig, weights: dict[str, Tensor], form: Weights = "float32") -> VITAAudio:
    """A model of these weights, which it takes: on a processor its layers are put into their quickest form, or rounded
    to integers. ConfigError where integers are asked for on a GPU."""
    with torch.device("meta"):
        model = VITAAudio(config)
    model.load_state_dict(weights, assign=True)
    weights.clear()
    model.eval().requires_grad_(False)
    if model.embedding.weight.device.type == "cpu":
        make_ready(model, form)
    elif form != "float32":
        raise ConfigError(f"weights of {form} are computed with on a processor; leave --weights or --device out")
    return model


# ---------------------------------------------------------------------------------------------------------------- runs
@dataclass(frozen=True)
class Run:
    """An answer: seconds from the prompt's tensors to the 11th token and to the last, what was written, and how often
    backbone and modules were called."""

    first: float
    seconds: float
    tokens: Sequence[int]
    passes: int
    drafts: int


class Writes(Protocol):
    """Who can write an answer to the prompt of the benchmark: 32 tokens 0."""

    def write(self, mode: Sequence[int], count: int) -> Run:
        """``count`` tokens by a mode's list, greedy."""
        ...


@dataclass(frozen=True)
class Ours:
    """Our model."""

    model: VITAAudio

    def write(self, mode: Sequence[int], count: int) -> Run:
        """The clock includes caches, the prompt's pass, and those of the modules that the mode asks."""
        device, written, first = self.model.embedding.weight.device, list[int](), 0.0
        wait(device)
        began = time.perf_counter()
        with torch.inference_mode():
            writer = Writer.begin(self.model, PROMPT + count)
            writer.add([0] * PROMPT)
            writer.begin_answer()
            for item in write_scheduled(writer, mode, count):
                written.append(item.token)
                if len(written) == CHUNK:
                    first = time.perf_counter() - began
        wait(device)
        return Run(first, time.perf_counter() - began, written, writer.passes, writer.drafts)


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    who: Mapping[str, Writes], modes: Mapping[str, Sequence[int]], count: int, repeats: int, report: Report
) -> dict[str, dict[str, list[Run]]]:
    """``repeats`` runs of ``count`` tokens for each writer and mode, all taking turns: by writer, by mode."""
    runs: dict[str, dict[str, list[Run]]] = {name: {mode: [] for mode in modes} for name in who}
    total, done = repeats * len(modes) * len(who), 0
    for _ in range(repeats):
        for mode, pairs in modes.items():
            for name, writer in who.items():
                report(f"{count} tokens, {mode}, {name}", done, total)
                runs[name][mode].append(writer.write(pairs, count))
                done += 1
    report(f"{count} tokens", total, total)
    return runs


# -------------------------------------------------------------------------------------------------------------- many
@dataclass(frozen=True)
class Together:
    """So many texts of a mode at once, each place taken anew as soon as its text is complete: tokens a second of all,
    and what 95 of 100 stay below, in seconds: ``cycle``, one cycle of all; ``wait``, from the moment a text comes in,
    anywhere in a cycle, until its first token is told."""

    mode: str
    sessions: int
    tokens_per_second: float
    cycle: float
    wait: float


def together(model: VITAAudio, name: str, count: int, sessions: int, seed: int = 0) -> Together:
    """By the mode of that name ``count`` tokens for each of so many places; a text writes a quarter of them, the first
    in a place fewer, so that texts do not all come in at once."""
    engine, random, length = Engine(model, most=sessions), Random(seed), max(CHUNK, count // 4)
    come, left = dict[int, float](), dict[int, int]()  # by key: when it came in, and how many tokens it has to write
    waits, cycles, written = list[float](), list[float](), 0

    def admit(limit: int, moment: float) -> None:
        writer = Writer.begin(model, PROMPT + limit)
        writer.add([0] * PROMPT)
        writer.begin_answer()
        key = engine.admit(ScheduledText(writer, MODES[name], limit))
        come[key], left[key] = moment, limit

    with torch.inference_mode():
        for place in range(sessions):
            admit(max(1, length * (place + 1) // sessions), 0.0)
        for key, made in engine.tick().items():
            left[key] -= len(made)
        come.clear()  # that all come in together is no example
        began = now = time.perf_counter()
        while written < sessions * count:
            before, told = now, engine.tick()
            now = time.perf_counter()
            cycles.append(now - before)
            waits += [now - come.pop(key) for key in told if key in come]
            written += sum(map(len, told.values()))
            for key, made in told.items():
                left[key] -= len(made)
            for key in [key for key, rest in left.items() if rest <= 0]:
                del left[key]
                admit(length, random.uniform(before, now))
    return Together(name, sessions, written / (now - began), below(cycles), below(waits))


def below(values: Sequence[float], share: float = 0.95) -> float:
    """The smallest of the values that so large a share of them does not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


# -------------------------------------------------------------------------------------------------------------- memory
@dataclass(frozen=True)
class Memory:
    """Bytes of weights that one pass reads, and how many bytes a second this machine's memory yields."""

    backbone: int
    module: int
    bandwidth: float
    cache: int | None  # of the processor; what fits there is not read from memory


def measure_memory(weights: Mapping[str, Tensor], stream: int = STREAM, form: Weights = "float32") -> Memory:
    """What a pass of the backbone and of a module reads of a state dict, each with the head, and how quickly; ``form``:
    what matrices are rounded to."""
    backbone, module, head = (
        sum(_bytes(tensor, form) for key, tensor in weights.items() if key.startswith(room))
        for room in ("decoder.", "mctp.0.", "head.")
    )
    speed = read_speed(weights["head.weight"].device, stream)
    return Memory(backbone + head, module + head if module else 0, speed, cache_size())


def _bytes(tensor: Tensor, form: Weights) -> int:
    """Of 4 bits, each group of 32 has two numbers of 16 bits beside; of 8, each row one of 32."""
    if tensor.dim() < 2 or form == "float32":
        return tensor.nbytes
    return tensor.numel() + 4 * tensor.shape[0] if form == "int8" else 20 * tensor.numel() // 32


def read_speed(device: torch.device, size: int = STREAM, repeats: int = 8) -> float:
    """Bytes a second at which ``size`` bytes are read, the best of a sum and a product of matrix and vector."""
    free = free_memory() if device.type == "cpu" else None
    columns = 4096
    rows = max(1, (size if free is None else min(size, free // 4)) // (4 * columns))
    best = math.inf
    with torch.inference_mode():
        matrix, vector = torch.ones(rows, columns, device=device), torch.ones(columns, device=device)
        for read in (matrix.sum, lambda: matrix.mv(vector)):
            for _ in range(repeats):
                wait(device)
                began = time.perf_counter()
                read()
                wait(device)
                best = min(best, time.perf_counter() - began)
    return matrix.nbytes / best


def cache_size() -> int | None:
    """Bytes of the processor's last cache; None where the system does not tell."""
    units, found = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}, list[int]()
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text("ascii").strip()
        if text[:-1].isdigit() and text[-1:] in units:
            found.append(int(text[:-1]) * units[text[-1]])
    return max(found, default=None)


def processor() -> str:
    """The processor's name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


# -------------------------------------------------------------------------------------------------------------- tables
@dataclass(frozen=True)
class Timing:
    """One mode: medians over runs, in seconds; ``of_vanilla``: how many times as quick as our Vanilla, where that was
    measured too; ``each``: every run's seconds. Of the reference the same, and ``agree``: how many tokens from the
    first on it writes as we do, where it has our weights and its modules read what ours read."""

    mode: str
    seconds: float
    passes: int
    drafts: int
    of_vanilla: float | None
    each: tuple[float, ...]
    reference: Timing | None = None
    agree: int | None = None


def timings(
    runs: Mapping[str, Mapping[str, Sequence[Run]]], seconds: Callable[[Run], float], comparable: bool
) -> list[Timing]:
    """One row a mode from what :func:`measure` gives; ``seconds`` says which time of a run counts."""
    ours, theirs = runs["ours"], runs.get("reference")
    vanilla = median(map(seconds, ours["vanilla"])) if "vanilla" in ours else None

    def row(mode: str, found: Sequence[Run], reference: Timing | None = None, agree: int | None = None) -> Timing:
        each = tuple(map(seconds, found))
        middle, last = median(each), found[-1]
        ratio = None if vanilla is None else vanilla / middle
        return Timing(mode, middle, last.passes, last.drafts, ratio, each, reference, agree)

    rows = []
    for mode, found in ours.items():
        beside = None if theirs is None else row(mode, theirs[mode])
        agree = None
        if theirs is not None and comparable:
            agree = agreement(found[-1].tokens, theirs[mode][-1].tokens)
        rows.append(row(mode, found, beside, agree))
    return rows


def agreement(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many tokens from the first on are the same."""
    pairs = list(zip(ours, theirs, strict=False))
    return next((number for number, (one, other) in enumerate(pairs) if one != other), len(pairs))


@dataclass(frozen=True)
class Floor:
    """One mode: bytes of weights that a token costs, the seconds in which memory yields them, and the share of that
    speed which our run reached."""

    mode: str
    bytes: float
    seconds: float
    reached: float


def floors(memory: Memory, rows: Sequence[Timing], count: int) -> list[Floor]:
    """What memory allows, from the passes of long runs of ``count`` tokens."""
    found = []
    for row in rows:
        each = (row.passes * memory.backbone + row.drafts * memory.module) / count
        least = each / memory.bandwidth
        found.append(Floor(row.mode, each, least, least / (row.seconds / count)))
    return found


# ----------------------------------------------------------------------------------------------------------- reference
def check_reference(python: str | None, folder: Path | None) -> None:
    """ConfigError where the reference's interpreter or code is not there; both may be left out."""
    if python is None and folder is None:
        return
    if python is None or folder is None:
        raise ConfigError("--reference PYTHON and --reference-code FOLDER go together; give both")
    if shutil.which(python) is None:
        raise ConfigError(f"there is no interpreter {python}; make its environment as docs/bench.md says")
    if not (folder / CODE).is_file():
        raise ConfigError(f"{folder} does not hold the authors' code ({CODE} is missing); clone their repository there")


@dataclass
class Reference:
    """The authors' model in a process of its own; ``same_weights``: it has been given ours."""

    process: subprocess.Popen[str]
    errors: Path
    same_weights: bool
    versions: Mapping[str, str]

    def write(self, mode: Sequence[int], count: int) -> Run:
        told = self.ask({"mode": list(mode), "prompt": PROMPT, "tokens": count})
        return Run(told["first"], told["seconds"], told["tokens"], told["passes"], told["drafts"])

    def ask(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Send a line, wait for a line."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(wanted) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it is said below why
        line = self.process.stdout.readline()
        told = json.loads(line) if line.startswith("{") else {"error": self._last_words()}
        if "error" in told:
            reason = " ".join(str(told["error"]).split())[:300]
            raise ConfigError(f"the reference does not run ({reason}); make its environment as docs/bench.md says")
        return told

    def _last_words(self) -> str:
        lines = self.errors.read_text("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "it ended without a word"


@contextmanager
def reference(
    python: str, folder: Path, config: VITAAudioConfig, weights: Mapping[str, Tensor], shared: int = SHARED
) -> Iterator[Reference]:
    """The reference at the sizes of a model of ours, with its weights where these take at most ``shared`` bytes, on the
    same device and with as many threads."""
    script, device = Path(__file__).with_name("vita_audio_reference.py"), weights["head.weight"].device
    same = sum(tensor.nbytes for tensor in weights.values()) <= shared
    with tempfile.TemporaryDirectory() as scratch:
        file, errors = Path(scratch) / "model.safetensors", Path(scratch) / "errors.txt"
        if same:
            c = config.decoder
            layout = transformers(c.n_heads, c.n_kv_heads, c.n_layers, config.modules)
            exported = export_weights(layout, weights)
            save_file({key: tensor.contiguous() for key, tensor in exported.items()}, file)
            del exported
        with errors.open("w", encoding="utf-8") as said:
            process = subprocess.Popen(
                [python, str(script), str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
                text=True, encoding="utf-8",
            )  # fmt: skip
        try:
            beside = Reference(process, errors, same, {})
            told = beside.ask({
                "config": reference_config(config), "weights": str(file) if same else None,
                "dtype": _name(weights["head.weight"].dtype), "device": str(device),
                "threads": torch.get_num_threads(), "seed": 0,
            })  # fmt: skip
            beside.versions = told["versions"]
            file.unlink(missing_ok=True)
            yield beside
        finally:
            process.kill()
            process.communicate()


def reference_config(config: VITAAudioConfig) -> dict[str, Any]:
    """The sizes in the names of the authors' configuration class."""
    c = config.decoder
    return {
        "vocab_size": config.vocab_size, "hidden_size": c.dim, "intermediate_size": c.ffn_dim,
        "num_hidden_layers": c.n_layers + config.modules, "num_nextn_predict_layers": config.modules,
        "num_attention_heads": c.n_heads, "num_key_value_heads": c.n_kv_heads, "hidden_act": "silu",
        "max_position_embeddings": c.context, "rms_norm_eps": c.norm_eps, "rope_theta": c.rope_base,
        "use_sliding_window": False, "tie_word_embeddings": False, "attention_dropout": 0.0,
    }  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- all of it
@dataclass(frozen=True)
class Plan:
    """What is to be measured: modes by name, tokens of a long run, how many texts at once, how often a block and a long
    run are repeated, bytes to read for the memory's speed, what matrices are rounded to; the interpreter and the code
    of a reference, if there is one."""

    modes: Mapping[str, Sequence[int]]
    tokens: int
    sessions: Sequence[int] = ()
    chunks: int = 9
    runs: int = 3
    stream: int = STREAM
    weights: Weights = "float32"
    python: str | None = None
    code: Path | None = None


@dataclass(frozen=True)
class Result:
    """What was measured, ready to be printed."""

    parameters: int
    dtype: str
    processor: str
    threads: int
    torch: str
    kernels: str  # whether the C kernels may be used
    reference: Mapping[str, str] | None  # versions of its packages
    comparable: bool  # whether the reference must write the same tokens
    tokens: int
    chunk: Sequence[Timing]
    run: Sequence[Timing]
    memory: Memory
    floor: Sequence[Floor]
    together: Sequence[Together]


def bench(config: VITAAudioConfig, device: torch.device, plan: Plan, report: Report) -> Result:
    """Measure a model of random weights, and in turns with it the reference, if there is one."""
    report("random weights", 0, 1)
    weights = random_weights(config, device)
    parameters, dtype = sum(tensor.numel() for tensor in weights.values()), _name(weights["head.weight"].dtype)
    memory = measure_memory(weights, plan.stream, plan.weights)
    with ExitStack() as stack:
        beside = None
        if plan.python is not None and plan.code is not None:
            report("the reference", 0, 1)
            beside = stack.enter_context(reference(plan.python, plan.code, config, weights))
        model = ready_model(config, weights, plan.weights)
        who: dict[str, Writes] = {"ours": Ours(model)}
        if beside is not None:
            who["reference"] = beside
        measure(who, plan.modes, min(WARM, plan.tokens), 1, report)
        # modules that read the end of the prompt only write something else
        same = beside is not None and beside.same_weights and config.module_reads is None
        same = same and plan.weights == "float32"
        chunk = timings(measure(who, plan.modes, CHUNK, plan.chunks, report), lambda run: run.first, same)
        run = timings(measure(who, plan.modes, plan.tokens, plan.runs, report), lambda run: run.seconds, same)
    many, wanted = list[Together](), [(mode, count) for mode in plan.modes for count in plan.sessions]
    for number, (mode, sessions) in enumerate(wanted):
        report("texts at once", number, len(wanted))
        many.append(together(model, mode, plan.tokens, sessions))
    return Result(
        parameters=parameters, dtype=dtype if plan.weights == "float32" else plan.weights,
        processor=torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        threads=torch.get_num_threads(), torch=torch.__version__, kernels=native.status(),
        reference=beside and dict(beside.versions), comparable=same, tokens=plan.tokens, chunk=chunk, run=run,
        memory=memory, floor=floors(memory, run, plan.tokens), together=many,
    )  # fmt: skip


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
