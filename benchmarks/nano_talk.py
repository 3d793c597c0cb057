"""nano-talk measured: digits of an unseen speaker, unseen takes of known ones, a voice held out of all training, what
the answers sound like; the four modes side by side; and the codec alone.

    python -m benchmarks.nano_talk tasks --corpus ~/viva-runs/corpus [--model nano-talk] [--limit 300] [--modes boost]
    python -m benchmarks.nano_talk tasks --corpus ~/viva-runs/corpus --verify exact 0.3 [--release early]
    python -m benchmarks.nano_talk heads --corpus ~/viva-runs/corpus
    python -m benchmarks.nano_talk codec --corpus ~/viva-runs/corpus
    python -m benchmarks.nano_talk latency --corpus ~/viva-runs/corpus [--verify exact]
    python -m benchmarks.nano_talk runs --corpus ~/viva-runs/corpus --runs RUN,TOKENIZER RUN,TOKENIZER

``runs`` compares runs of the recipe vita_audio by what they write, whole recordings given at once: for ablations, which
need no decoder. With ``--verify`` every mode that drafts is measured with verified drafts too; latency then states both
ways of releasing their sound, unless ``--release`` names one.

The corpus is that of the recipe spoken_corpus. No recording that is tested on is learned from; the questions that
training voices ask in the split test are, in nano-talk, so its held-out voice asks much that is known as text.
Intervals are 95 %, from resampling the utterances.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vivavoce.align.edit_distance import edits
from vivavoce.config import from_dict
from vivavoce.dialogue.vita_audio import VITAAudio, VITAAudioConfig
from vivavoce.dialogue.vita_audio_policies import Acceptance
from vivavoce.dialogue.vita_audio_prompts import (
    INTERLEAVES,
    VITATokens,
    answer_prompt,
    transcribe_prompt,
)
from vivavoce.dialogue.vita_audio_session import SpeechOut, VITAAudioParts, VITAAudioSession
from vivavoce.recipes.spoken_domain import answer_to
from vivavoce.recipes.vita_audio import answer
from vivavoce.recipes.vita_audio_records import Corpus, batch, make_tokenizer, records
from vivavoce.train.codes import read_tokenizer
from vivavoce.train.loop import ABOUT, restore
from vivavoce.train.utterances import Utterances
from vivavoce.vita_audio_verbs import Manner, converse, open_speech_model

MODES = ("vanilla", "balance", "boost", "turbo")


def interval(values: Sequence[tuple[float, float]], rounds: int = 1000) -> tuple[float, float, float]:
    """Ratio of sums in per cent, with the 95 % interval over resampled items (wrong or right, out of)."""
    if not values:
        return float("nan"), float("nan"), float("nan")
    draw, found = random.Random(0), []
    for _ in range(rounds):
        chosen = [values[draw.randrange(len(values))] for _ in values]
        found.append(sum(a for a, _ in chosen) / max(1e-9, sum(b for _, b in chosen)))
    found.sort()
    whole = sum(a for a, _ in values) / max(1e-9, sum(b for _, b in values))
    return 100 * whole, 100 * found[rounds // 40], 100 * found[-rounds // 40]


def told(values: Sequence[tuple[float, float]]) -> str:
    whole, low, high = interval(values)
    return f"{whole:.1f} [{low:.1f}-{high:.1f}]"


def transcribed(parts: VITAAudioParts, wave: torch.Tensor) -> str:
    session = VITAAudioSession(parts, mode="vanilla", task="transcribe")
    session.step(wave)
    for _ in session.answer():
        pass
    return session.result.text


def ways(modes: Iterable[str], verify: Iterable[str], release: Iterable[str], temperature: float) -> list[Manner]:
    """Every mode without verified drafts, then those that draft with them."""
    plain, drafting = [Manner(mode) for mode in modes], [mode for mode in modes if mode != "vanilla"]
    return plain + [
        Manner(mode, how, when, temperature if how == "sampled" else 0.0, seed=0)
        for how in verify for when in release for mode in drafting
    ]  # fmt: skip


def way_name(manner: Manner) -> str:
    return manner.mode if manner.verify is None else f"{manner.mode}, {manner.verify}, {manner.release}"


@dataclass
class Writing:
    """How answers were written: ``seconds`` without those of tokenizer, flow and vocoder; ``passes`` of the backbone
    for ``tokens``, of which ``codes`` are speech; ``runs``: how many drafts, how many stood; ``judged`` and
    ``accepted`` drafts of each module."""

    seconds: float = 0.0
    tokens: int = 0
    codes: int = 0
    passes: int = 0
    runs: list[tuple[int, int]] = field(default_factory=list)
    judged: list[int] = field(default_factory=lambda: [0] * 10)
    accepted: list[int] = field(default_factory=lambda: [0] * 10)

    def answer(self, parts: VITAAudioParts, wave: torch.Tensor, manner: Manner) -> tuple[str, torch.Tensor]:
        """Text and sound of an answer, as a listener in real time gets it when it comes as fast as it can."""
        session, sound = manner.session(parts, manner.generator()), torch.zeros(0)
        session.step(wave)
        tokenising, passes, began = session.tokenising, session.writer.passes, time.perf_counter()
        for reply in session.answer():
            void = sum(event.samples for event in reply.events)
            sound = sound[: len(sound) - void]
            if reply.wave_piece is not None:
                sound = torch.cat([sound, reply.wave_piece])
        other = session.tokenising - tokenising + sum(session.mouth.out.spent.values())
        self.seconds += time.perf_counter() - began - other
        self.passes += session.writer.passes - passes
        self.tokens, self.codes = self.tokens + len(session.result.writers), self.codes + len(session.result.codes)
        self._count(session.result.acceptance or Acceptance())
        return session.result.text, sound

    def _count(self, counts: Acceptance) -> None:
        self.runs += counts.runs
        for total, further in ((self.judged, counts.judged), (self.accepted, counts.accepted)):
            for number, count in enumerate(further):
                total[number] += count

    def told(self) -> str:
        speed, passes = self.tokens / max(1e-9, self.seconds), self.passes / max(1, self.codes)
        text = f"{speed:.0f} tokens/s, {passes:.2f} backbone passes an audio token"
        if not self.runs:
            return text
        stood = sum(accepted for _, accepted in self.runs) / len(self.runs)
        shares = " ".join(f"{100 * a / j:.0f}" if j else "-" for a, j in zip(self.accepted, self.judged, strict=True))
        return f"{text}, {stood:.1f} drafts stand of a run, by module {shares} %"


def test_sets(corpus: Path, limit: int) -> dict[str, tuple[Utterances, list[int]]]:
    """Name -> (set, numbers of its utterances)."""
    digits, held = Utterances(corpus / "digits"), Utterances(corpus / "heldout")

    def some(part: Utterances, split: str, keep: Callable[[dict[str, Any]], bool]) -> list[int]:
        found = part.select(split, keep)
        random.Random(1).shuffle(found)
        return sorted(found[:limit])

    plain = lambda row: row.get("skill") == "digits"  # noqa: E731
    return {
        "unseen speaker (digits)": (digits, some(digits, "test_unseen", plain)),
        "known speakers (digits)": (digits, some(digits, "test_known", plain)),
        "held-out voice": (held, some(held, "test", lambda row: True)),
    }


def tasks(
    parts: VITAAudioParts, corpus: Path, limit: int, manners: Sequence[Manner], judge: int, out: Path | None
) -> None:
    """Transcription by vanilla, answers in every manner, how fast they are written, and what they sound like."""
    rows: dict[str, Any] = {}
    for name, (part, chosen) in test_sets(corpus, limit).items():
        heard = []
        for number in chosen:
            text = transcribed(parts, part.wave(number))
            wanted = part.rows[number]["text"].split()
            heard.append((edits(text.split(), wanted), len(wanted)))
        rows[f"{name}: transcription, word error %"] = told(heard)
        print(f"{name}: transcription, word error % {told(heard)} ({len(heard)} utterances)", flush=True)
        asked = [number for number in chosen if part.rows[number].get("answer")]
        for manner in manners:
            mode, written = way_name(manner), Writing()
            right, short, by_skill, sounds = [], [], defaultdict(list), []
            for number in asked:
                row = part.rows[number]
                question = answer_to(row["text"])
                assert question is not None and question.answer == row["answer"]
                text, wave = written.answer(parts, part.wave(number), manner)
                good = float(text == row["answer"])
                right.append((good, 1))
                by_skill[row["skill"]].append((good, 1))
                if len(row["text"].split()) <= 3:
                    short.append((good, 1))
                if len(sounds) < judge and len(wave):
                    sounds.append((wave, text))
            print(f"{name}: answers right % in {mode} {told(right)}", flush=True)
            rows[f"{name}: answers right %, {mode}"] = told(right)
            rows[f"{name}: writing, {mode}"] = written.told()
            print(f"   {written.told()}", flush=True)
            if "digits" in name:
                rows[f"{name}: answers right %, 1 to 3 digits, {mode}"] = told(short)
                print(f"   1 to 3 digits {told(short)}", flush=True)
            else:
                skills = {skill: round(interval(v)[0], 1) for skill, v in sorted(by_skill.items())}
                rows[f"{name}: by skill, {mode}"] = skills
                print(f"   {skills}", flush=True)
            if sounds:
                agreed = spoken_agreement(sounds, parts.sample_rate)
                rows[f"{name}: words of the sound, {mode}"] = told(agreed)
                print(f"   words of the sound that agree with the text % {told(agreed)}", flush=True)
    if out is not None:
        out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


@torch.inference_mode()
def runs(pairs: Sequence[tuple[Path, Path]], corpus: Path, limit: int) -> None:
    """Transcription and answers as text of runs (folder of the run, of its tokenizer), by the backbone alone."""
    for run_folder, tokenizer_folder in pairs:
        tokenizer = read_tokenizer(tokenizer_folder).eval()
        tokens = VITATokens(make_tokenizer(tokenizer.config.codes))
        settings = json.loads((run_folder / ABOUT).read_text("utf-8"))["settings"]
        net = VITAAudio(from_dict(VITAAudioConfig, settings["config"])).eval()
        step = restore(run_folder, net)
        for name, (part, chosen) in test_sets(corpus, limit).items():
            heard, right = [], []
            for number in chosen:
                row = part.rows[number]
                codes = tokenizer(part.wave(number)[None]).values[0, 0].tolist()
                written = {}
                for task, messages in (("transcribe", transcribe_prompt()), ("answer", answer_prompt())):
                    prompt = tokens.prompt(messages, [codes])
                    speaking = task == "answer"
                    written[task], _ = answer(net, tokens, prompt, "vanilla", INTERLEAVES["boost"], speaking, 120)
                words = row["text"].split()
                heard.append((edits(written["transcribe"].split(), words), len(words)))
                if row.get("answer"):
                    right.append((float(written["answer"] == row["answer"]), 1))
            print(
                f"{run_folder.name} ({step} steps), {name}: transcription, word error % {told(heard)}, answers right % "
                f"{told(right)} ({len(chosen)} utterances)", flush=True,
            )  # fmt: skip


def spoken_agreement(sounds: list[tuple[torch.Tensor, str]], rate: int) -> list[tuple[float, float]]:
    """Words of the text that Whisper base hears in the sound."""
    found = []
    for wave, text in sounds:
        heard = hear(wave, rate).split()
        words = text.split()
        found.append((max(0, len(words) - edits(heard, words)), len(words)))
    return found


def hear(wave: torch.Tensor, rate: int) -> str:
    """What Whisper base writes down, as plain words; numerals are spelled."""
    import vivavoce
    from vivavoce.text.numbers import number_words

    quiet = torch.zeros(rate // 2)
    text = vivavoce.transcribe(
        torch.cat([quiet, wave, quiet]), rate, model="whisper-base", language="en", vad=False
    ).text
    words = []
    for word in "".join(c if c.isalnum() or c in "'-" else " " for c in text.lower()).replace("-", " ").split():
        words += number_words(int(word)).replace("-", " ").split() if word.isdigit() and len(word) < 3 else (
            [number_words(int(digit)) for digit in word] if word.isdigit() else [word]
        )  # fmt: skip
    return " ".join(words)


def heads(parts: VITAAudioParts, corpus: Path, limit: int) -> None:
    """Teacher-forced accuracy of backbone and modules over speech, and of whole blocks, on questions not trained on."""
    known = Corpus(corpus, parts.tokenizer, ("teacher", "questions"))
    found = records(known, parts.tokens, "questions", ("dev",), parts.interleave, ("answer",))[:limit]
    right: dict[str, list[tuple[float, float]]] = defaultdict(list)
    blocks: list[tuple[float, float]] = []
    for record in found:
        ids, labels = batch([record], parts.tokens, np.random.default_rng(0))
        with torch.inference_mode():
            pairs = parts.model.predict(ids, labels)
            states = parts.model(ids, starts=parts.model.starts(labels))
        for number, (hidden, wanted) in enumerate(pairs):
            hit = parts.model.logits(hidden).argmax(-1) == wanted
            speech = wanted >= parts.tokens.first_code
            name = "backbone" if number == 0 else f"module {number - 1}"
            right[name].append((float(hit[speech].sum()), float(speech.sum())))
        blocks += block_hits(parts, record, ids, states)
    for name, values in right.items():
        print(f"{name}: speech tokens right % {told(values)}")
    print(f"first blocks (8 codes drafted in a chain) exact % {told(blocks)}")


def block_hits(
    parts: VITAAudioParts, record: Any, ids: torch.Tensor, states: list[torch.Tensor]
) -> list[tuple[float, float]]:
    """Is each of the first block's codes what its module says, all of them together?"""
    answer = record.ids[len(record.prompt) :]
    if parts.tokens.begin_audio not in answer:
        return []
    place = answer.index(parts.tokens.begin_audio)
    start = max(0, len(record.prompt) - (parts.model.config.module_reads or 0))
    good = True
    for offset in range(8):
        at = len(record.prompt) + place + offset  # reads the token here, writes the next
        number = offset + 1  # module 0 writes the mark, module 1 the first code
        if at + 1 >= ids.shape[1] or number >= len(states) - 1:
            break
        token = int(parts.model.logits(states[number + 1][0, at - start]).argmax())
        good = good and token == int(ids[0, at + 1])
    return [(float(good), 1)]


