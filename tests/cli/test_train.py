"""``viva train``: the chain of recipes at tiny sizes, going on, stopping, and what is refused."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.spoken import write_corpus
from vivavoce.cli import main
from vivavoce.recipes import catalogue

TOKENIZER = ("--set", "size=tiny", "--set", "whisper=none", "--set", "budget_s=4", "--set", "steps=4")


@pytest.fixture(scope="module")
def desk_of_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus, in which the runs of a chain may lie."""
    folder = tmp_path_factory.mktemp("desk")
    write_corpus(folder / "corpus")
    return folder


@pytest.fixture
def viva(desk_of_runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run ``viva train ...`` in this process and in that folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(desk_of_runs)
    monkeypatch.setenv("HOME", str(desk_of_runs / "home"))
    monkeypatch.setenv("VIVA_THREADS", "1")

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(["train", *arguments])
        shown = capsys.readouterr()
        return int(left.value.code or 0), shown.out, shown.err

    return run


def rows(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_the_chain(viva, desk_of_runs: Path) -> None:
    """Each recipe finds what the one before left; nothing is printed to standard error but in need."""
    corpus = ("--corpus", "corpus")
    code, out, err = viva("glm4_tokenizer", *corpus, *TOKENIZER, "--set", "evaluate_every=2", "--json")
    assert code == 0 and err == ""
    *told, last = rows(out)
    assert [row["step"] for row in told] == [2, 4] and "wer_digits" in told[0]["evaluation"]
    assert last["step"] == last["steps"] == 4 and last["evaluation"] == told[-1]["evaluation"]
    runs = desk_of_runs / "home" / "viva-runs"
    assert Path(last["model"]) == runs / "glm4_tokenizer" / "model" and Path(last["run"]) == runs / "glm4_tokenizer"

    tiny = ("--set", "size=tiny", "--set", "steps=1")
    code, out, err = viva("glm4_decoder", *corpus, *tiny)
    assert code == 0 and err == "" and out == f"{runs / 'glm4_decoder' / 'model'}\n"
    code, out, err = viva("hift", *corpus, *tiny, "--set", "rows=2", "--set", "frames=20")
    assert code == 0 and err == "" and (runs / "hift" / "model" / "model.safetensors").is_file()
    code, out, err = viva("vita_audio", *corpus, *tiny, "--set", "sets=teacher,digits")
    assert code == 0 and err == "" and out.startswith(str(runs / "vita_audio-1"))
    code, out, err = viva("vita_audio", *corpus, *tiny, "--set", "sets=teacher,digits", "--set", "stage=2")
    assert code == 0 and err == "" and (runs / "vita_audio-2" / "checkpoint.safetensors").is_file()


def test_it_stops_and_goes_on_to_the_same_weights(viva, desk_of_runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vivavoce.recipes.glm4_tokenizer import TokenizerRecipe

    given = ("glm4_tokenizer", "--corpus", "corpus", *TOKENIZER)
    assert viva(*given, "--run", "whole")[0] == 0

    code, out, err = viva(*given, "--run", "timed", "--minutes", "0", "--json")
    assert code == 0 and rows(out)[-1]["step"] == 1
    again = f"viva train glm4_tokenizer --corpus corpus --run timed {' '.join(TOKENIZER)} --resume"
    assert err == f"viva: stopped and saved at step 1 of 4; go on with  {again}\n"
    assert viva(*again.split()[2:])[0] == 0

    loss = TokenizerRecipe.loss
    with monkeypatch.context() as patch:
        patch.setattr(
            TokenizerRecipe, "loss", lambda own, step: (step == 1 and signal.raise_signal(2), loss(own, step))[1]
        )
        code, out, err = viva(*given, "--run", "pressed")
    assert code == 130 and out == "" and err.startswith("viva: stopped; go on with  viva train glm4_tokenizer --corpus")
    assert viva(*err.strip().partition("viva train ")[2].split())[0] == 0

    whole, *others = (
        load_file(desk_of_runs / name / "checkpoint.safetensors") for name in ("whole", "timed", "pressed")
    )
    for other in others:
        assert all(torch.equal(whole[name], other[name]) for name in whole)


def test_recipes_and_options_are_listed(viva) -> None:
    out = viva()[1]
    assert all(name in out for name in catalogue.RECIPES) and "--options" in out
    assert [row["name"] for row in rows(viva("--json")[1])[0]] == list(catalogue.RECIPES)
    for name, row in catalogue.RECIPES.items():
        listed = {found["name"]: found for found in rows(viva(name, "--options", "--json")[1])[0]}
        assert {"steps", "seed"} <= listed.keys()
        defaults = [f"{key}={found['default']}" for key, found in listed.items()]
        assert catalogue.options(row, defaults) == catalogue.options_class(row)()
    out = viva("vita_audio", "--options")[1]
    assert "1 or 2 or 3 or 4" in out and "teacher,questions,digits" in out and "sets: of the corpus" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("hifd",), "there is no recipe 'hifd' (did you mean 'hift'?); use glm4_tokenizer, hift, "),
        (("hift", "--set", "stepz=3"), "hift has no option 'stepz' (did you mean 'steps'?); `viva train hift --opt"),
        (("hift", "--set", "steps"), "--set takes name=value, not 'steps'; for example --set steps=500"),
        (("hift", "--set", "steps=many"), "steps must be a whole number, not 'many'"),
        (("hift", "--set", "rate=-1"), "rate must lie between 0 and"),
        (("hift", "--set", "rate=nan"), "rate must lie between 0 and"),
        (("hift", "--set", "steps=0"), "steps must be 1 or more, not 0"),
        (("hift", "--set", "size=huge"), "size must be one of nano, tiny, not 'huge'"),
        (("hift", "--corpus", "nowhere"), "nowhere holds no corpus; name one with --corpus, or make one as "),
        (("hift", "--resume"), "holds no run to go on with; leave --resume out"),
        (("hift", "--set", "voice=nobody"), "nobody holds no set of utterances"),
        (
            ("glm4_decoder", "--set", "tokenizer=nowhere"),
            "there is no tokenizer in nowhere; train one first:  viva train",
        ),
        (("glm4_tokenizer", "--set", "whisper=whisper-baze"), "(did you mean 'whisper-base'?)"),
        (("vita_audio", "--set", "stage=2", "--set", "tokenizer=corpus"), "there is no tokenizer in corpus"),
    ],
)
def test_what_cannot_be_is_one_sentence(viva, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    where = () if "--corpus" in arguments else ("--corpus", "corpus")
    code, out, err = viva(*arguments, *where, "--run", str(tmp_path / "run"), "--minutes", "0")
    assert code == 2 and out == "" and said in err and err.startswith("viva: ") and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_begun_twice_nor_gone_on_with_otherwise(viva) -> None:
    given = ("glm4_tokenizer", "--corpus", "corpus", "--run", "one", "--set", "size=tiny", "--set", "whisper=none")
    assert viva(*given, "--set", "steps=1")[0] == 0
    code, _, err = viva(*given, "--set", "steps=1")
    assert code == 2 and "one holds a run already; add --resume" in err
    code, _, err = viva(*given, "--set", "steps=2", "--resume")
    assert code == 2 and "has steps 1, not 2; use the same, or another folder" in err
