"""The pages say what is so: every command in them runs, every table is as generated, every link leads somewhere.

A page's commands run one after another in this process, in a folder that holds the files they name. Fences:

    ```console           runs with random tiny models, and with published weights under the marker ``weights``
    ```console weights   runs with published weights only (the answer depends on them)
    ```console error     must be refused with exit code 2 and exactly the line that is printed below the command
    ```console no-test   is not run, for a reason given in NOT_RUN

``viva talk`` always counts as ``weights``: random weights never hear a question end. Commands of other programs are not
run, for a reason in NOT_RUN.
"""

from __future__ import annotations

import importlib.util
import io
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.own_records import write_records, write_talk
from tests.spoken import write_corpus
from vivavoce import talking
from vivavoce.checkpoints import store
from vivavoce.cli import VERBS, main
from vivavoce.talking import question_file

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    path
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
    if path.is_file()
]
PUBLISHED = ("whisper-tiny.en", "whisper-base", "vits-joe", "silero-vad", "smollm2-135m-instruct")
FENCE = re.compile(r"^```(\w+)?([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)

# Commands that no test runs, by what they contain, and why.
NOT_RUN = {
    "--mic": "needs a microphone",
    "--play": "needs a loudspeaker",
    "aplay": "needs a loudspeaker",
    "arecord": "needs a microphone",
    "--llm": "needs a server that runs a text model",
    "pull": "fetches from the package registry",
    "--from": "needs a published file at hand",
    "Downloads": "needs a published file at hand",
    "make": "makes an environment of its own",
    "pip install": "makes an environment of its own",
    "git clone": "fetches the source",
    "--device cuda": "needs a GPU",
    "pytest": "is the tests themselves",
    "python": "is run by a test of its own",
    "viva rm": "would remove weights from the cache",
    "ffmpeg": "needs another program",
    "viva train": "takes hours",
    "tuned/model": "is run by tests/cli/test_finetune.py: the model is not one of those in the cache",
    "--tokens 4096": "takes minutes",
    "--reference": "needs the authors' code and an environment for it",
    "torchrun": "is run by tests/train/test_parallel.py",
    "~/viva-runs/talk": "needs a model that somebody trained",
    "nano_talk": "needs parts that somebody trained",
}


@dataclass(frozen=True)
class Command:
    line: str
    kind: str
    shown: tuple[str, ...]  # the lines printed below it


def blocks(page: Path, language: str) -> Iterator[tuple[str, str]]:
    """(rest of the fence's first line, text) of the fenced blocks of one language."""
    for found in FENCE.finditer(page.read_text("utf-8")):
        if found[1] == language:
            yield found[2].strip(), found[3]


def commands(page: Path) -> list[Command]:
    made: list[Command] = []
    for kind, text in blocks(page, "console"):
        for line in text.splitlines():
            if line.startswith("$ "):
                command = line[2:].split("  #")[0].strip()
                made.append(Command(command, _kind(command, kind), ()))
            elif line.strip():
                last = made.pop()
                made.append(Command(last.line, last.kind, (*last.shown, line)))
    return made


def _kind(command: str, kind: str) -> str:
    if not kind and "viva " not in command:
        return "no-test"
    return "weights" if not kind and command.startswith("viva talk") else kind


def desk_of(folder: Path, seconds: float | None = None) -> None:
    """The files that the pages speak of; ``seconds`` cuts the sounds short where only the command is at stake."""
    question, rate = soundfile.read(question_file(), dtype="float32")
    wave = question if seconds is None else question[rate // 2 :][: int(seconds * rate)]
    for name in ("question.wav", "question.flac", "talk.mp3", "interview.wav", "interview.mp3", "lecture.ogg"):
        soundfile.write(folder / name, wave, rate)
    (folder / "podcasts").mkdir()
    for name in ("one.wav", "two.wav"):
        soundfile.write(folder / "podcasts" / name, wave, rate)
    (folder / "story.txt").write_text("Once there was a clock. It ran too fast.\n", "utf-8")
    soundfile.write(folder / "broken.wav", question, rate)
    (folder / "broken.wav").write_bytes((folder / "broken.wav").read_bytes()[:20_000])
    (folder / "notes.txt").write_text("buy milk\n", "utf-8")
    soundfile.write(folder / "silence.wav", np.zeros(16_000, np.float32), 16_000)
    write_corpus(folder / "corpus")


def records_of(page: Path, folder: Path) -> None:
    """The records and the model that a page about tuning speaks of."""
    if "data.jsonl" in page.read_text("utf-8"):
        write_records(folder)
        write_talk(folder / "talk", modules=3)


def run(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> tuple[int, str]:
    """Exit code and standard error of ``viva ...`` or of ``cat FILE | viva ...``, ``echo TEXT | viva ...``."""
    before, _, line = command.line.rpartition("| ") if "| " in command.line else ("", "", command.line)
    words = shlex.split(line)
    assert words[0] == "viva", command.line
    given = b""
    if before:
        tool, *what = shlex.split(before)
        assert tool in ("cat", "echo"), f"the test cannot run {tool}"
        given = Path(what[0]).read_bytes() if tool == "cat" else (" ".join(what) + "\n").encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), "utf-8"))
    with pytest.raises(SystemExit) as left:
        main(words[1:])
    _, error = capsysbinary.readouterr()
    return int(left.value.code or 0), error.decode()


