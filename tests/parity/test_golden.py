"""Every recorded case under $VIVA_GOLDEN whose system we have: load through our table, compare with the reference's
outputs.

One adapter a system, ``golden_<stem>.check(case_dir) -> {output: error}``, where an error is the largest difference
over the largest expected value, and 0 or 1 for things that must be equal. Cases of systems that are not here yet are
counted.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest

TOLERANCE = 1e-4
ADAPTERS = {
    "whisper-normalisers": "golden_text",
    "whisper": "golden_whisper",
    "dtw": "golden_whisper",
    "silero": "golden_silero",
    "hifigan": "golden_hifigan",
    "glm4_voice_tokenizer": "golden_glm4_tokenizer",
    "glm4_voice_decoder": "golden_glm4_decoder",
    "sensevoice": "golden_sensevoice",
    "vita_audio": "golden_vita_audio",
    "vita_layout": "golden_vita_layout",
    "vita_tokenizer": "golden_vita_audio",
    "librosa": "golden_features",
}
ROOT = Path(os.environ.get("VIVA_GOLDEN", "/nonexistent"))


def _adapter(name: str) -> str | None:
    fitting = [prefix for prefix in ADAPTERS if name.startswith(prefix)]
    return ADAPTERS[max(fitting, key=len)] if fitting else None


CASES = sorted(path.name for path in ROOT.iterdir() if (path / "case.json").exists()) if ROOT.is_dir() else []


@pytest.mark.skipif(not CASES, reason="set VIVA_GOLDEN to the folder of recorded cases")
@pytest.mark.parametrize("name", CASES or ["none"])
def test_case(name: str) -> None:
    adapter = _adapter(name)
    if adapter is None:
        pytest.skip("no such system yet")
    errors = importlib.import_module(f"tests.parity.{adapter}").check(ROOT / name)
    if errors is None:
        pytest.skip("needs published weights that are not in the cache")
    assert errors, "the adapter compared nothing"
    wrong = {key: error for key, error in errors.items() if not error <= TOLERANCE}
    assert not wrong, f"{len(wrong)} of {len(errors)} outputs differ: {wrong}"
