"""Files of models by their names: which belong together, how they are quantised, which is meant."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import msgspec

_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
_QUANT = re.compile(
    r"(?:^|[-./_])((?:I?Q\d(?:_[A-Z0-9]+)*)|BF16|F16|F32|TQ\d_\d|MXFP4(?:_[A-Z]+)?)(?=[-./]|$)",
    re.IGNORECASE,
)
_ASIDE = re.compile(r"mmproj|imatrix", re.IGNORECASE)
"""What has a model's ending and is none: what sees pictures for it, what it was quantised by."""
_PREFERRED = ("Q4_K_M", "Q8_0")
"""What llama.cpp takes too where nobody says."""


class NotFound(ValueError):  # noqa: N818 - it says what is wrong
    """No file is meant by that, or too little of it is there; the message says what there is."""


class File(msgspec.Struct, frozen=True):
    """A file of a repository."""

    name: str
    size: int
    sha256: str | None = None
    sha1: str | None = None
    """Of git, for files that are too small to have the other."""


class Model(msgspec.Struct, frozen=True):
    """Files that are one model together, the first of them first."""

    files: tuple[File, ...]

    @property
    def quant(self) -> str:
        """How it is quantised, by its name: `Q4_K_M`; without that, the name."""
        found = _QUANT.findall(stem(self.files[0].name))
        return found[-1].upper() if found else stem(self.files[0].name)

    @property
    def size(self) -> int:
        """Its bytes."""
        return sum(one.size for one in self.files)


def stem(name: str) -> str:
    """The name of a model's file without its ending, and without the number of a part."""
    return _SPLIT.sub("", name).removesuffix(".gguf")


def models(files: Iterable[File]) -> list[Model]:
    """The models among files, by their names; what belongs to one and is no model is left out."""
    groups: dict[str, list[File]] = {}
    for file in sorted(files, key=lambda one: one.name):
        if file.name.lower().endswith(".gguf") and not _ASIDE.search(file.name):
            groups.setdefault(stem(file.name), []).append(file)
    return [Model(tuple(group)) for group in groups.values()]


def choose(files: Iterable[File], quant: str | None) -> Model:
    """The one that is meant: by its quantisation, by its file's name, or the usual one.

    Raises:
        NotFound: there is none, or not all of its parts.
    """
    found = models(files)
    if not found:
        raise NotFound(
            "it has no GGUF file; llama.cpp's models are mostly in repositories whose names end "
            "with -GGUF"
        )
    if quant is None:
        quants = {one.quant: one for one in reversed(found)}
        model = next((quants[one] for one in _PREFERRED if one in quants), found[0])
    else:
        model = _named(found, quant)
    parts = _SPLIT.search(model.files[0].name)
    if parts and len(model.files) != int(parts[2]):
        raise NotFound(f"of {stem(model.files[0].name)} not all {int(parts[2])} parts are there")
    return model


def _named(found: Sequence[Model], quant: str) -> Model:
    wanted = stem(quant).lower()
    whole = [one for one in found if stem(one.files[0].name).lower() == wanted]
    ends = re.compile(rf"(?:^|[-./_]){re.escape(wanted)}(?=[-./]|$)", re.IGNORECASE)
    named = whole or [one for one in found if ends.search(stem(one.files[0].name))]
    if not named:
        there = ", ".join(dict.fromkeys(one.quant for one in found))
        raise NotFound(f"it has no {quant}; it has {there}")
    # UD-Q4_K_M is another one than Q4_K_M, which has the shorter name.
    return min(named, key=lambda one: len(stem(one.files[0].name)))
