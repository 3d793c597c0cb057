"""What a run tells TensorBoard, where that is installed (extra ``train``): figures as curves, samples as they are.

Sounds and pictures go in as the bytes of their files, so nothing is decoded or drawn again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import soundfile


class Events:
    """A writer into ``folder``, or nothing at all where TensorBoard is not installed."""

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._writer = None
        else:
            self._writer: Any = SummaryWriter(str(folder))

    def figures(self, group: str, values: Mapping[str, float], step: int) -> None:
        """One curve a name."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{group}/{name}", value, step)

    def samples(self, folder: Path, step: int) -> None:
        """The sounds (wav) and pictures (png) of ``folder`` whose names hold the step as six digits."""
        if self._writer is None:
            return
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue, reportMissingImports]

        for path in sorted(folder.glob(f"*{step:06d}.*")):
            name = path.stem.replace(f"{step:06d}", "").strip("_-") or "sample"
            if path.suffix == ".wav":
                value = Summary.Value(tag=f"samples/{name}", audio=_audio(path))
            elif path.suffix == ".png":
                value = Summary.Value(tag=f"samples/{name}", image=_image(path))
            else:
                continue
            self._writer.file_writer.add_summary(Summary(value=[value]), step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _audio(path: Path) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue, reportMissingImports]

    about = soundfile.info(path)
    return Summary.Audio(
        sample_rate=about.samplerate, num_channels=about.channels, length_frames=about.frames,
        encoded_audio_string=path.read_bytes(), content_type="audio/wav",
    )  # fmt: skip


def _image(path: Path) -> Any:
    """Width and height stand in a PNG's head, big-endian, after 16 bytes."""
    from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue, reportMissingImports]

    data = path.read_bytes()
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    return Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=data)
