"""Sound of VITA-Audio's answers where its pieces meet, and memory over ten minutes of talk.

    python -m benchmarks.vita_audio_sound seams [--corpus ~/viva-runs/corpus] [--model nano-talk] [--limit 120]
    python -m benchmarks.vita_audio_sound memory [--corpus ~/viva-runs/corpus] [--minutes 10]

``seams``: spectral flux (rises of the log magnitude spectrum, windows of 20 ms every 10 ms) where pieces of sound meet,
as a percentile of all places of its file. Pieces that meet without a seam are like any other place: a median around 50,
a 95th percentile around 95. Two kinds of borders: where the listener's pieces meet, and where the flow decoder's chunks
meet, which lie the vocoder's delay later. Beside each the same places of the same codes decoded at once, where nothing
meets; places in the middle between borders; and seams made on purpose, which must stand out.

``memory``: resident memory every half minute of sound, heard and given, with the bytes of the key/value caches; once
with a session for every question, once with conversations of many turns, each as long as its context reaches.

Questions are those of the voice held out of the corpus (recipe spoken_corpus), or the one that ships with the package.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vivavoce.codecs.glm4_decoder import time_noise
from vivavoce.codecs.glm4_tokenizer import SAMPLE_RATE
from vivavoce.dialogue.vita_audio_conversation import VITAAudioConversation
from vivavoce.dialogue.vita_audio_session import CHUNK, SpeechOut, VITAAudioParts, VITAAudioSession
from vivavoce.dialogue.vita_audio_writing import Writer
from vivavoce.errors import ConfigError
from vivavoce.state import nbytes
from vivavoce.talking import question_file
from vivavoce.train.utterances import Utterances
from vivavoce.vita_audio_verbs import open_speech_model
from vivavoce.vocoders.hift import source_noise

FLOOR = 1e-3  # of the loudest bin of a file: softer ones count as silence
STEP = 30.0  # seconds of sound between two looks at the memory
MIB = 1 << 20
FLAT = 0.01  # of resident memory: smaller drifts are the allocator's unrest


def questions(corpus: Path | None) -> list[torch.Tensor]:
    """Waves (S,) at 16 kHz, in an order of chance."""
    if corpus is None:
        import soundfile

        wave, rate = soundfile.read(question_file(), dtype="float32")
        assert rate == SAMPLE_RATE
        return [torch.from_numpy(wave)]
    held = Utterances(corpus / "heldout")
    chosen = held.select("test", lambda row: bool(row.get("answer")))
    random.Random(2).shuffle(chosen)
    return [held.wave(number) for number in chosen]


# ---------------------------------------------------------------------------------------------------------------- seams
def flux(wave: np.ndarray, hop: int) -> np.ndarray:
    """How much louder the bins of a window are than those of the one a hop before, in log10, summed: (windows - 1,)."""
    frames = np.lib.stride_tricks.sliding_window_view(wave, 2 * hop)[::hop] * np.hanning(2 * hop)
    size = np.abs(np.fft.rfft(frames, axis=1))
    rise = np.diff(np.log10(np.maximum(size, FLOOR * size.max())), axis=0)
    return np.maximum(rise, 0).sum(axis=1)


def ranks(wave: torch.Tensor, borders: Sequence[int], rate: int) -> list[float]:
    """The percentile of each border (a sample) among all places of the file; what counts of a place is the larger of
    the changes into the two windows that hold it."""
    hop = rate // 100
    change = flux(wave.numpy(), hop)
    places = np.maximum(change[:-1], change[1:])
    found = []
    for border in borders:
        number = border // hop - 2
        if 0 <= number < len(places):
            here = places[number]
            found.append(100 * float(np.mean(places < here) + np.mean(places == here) / 2))
    return found


def answered(parts: VITAAudioParts, question: torch.Tensor, mode: str) -> tuple[list[torch.Tensor], list[int]]:
    """The pieces of sound that a listener is given, and the codes."""
    session = VITAAudioSession(parts, mode=mode)
    session.step(question)
    pieces = [reply.wave_piece for reply in session.answer() if reply.wave_piece is not None]
    return [piece for piece in pieces if len(piece)], session.result.codes


def meetings(pieces: Sequence[torch.Tensor]) -> list[int]:
    """Where pieces meet, in samples."""
    return np.cumsum([len(piece) for piece in pieces])[:-1].tolist()


@torch.inference_mode()
def from_scratch(parts: VITAAudioParts, codes: list[int]) -> list[torch.Tensor]:
    """A seam on purpose: each chunk of codes decoded as if nothing had come before it."""
    made = []
    for start in range(0, len(codes), CHUNK):
        out = SpeechOut(parts)
        made.append(torch.cat([out.step(codes[start : start + CHUNK]), out.flush()]))
    return made


@torch.inference_mode()
def at_once(parts: VITAAudioParts, codes: list[int]) -> torch.Tensor:
    """The sound (S,) of all codes, decoded offline."""
    frames = parts.decoder.frames(len(codes))
    mel = parts.decoder(torch.tensor([codes]), time_noise(0, frames, parts.decoder.config.n_mels)[None])
    drawn = source_noise(0, frames * parts.vocoder.hop_length, parts.vocoder.config.harmonics, 0)
    return parts.vocoder(mel * parts.scale + parts.mean, noise=drawn)[0]


def normalised(pieces: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Another: each piece brought to the same peak by itself, as the authors' demonstration does."""
    return [0.95 * piece / max(1e-4, float(piece.abs().max())) for piece in pieces]