def codec(parts: VITAAudioParts, corpus: Path, limit: int) -> None:
    """Codes of real sound through decoder and vocoder, beside the sound itself: word error, quality, STOI."""
    teacher = Utterances(corpus / "teacher")
    for kind in ("sentence", "answer", "book"):
        chosen = teacher.select("test", lambda row, kind=kind: row["kind"] == kind)
        waves = {"original": [], "through codes": []}
        texts = []
        for number in chosen[:limit]:
            wave = teacher.wave(number)
            with torch.inference_mode():
                codes = parts.tokenizer(wave[None]).values[0, 0].tolist()
                out = SpeechOut(parts)
                made = torch.cat([out.step(codes[i : i + 8]) for i in range(0, len(codes), 8)] + [out.flush()])
            waves["original"].append(wave)
            waves["through codes"].append(made[: len(wave)])
            texts.append(teacher.rows[number]["text"])
        if not texts:
            continue
        for name, sounds in waves.items():
            wrong = [
                (edits(hear(w, 16_000).split(), t.split()), len(t.split())) for w, t in zip(sounds, texts, strict=True)
            ]
            judged = _judged(sounds, waves["original"])
            print(f"{kind}, {name}: word error % {told(wrong)} ({len(texts)} sentences){judged}", flush=True)