def run_page(page: Path, kinds: tuple[str, ...], monkeypatch, capsysbinary) -> None:
    chosen = [command for command in commands(page) if command.kind in kinds]
    if not chosen:
        pytest.skip("no commands of this kind")
    for command in chosen:
        code, error = run(command, monkeypatch, capsysbinary)
        if command.kind == "error":
            assert code == 2, command.line
            assert error.strip().splitlines() == list(command.shown), command.line
        else:
            assert code == 0, f"{command.line}: {error}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_run(page: Path, desk: Path, monkeypatch, capsysbinary) -> None:
    desk_of(desk, seconds=0.4)
    records_of(page, desk)
    run_page(page, ("", "error"), monkeypatch, capsysbinary)


@pytest.mark.weights
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_run_with_published_weights(page: Path, tmp_path: Path, monkeypatch, capsysbinary) -> None:
    _published_or_skip()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIVA_TEXT_MODEL", "smollm2-135m-instruct")  # the smallest: this is about the commands
    desk_of(tmp_path)
    records_of(page, tmp_path)
    run_page(page, ("", "weights"), monkeypatch, capsysbinary)


@pytest.mark.weights
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_runs_with_published_weights(page: Path, tmp_path: Path, monkeypatch) -> None:
    _published_or_skip()
    code = [text for kind, text in blocks(page, "python") if kind != "no-test"]
    if not code:
        pytest.skip("no Python on this page")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(talking, "TEXT_MODELS", ("smollm2-135m-instruct",))  # the smallest, as above
    desk_of(tmp_path)
    space: dict[str, object] = {"__name__": "page"}
    for text in code:
        exec(compile(text, str(page), "exec"), space)


def _published_or_skip() -> None:
    missing = [name for name in PUBLISHED if name not in store.installed()]
    if missing:
        pytest.skip(f"not in the cache: {', '.join(missing)}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_not_run_has_a_reason(page: Path) -> None:
    for command in commands(page):
        assert command.kind in ("", "weights", "error", "no-test"), command
        if command.kind == "no-test":
            assert any(mark in command.line for mark in NOT_RUN), f"no reason is given for {command.line!r}"
    for kind, text in blocks(page, "python"):
        assert kind in ("", "no-test")
        compile(text, str(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text("utf-8")):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), target
    for name in re.findall(r"`((?:src|tests|docs|benchmarks)/[\w./]+)`", page.read_text("utf-8")):
        assert (ROOT / name).exists() or "newvoice" in name, name  # the example in CONTRIBUTING.md


def test_tables_are_as_generated() -> None:
    """``make docs`` writes them anew."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    sys.modules["generate"] = generate
    spec.loader.exec_module(generate)
    pages = generate.pages()
    assert pages
    for path, text in pages.items():
        assert path.read_text("utf-8") == text, f"{path.name} has drifted: run  make docs"


def test_every_verb_and_variable_is_told() -> None:
    told = "\n".join(page.read_text("utf-8") for page in (ROOT / "docs").glob("*.md"))
    for verb in VERBS:
        assert f"viva {verb}" in told, verb
    source = "\n".join(path.read_text("utf-8") for path in (ROOT / "src").rglob("*.py"))
    used = set(re.findall(r"\bVIVA_[A-Z_]+\b", source))
    listed = set(re.findall(r"^\| `(VIVA_[A-Z_]+)`", (ROOT / "docs" / "errors.md").read_text("utf-8"), re.MULTILINE))
    assert used <= listed, used - listed


def test_every_option_of_a_verb_is_on_a_page() -> None:
    """A page that explains a verb names every option that its command line has."""
    import typer

    from vivavoce.cli import make_app

    told = "\n".join(page.read_text("utf-8") for page in (ROOT / "docs").glob("*.md"))
    group = typer.main.get_command(make_app())
    for verb, command in group.commands.items():  # pyright: ignore[reportAttributeAccessIssue]
        for parameter in command.params:
            for option in parameter.opts:
                if option.startswith("--") and option not in ("--help", "--verbose"):
                    assert option in told, f"{verb} {option}"