def seams(parts: VITAAudioParts, asked: Sequence[torch.Tensor], limit: int, mode: str) -> dict[str, Any]:
    found: dict[str, list[float]] = {}
    files, rate, furthest = 0, parts.sample_rate, 0.0

    def note(name: str, wave: torch.Tensor, borders: Sequence[int]) -> None:
        found.setdefault(name, []).extend(ranks(wave, borders, rate))

    for question in asked[:limit]:
        pieces, codes = answered(parts, question, mode)
        if len(pieces) < 2:
            continue
        files, whole, borders = files + 1, torch.cat(pieces), meetings(pieces)
        offline = at_once(parts, codes)
        furthest = max(furthest, float((whole - offline).abs().max() / offline.abs().max()))
        edges = [0, *borders, len(whole)]
        chunks = [border + parts.vocoder.delay for border in borders[:-1]]
        note("pieces", whole, borders)
        note("  the same places, decoded at once", offline, borders)
        note("decoder's chunks", whole, chunks)
        note("  these places, decoded at once", offline, chunks)
        note("middles between borders", whole, [(a + b) // 2 for a, b in itertools.pairwise(edges)])
        alone = from_scratch(parts, codes)
        note("seams on purpose: chunks from scratch", torch.cat(alone), meetings(alone))
        loud = normalised(pieces)
        note("seams on purpose: normalised pieces", torch.cat(loud), borders)
    rows = {name: _told(values) for name, values in found.items()}
    print(f"{files} answers in {mode}; percentiles of spectral flux at borders within their files")
    for name, row in rows.items():
        print(
            f"  {name:37} {row['borders']:5d} borders, median {row['median']:5.1f} "
            f"[{row['low']:.1f}-{row['high']:.1f}], 95th percentile {row['p95']:5.1f}, beyond the file's own 95th "
            f"{row['beyond']:4.1f} %"
        )
    print(f"  largest difference from the same codes decoded at once: {furthest:.1e} of its peak")
    return {"mode": mode, "answers": files, "rows": rows, "difference": furthest}


def _told(values: list[float]) -> dict[str, float]:
    """Median with its 95 % interval over resampled borders, 95th percentile, and the share beyond 95."""
    drawn, ranked = np.random.default_rng(0), np.array(values)
    medians = [np.median(drawn.choice(ranked, len(ranked))) for _ in range(500)]
    low, high = np.percentile(medians, [2.5, 97.5])
    return {
        "borders": len(values), "median": round(float(np.median(ranked)), 1), "low": round(float(low), 1),
        "high": round(float(high), 1), "p95": round(float(np.percentile(ranked, 95)), 1),
        "beyond": round(100 * float(np.mean(ranked > 95)), 1),
    }  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- memory
def resident() -> int:
    """Bytes of this process in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cached(writer: Writer) -> tuple[int, int]:
    """Bytes of the key/value caches, and of what of them is filled."""
    held = filled = 0
    for cache in (*writer.state.backbone, *writer.state.modules):
        size = nbytes((cache.key, cache.value))
        held, filled = held + size, filled + size * int(cache.position[0]) // cache.key.shape[2]
    return held, filled


Turn = tuple[float, Writer, int]  # seconds of sound so far, what holds the caches, how many conversations by now


def by_sessions(parts: VITAAudioParts, asked: Sequence[torch.Tensor], mode: str) -> Iterator[Turn]:
    """A session for each question."""
    seconds, number = 0.0, 0
    while True:
        session, question = VITAAudioSession(parts, mode=mode), asked[number % len(asked)]
        for piece in question.split(SAMPLE_RATE // 10):
            session.step(piece)
        given = sum(len(reply.wave_piece) for reply in session.answer() if reply.wave_piece is not None)
        number, seconds = number + 1, seconds + len(question) / SAMPLE_RATE + given / parts.sample_rate
        yield seconds, session.writer, number


def by_conversations(parts: VITAAudioParts, asked: Sequence[torch.Tensor], mode: str) -> Iterator[Turn]:
    """Conversations of as many turns as their context holds."""
    seconds, number, conversations = 0.0, 0, 1
    conversation = VITAAudioConversation(parts, mode=mode, longest=200)
    while True:
        question, given = asked[number % len(asked)], 0
        number += 1
        try:
            for piece in question.split(SAMPLE_RATE // 10):
                conversation.listen(piece)
            for reply in conversation.answer():
                given += 0 if reply.wave_piece is None else len(reply.wave_piece)
        except ConfigError:  # it is full
            conversation, conversations = VITAAudioConversation(parts, mode=mode, longest=200), conversations + 1
        seconds += len(question) / SAMPLE_RATE + given / parts.sample_rate
        yield seconds, conversation.text, conversations


def memory(
    parts: VITAAudioParts, asked: Sequence[torch.Tensor], minutes: float, mode: str, name: str,
    talk: Callable[[VITAAudioParts, Sequence[torch.Tensor], str], Iterator[Turn]],
) -> dict[str, Any]:  # fmt: skip
    """Resident memory over the time of sound, and whether it is flat apart from the caches."""
    print(f"{name}, {mode}\n   sound s  {name:>13}  resident MiB  caches MiB  filled MiB  resident less caches MiB")
    rows: list[dict[str, float]] = []
    reach, first = 0.0, True  # how far the first conversation has come
    for seconds, writer, count in talk(parts, asked, mode):
        first = first and count == 1
        reach = seconds if first else reach
        if seconds < STEP * (len(rows) + 1):
            continue
        gc.collect()
        now, (held, filled) = resident(), cached(writer)
        row = {
            "sound": round(seconds, 1), "count": count, "resident": round(now / MIB, 1),
            "caches": round(held / MIB, 2), "filled": round(filled / MIB, 2), "rest": round((now - held) / MIB, 1),
        }  # fmt: skip
        rows.append(row)
        print(
            f"{seconds:10.0f}  {count:13d}  {row['resident']:12.1f}  {row['caches']:10.2f}  {row['filled']:10.2f}  "
            f"{row['rest']:24.1f}", flush=True,
        )  # fmt: skip
        if seconds >= 60 * minutes:
            break
    rest = np.array([row["rest"] for row in rows])
    third = len(rows) // 3  # the first of three is left out: what the allocator keeps for itself settles there
    drift = float(np.median(rest[-third:]) - np.median(rest[third : len(rows) - third])) if third else float("nan")
    flat = abs(drift) < FLAT * rows[-1]["resident"]
    print(
        f"   apart from the caches: {rest.min():.1f} to {rest.max():.1f} MiB; median of the last third less that "
        f"of the middle third {drift:+.1f} MiB: {'flat' if flat else 'not flat'}"
    )
    if name == "conversations":
        print(f"   the first conversation reached {reach:.0f} s of sound")
    return {"mode": mode, "rows": rows, "drift": drift, "flat": flat, "first_reach": reach}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("seams", "memory"))
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--model", default="nano-talk")
    parser.add_argument("--mode", default="boost")
    parser.add_argument("--limit", type=int, default=120, help="answers to listen to for seams")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts, asked = open_speech_model(args.model), questions(args.corpus and args.corpus.expanduser())
    if args.what == "seams":
        found: dict[str, Any] = seams(parts, asked, args.limit, args.mode)
    else:
        ways = {"sessions": by_sessions, "conversations": by_conversations}
        found = {name: memory(parts, asked, args.minutes, args.mode, name, way) for name, way in ways.items()}
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
