"""The layers: a file imports only what lies below it, and rooms of one layer are apart but for declared edges."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import vivavoce
from vivavoce.catalogue import CATALOGUE

SOURCE = Path(str(vivavoce.__file__)).parent
LAYERS = (
    ("nn", "audio", "text", "state", "config", "errors"),
    ("codecs", "vocoders", "detect", "checkpoints", "search", "align"),
    ("asr", "tts", "dialogue", "lm"),
    (
        "catalogue",
        "inspection",
        "conversions",
        "turns",
        "vita_audio_verbs",
        "api",
        "talking",
    ),  # each may use those before it
    ("train", "evaluate"),
    ("recipes",),
    ("cli",),
)
# What converses asks a language model of its own layer.
DECLARED = {("dialogue", "lm")}
FREE = {"errors", "config", "state"}  # the ground of the ground


def room_of(module: str) -> str:
    return module.split(".")[1]


def layer_of(room: str) -> int:
    return next(number for number, rooms in enumerate(LAYERS) if room in rooms)


def imports(path: Path) -> set[str]:
    """Modules of this project that a file imports at run time, also inside functions."""
    tree = ast.parse(path.read_text("utf-8"))
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} if node.module else set()
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith("vivavoce.")}


def files() -> dict[str, Path]:
    return {
        ".".join(("vivavoce", *path.relative_to(SOURCE).with_suffix("").parts)): path for path in SOURCE.rglob("*.py")
    }


def test_imports_point_down() -> None:
    declared = set(DECLARED)
    rooms = {row.stem: row.room for row in CATALOGUE}
    for row in CATALOGUE:
        declared |= {(row.room, rooms[other]) for other in (*row.parts, *row.lineage)}
    wrong = []
    for module, path in files().items():
        if module == "vivavoce.__init__":
            continue
        room = room_of(module)
        for name in imports(path):
            other = room_of(name)
            there = (SOURCE / other).exists() or (SOURCE / f"{other}.py").exists()
            if other in FREE or other == room or not there:
                continue
            ours, theirs = layer_of(room), layer_of(other)
            allowed = theirs < ours or (room, other) in declared
            if ours == theirs == 3:
                allowed = LAYERS[3].index(other) < LAYERS[3].index(room)
            if not allowed:
                wrong.append(f"{module} -> {name}")
    assert not wrong, wrong


def test_every_file_lies_in_a_layer() -> None:
    assert {room_of(module) for module in files() if module != "vivavoce.__init__"} <= {
        room for rooms in LAYERS for room in rooms
    }


def test_declared_edges_have_no_cycle() -> None:
    edges = {row.stem: (*row.parts, *row.lineage) for row in CATALOGUE}

    def visit(stem: str, above: tuple[str, ...]) -> None:
        assert stem not in above, f"{' -> '.join((*above, stem))}"
        for other in edges[stem]:
            visit(other, (*above, stem))

    for stem in edges:
        visit(stem, ())


def test_only_checkpoints_read_pickles_and_nothing_evaluates() -> None:
    """torch.load and pickle belong to checkpoints/; eval, exec and yaml belong nowhere."""
    for module, path in files().items():
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), module
            if isinstance(node, ast.Attribute) and node.attr == "load" and getattr(node.value, "id", "") == "torch":
                assert room_of(module) == "checkpoints", module
            assert not FORBIDDEN & packages(node), module


FORBIDDEN = {"pickle", "yaml", "dill", "torchaudio", "librosa", "transformers"}


def packages(node: ast.AST) -> set[str]:
    """The packages that a statement imports from."""
    if isinstance(node, ast.ImportFrom):
        return {(node.module or "").partition(".")[0]}
    return {alias.name.partition(".")[0] for alias in node.names} if isinstance(node, ast.Import) else set()


@pytest.mark.parametrize("line", ["import pickle", "import json, pickle as p", "from pickle import loads",
                                  "from transformers.models import whisper", "import yaml.loader"])  # fmt: skip
def test_every_form_of_an_import_is_seen(line: str) -> None:
    assert FORBIDDEN & packages(ast.parse(line).body[0])


def test_declared_rooms_and_edges_are_there() -> None:
    there = {room_of(module) for module in files() if module != "vivavoce.__init__"}
    assert there == {room for rooms in LAYERS for room in rooms}
    used = {(room_of(module), room_of(name)) for module, path in files().items() if module != "vivavoce.__init__"
            for name in imports(path)}  # fmt: skip
    assert used >= DECLARED


def test_model_files_know_no_command_line() -> None:
    """A file of a part or system prints nothing and reads no arguments."""
    for module, path in files().items():
        if module != "vivavoce.__init__" and layer_of(room_of(module)) <= 2:
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    assert node.func.id != "print", module
                if isinstance(node, ast.Attribute):
                    assert node.attr != "argv", module
