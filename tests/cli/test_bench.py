"""``viva bench``: what it prints, what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.evaluate.stand_in import write_stand_in
from vivavoce.cli import main
from vivavoce.dialogue.vita_audio import VITAAudioConfig
from vivavoce.evaluate import vita_audio_speed as speed


@pytest.fixture
def viva(desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run ``viva bench ...`` in this process, where sizes are tiny and memory has a known speed: (exit code, stdout,
    stderr)."""
    monkeypatch.setattr(speed, "SIZES", dict.fromkeys(("28x192", "nano"), speed.Size(VITAAudioConfig.tiny(), 22)))
    monkeypatch.setattr(speed, "read_speed", lambda device, size: 5e9)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(["bench", *arguments])
        shown = capsys.readouterr()
        return int(left.value.code or 0), shown.out, shown.err

    return run


def test_tables(viva) -> None:
    code, out, err = viva("vita_audio", "--sessions", "1, 3")
    assert code == 0 and err == ""
    blocks = out.split("\n\n")
    assert blocks[4].startswith("Conversations at once;")
    rows = [row.split() for row in blocks[4].splitlines()[2:]]
    assert [row[:2] for row in rows[-2:]] == [["turbo", "1"], ["turbo", "3"]] and rows[-2][3] == "1.00"
    assert blocks[0].startswith("VITA-Audio 28x192: ") and "random parameters in float32" in blocks[0]
    assert "threads: 1" in blocks[0]
    for block, title in zip(blocks[1:3], ("Time to the first block of speech", "A run of 22 tokens"), strict=True):
        said, heads, *rows = block.splitlines()
        assert said.startswith(title) and "reference" not in heads
        assert [row.split()[0] for row in rows] == ["vanilla", "balance", "boost", "turbo"]
        assert rows[0].split()[-1] == "1.00"
    assert blocks[2].splitlines()[2].split()[3:5] == ["22", "0"]  # passes of the backbone and of modules
    assert "memory yields 5.0 GB/s" in blocks[3] and blocks[3].splitlines()[-1].endswith("%")


def test_one_mode_as_json(viva) -> None:
    code, out, err = viva(
        "vita_audio", "--size", "nano", "--mode", "turbo", "--tokens", "30", "--sessions", "0", "--json"
    )
    assert code == 0 and err == ""
    told = json.loads(out)
    assert (told["system"], told["size"], told["tokens"], told["dtype"]) == ("vita_audio", "nano", 30, "float32")
    (row,) = told["run"]
    assert row["mode"] == "turbo" and row["passes"] + row["drafts"] == 30 and row["of_vanilla"] is None
    assert len(row["each"]) == 3 and len(told["chunk"][0]["each"]) == 9 and row["reference"] is None
    assert told["memory"]["bandwidth"] == 5e9 and told["floor"][0]["reached"] > 0 and told["reference"] is None
    assert told["together"] == []


def test_the_reference_stands_beside(viva, desk: Path) -> None:
    code = write_stand_in(desk / "code")
    given = ("--mode", "turbo", "--sessions", "0", "--reference", sys.executable, "--reference-code", str(code))
    left, out, err = viva("vita_audio", *given)
    assert left == 0 and err == ""
    assert "Beside it the authors' code (torch " in out
    heads, row = out.split("A run of 22 tokens\n")[1].splitlines()[:2]
    assert heads.split("  ")[-1] == "same tokens" and "reference: tokens/s" in heads
    assert row.endswith("first 0")  # the stand-in writes something else


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("vits",), "'vits' cannot be measured; give vita_audio"),
        (
            ("vita_audio", "--size", "nanno"),
            "no size is called 'nanno' (did you mean 'nano'?); use one of 28x192, nano",
        ),
        (
            ("vita_audio", "--mode", "trubo"),
            "no mode is called 'trubo' (did you mean 'turbo'?); use one of all, vanilla, balance, boost, turbo",
        ),
        (("vita_audio", "--tokens", "10"), "a run of this size has 11 to 96 tokens, not 10; give another --tokens"),
        (("vita_audio", "--tokens", "97"), "a run of this size has 11 to 96 tokens, not 97; give another --tokens"),
        (
            ("vita_audio", "--sessions", "1,many"),
            "--sessions takes numbers such as 1,4,16 up to 1024, or 0 for none, not '1,many'",
        ),
        (
            ("vita_audio", "--sessions", "1,0"),
            "--sessions takes numbers such as 1,4,16 up to 1024, or 0 for none, not '1,0'",
        ),
        (
            ("vita_audio", "--reference", "python"),
            "--reference PYTHON and --reference-code FOLDER go together; give both",
        ),
        (
            ("vita_audio", "--reference", sys.executable, "--reference-code", "nowhere"),
            f"nowhere does not hold the authors' code ({speed.CODE} is missing); clone their repository there",
        ),
        (
            ("vita_audio", "--reference", "no-interpreter", "--reference-code", "nowhere"),
            "there is no interpreter no-interpreter; make its environment as docs/bench.md says",
        ),
        (("vita_audio", "--device", "tpu"), "there is no device 'tpu'; use cpu or cuda"),
    ],
)
def test_what_is_wrong_is_one_sentence(viva, given: tuple[str, ...], said: str) -> None:
    assert viva(*given) == (2, "", f"viva: {said}\n")


def test_what_does_not_fit_is_not_allocated(viva, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "free_memory", lambda: 1000)
    monkeypatch.setattr(speed, "random_weights", lambda *given: pytest.fail("weights were made"))
    code, out, err = viva("vita_audio")
    assert code == 2 and out == "" and "0.0 MB of memory are free" in err and err.count("\n") == 1