def _judged(sounds: list[torch.Tensor], originals: list[torch.Tensor]) -> str:
    """DistillMOS, STOI and mel distance, where the judges are installed."""
    text = ""
    try:
        from benchmarks.voice import naturalness

        rate = naturalness()
        text += f", DistillMOS {sum(rate(sound.numpy(), 16_000) for sound in sounds) / len(sounds):.2f}"
    except ImportError:
        pass
    try:
        from pystoi import stoi

        values = [
            stoi(o[: len(s)].numpy(), s[: len(o)].numpy(), 16_000) for s, o in zip(sounds, originals, strict=True)
        ]
        text += f", STOI {sum(values) / len(values):.3f}"
    except ImportError:
        pass
    return text


def latency(parts: VITAAudioParts, corpus: Path, limit: int, manners: Sequence[Manner]) -> None:
    """Time from the end of a question fed in real time to the first sound, and where it went."""
    held = Utterances(corpus / "heldout")
    chosen = held.select("test", lambda row: bool(row.get("answer")))
    random.Random(2).shuffle(chosen)
    for manner in manners:
        firsts, split, factor, regretted = [], defaultdict(list), [], 0.0
        for number in chosen[: limit + 2]:
            result = converse(
                parts, [held.wave(number)], mode=manner.mode, verify=manner.verify, release=manner.release,
                temperature=manner.temperature, seed=manner.seed, real_time=True,
            )  # fmt: skip
            regretted += result.regretted_ms
            if result.first_sound_ms is None:
                continue
            firsts.append(result.first_sound_ms)
            factor.append(result.real_time_factor or 0.0)
            for name, value in result.parts_ms.items():
                split[name].append(value)
        firsts, kept = firsts[2:], {name: values[2:] for name, values in split.items()}  # the first ones warm up
        firsts.sort()
        parts_text = ", ".join(f"{name} {sorted(v)[len(v) // 2]:.0f}" for name, v in kept.items())
        print(
            f"{way_name(manner)}: first sound median {firsts[len(firsts) // 2]:.0f} ms, largest {firsts[-1]:.0f} ms "
            f"({len(firsts)} questions); medians: {parts_text}; "
            f"real-time factor {sorted(factor)[len(factor) // 2]:.2f}"
            f"{f'; {regretted:.0f} ms heard in vain' if manner.release == 'early' else ''}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tasks", "heads", "codec", "latency", "runs"))
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--model", default="nano-talk")
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--verify", nargs="*", default=[], metavar="HOW", help="exact, sampled, or shares such as 0.3")
    parser.add_argument("--release", nargs="*", choices=("verified", "early"))
    parser.add_argument("--temperature", type=float, default=0.7, help="for --verify sampled")
    parser.add_argument("--judge", type=int, default=60, help="answers a set and mode that Whisper base listens to")
    parser.add_argument("--runs", nargs="*", default=[], metavar="RUN,TOKENIZER")
    parser.add_argument("--weights", choices=("float32", "int8", "int4"), default="float32")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "runs":
        folders = [tuple(Path(folder).expanduser() for folder in pair.split(",")) for pair in args.runs]
        runs([(run_folder, tokenizer) for run_folder, tokenizer in folders], args.corpus.expanduser(), args.limit)
        return
    parts, began = open_speech_model(args.model, args.weights), time.perf_counter()
    if args.what == "tasks":
        chosen = ways(args.modes.split(","), args.verify, args.release or ["verified"], args.temperature)
        tasks(parts, args.corpus.expanduser(), args.limit, chosen, args.judge, args.out)
    elif args.what == "heads":
        heads(parts, args.corpus.expanduser(), args.limit)
    elif args.what == "codec":
        codec(parts, args.corpus.expanduser(), args.limit)
    else:
        chosen = ways(args.modes.split(","), args.verify, args.release or ["verified", "early"], args.temperature)
        latency(parts, args.corpus.expanduser(), args.limit, chosen)
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
