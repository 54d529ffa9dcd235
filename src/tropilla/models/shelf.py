"""Which models are on disk: the cache of the Hugging Face hub, as every program of it keeps it.

models--OWNER--NAME/refs/main               the commit that `main` was, when it was fetched
models--OWNER--NAME/snapshots/COMMIT/FILE   a link to the file
models--OWNER--NAME/blobs/HASH              the file
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from tropilla.models import gguf, names

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class Wanted(msgspec.Struct, frozen=True):
    """A model of the hub, as it is asked for: OWNER/NAME[:QUANT]."""

    repo: str
    quant: str | None = None

    @property
    def name(self) -> str:
        """What clients call it, unless they are told otherwise."""
        name = self.repo.partition("/")[2]
        return re.sub(r"[-_.]gguf$", "", name, flags=re.IGNORECASE) or name


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is on disk."""

    repo: str
    quant: str
    path: Path
    """Of its first file."""
    size: int
    header: gguf.Header | None
    """Nothing for a file that is none of a model."""


def read_wanted(text: str) -> Wanted:
    """Read OWNER/NAME[:QUANT].

    Raises:
        ValueError: it is not that.
    """
    repo, _, quant = text.partition(":")
    if not _REPO.fullmatch(repo) or ".." in repo:
        raise ValueError(f"{text!r} is no OWNER/NAME of the hub, nor OWNER/NAME:QUANT")
    return Wanted(repo, quant or None)


def cache(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the hub's programs keep what they fetch."""
    if told := environ.get("HF_HUB_CACHE"):
        return Path(told).expanduser()
    return home(environ) / "hub"


def home(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the hub's programs keep everything."""
    if told := environ.get("HF_HOME"):
        return Path(told).expanduser()
    return Path(environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface"


def folder(repo: str) -> Path:
    """Where a repository's files are kept."""
    return cache() / f"models--{repo.replace('/', '--')}"


def find(wanted: Wanted) -> Path | None:
    """The first file of a model, if all of it is on disk."""
    for snapshot in _snapshots(folder(wanted.repo)):
        with suppress(names.NotFound):
            return snapshot / names.choose(_files(snapshot), wanted.quant).files[0].name
    return None


def on_disk() -> Iterator[Found]:
    """Every model that is on disk, each once."""
    for one in sorted(cache().glob("models--*--*")):
        repo = one.name.removeprefix("models--").replace("--", "/", 1)
        seen = set()
        for snapshot in _snapshots(one):
            for model in names.models(_files(snapshot)):
                path = snapshot / model.files[0].name
                if path.resolve() not in seen:
                    seen.add(path.resolve())
                    yield Found(
                        repo=repo, quant=model.quant, path=path, size=model.size, header=head(path)
                    )


def head(path: Path) -> gguf.Header | None:
    """What a file says of itself; nothing, if it is none of a model."""
    with suppress(OSError, gguf.NotGguf), path.open("rb") as file:
        return gguf.read_header(file)
    return None


def size(path: Path) -> int:
    """The bytes of a model, all its parts together."""
    for model in names.models(_sized(path.parent, path.parent.glob("*.gguf"))):
        if any(one.name == path.name for one in model.files):
            return model.size
    return path.stat().st_size


def _snapshots(folder: Path) -> list[Path]:
    """The newest first: what `main` was when it was looked up last."""
    found = [one for one in (folder / "snapshots").glob("*") if one.is_dir()]
    with suppress(OSError):
        main = (folder / "refs" / "main").read_text(encoding="ascii").strip()
        found.sort(key=lambda one: one.name != main)
    return found


def _files(snapshot: Path) -> Iterator[names.File]:
    return _sized(snapshot, snapshot.rglob("*.gguf"))


def _sized(folder: Path, paths: Iterable[Path]) -> Iterator[names.File]:
    for one in paths:
        with suppress(OSError):  # a link that leads nowhere: it was deleted, or never came
            yield names.File(one.relative_to(folder).as_posix(), one.stat().st_size)
