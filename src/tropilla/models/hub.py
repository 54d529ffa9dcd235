"""Models from the Hugging Face hub, into the cache that all its programs share.

What is fetched is gone on with where it was broken off, and is not there before its checksum is
right. The hub's own library does neither any more: since its version 2 it begins again, and looks
at the size alone. What it keeps in its cache is found here, and what is kept here it finds.

A token goes to the hub, and not to where the hub sends us for the bytes.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPException, HTTPMessage, HTTPResponse
from io import BufferedRandom
from pathlib import Path
from typing import IO, Any, TypeAlias
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import msgspec

from tropilla import __version__
from tropilla.models import names, shelf

Progress: TypeAlias = Callable[[str, int, int], None]
"""Hears a file's name, its bytes so far, and all of them."""

_PIECE = 1024 * 1024
_SILENCE_SECONDS = 30.0
_TRIES = 5
"""In a row without a single byte; then it is given up."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HASHES = {"sha256": re.compile(r"[0-9a-f]{64}"), "sha1": re.compile(r"[0-9a-f]{40}")}
_MOST_LISTED = 64 * 1024 * 1024


class HubError(Exception):
    """Why a model cannot be had, and what to do."""


class Listing(msgspec.Struct, frozen=True):
    """What a repository has, at one commit of it."""

    commit: str
    files: tuple[names.File, ...]


def pull(wanted: shelf.Wanted, progress: Progress) -> Path:
    """Fetch what of a model is not on disk; the path of its first file.

    Raises:
        HubError: it cannot be had.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise HubError(
            f"{wanted.repo} is not on disk, and HF_HUB_OFFLINE says to ask nobody: unset it, or "
            "name a file with --model."
        )
    listing = listed(wanted.repo)
    try:
        model = names.choose(listing.files, wanted.quant)
    except names.NotFound as error:
        raise HubError(f"{wanted.repo}: {error}.") from None
    folder = shelf.folder(wanted.repo)
    try:
        for file in model.files:
            _fetch(wanted.repo, listing.commit, file, folder, progress)
        _write(folder / "refs" / "main", listing.commit)
    except OSError as error:
        raise HubError(f"{folder} cannot be written: {error.strerror or error}.") from None
    return folder / "snapshots" / listing.commit / model.files[0].name


def listed(repo: str) -> Listing:
    """What a repository has now.

    Raises:
        HubError: it cannot be asked, or there is none.
    """
    try:
        with closing(_ask(repo, f"/api/models/{repo}/revision/main?blobs=true")) as answer:
            body = answer.read(_MOST_LISTED)
    except (OSError, HTTPException) as error:
        raise HubError(f"{_endpoint()} does not answer: {error}. Try again.") from None
    try:
        told = msgspec.json.decode(body)
        commit = told["sha"]
        files = tuple(_file(one) for one in told["siblings"])
    except (ValueError, KeyError, TypeError) as error:
        raise HubError(f"{_endpoint()} answers as no hub does: {error!r}.") from None
    if not _COMMIT.fullmatch(commit):
        raise HubError(f"{_endpoint()} answers as no hub does: {commit!r} is no commit.")
    return Listing(commit, files)


def _file(told: Any) -> names.File:
    """One of the files, by what is told of it; nothing of that may lead out of the cache."""
    name = told["rfilename"]
    if "\\" in name or any(part in {"", ".", ".."} for part in name.split("/")):
        raise ValueError(name)
    large = told.get("lfs") or {}
    return names.File(
        name,
        large.get("size") or told.get("size") or 0,
        _hash("sha256", large.get("sha256")),
        _hash("sha1", told.get("blobId")),
    )


def _hash(kind: str, told: Any) -> str | None:
    return told if type(told) is str and _HASHES[kind].fullmatch(told) else None


def _fetch(repo: str, commit: str, file: names.File, folder: Path, progress: Progress) -> None:
    digest = file.sha256 or file.sha1
    if digest is None:
        raise HubError(f"{_endpoint()} tells no checksum of {file.name}: it is not fetched.")
    blob = folder / "blobs" / digest
    if not (blob.is_file() and blob.stat().st_size == file.size):
        blob.parent.mkdir(parents=True, exist_ok=True)
        part = blob.with_name(f"{digest}.tropilla")
        with _alone(part) as held:
            missing = file.size - held.seek(0, os.SEEK_END)
            if missing > (free := shutil.disk_usage(folder).free):
                raise HubError(
                    f"{file.name} wants {missing:,} bytes more, and {folder} has {free:,} left. "
                    "HF_HUB_CACHE names another folder."
                )
            _complete(repo, commit, file, held, progress)
            _check(file, held, part)
        part.replace(blob)
    progress(file.name, file.size, file.size)
    _link(folder / "snapshots" / commit / file.name, blob)


@contextmanager
def _alone(part: Path) -> Iterator[BufferedRandom]:
    """The bytes so far, which nobody else adds to."""
    with part.open("a+b") as held:
        if sys.platform != "win32":
            import fcntl  # noqa: PLC0415 - not there on Windows

            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise HubError("Another process is fetching that already.") from None
        yield held


def _complete(
    repo: str, commit: str, file: names.File, held: BufferedRandom, progress: Progress
) -> None:
    """Add what is missing; a connection that breaks is made again."""
    path = f"/{repo}/resolve/{commit}/{quote(file.name)}"
    tries = 0
    while (done := held.seek(0, os.SEEK_END)) != file.size:
        if done > file.size:
            held.truncate(done := 0)
        progress(file.name, done, file.size)
        try:
            with closing(_ask(repo, path, done)) as answer:
                if done and answer.status != 206:  # it says all of it again
                    held.truncate(done := 0)
                while piece := answer.read1(_PIECE):
                    held.write(piece)
                    done, tries = done + len(piece), 0
                    progress(file.name, done, file.size)
            why = "the connection ended too soon"
        except (OSError, HTTPException) as error:
            why = str(error) or type(error).__name__
        held.flush()
        tries += 1
        if done < file.size and tries >= _TRIES:
            raise HubError(
                f"{file.name} came to {done:,} of {file.size:,} bytes, and no further ({why}). "
                "What has come is kept: the same command goes on with it."
            )
        if done < file.size:
            time.sleep(min(2 ** (tries - 1), 8) * _pause)


_pause = 0.5


def _check(file: names.File, held: BufferedRandom, part: Path) -> None:
    """Look whether the bytes are those that are meant; what is not is thrown away."""
    held.seek(0)
    if file.sha256 is not None:
        right = hashlib.file_digest(held, "sha256").hexdigest() == file.sha256
    else:
        # Git's name for a file: its kind and length come first.
        whole = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
        while piece := held.read(_PIECE):
            whole.update(piece)
        right = whole.hexdigest() == file.sha1
    if not right:
        part.unlink()
        raise HubError(
            f"{file.name} has not the checksum that the hub tells: what came was thrown away. Try "
            "again; a proxy or a full disk may have damaged it."
        )


def _link(link: Path, blob: Path) -> None:
    if link.exists() and link.resolve() == blob.resolve():
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    try:
        link.symlink_to(os.path.relpath(blob, link.parent))
    except OSError:  # Windows, for whom nobody has allowed it
        shutil.copyfile(blob, link)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.tropilla")
    new.write_text(text, encoding="ascii")
    new.replace(path)


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def _token() -> str | None:
    """What `hf auth login` has kept, if the environment says nothing."""
    if token := os.environ.get("HF_TOKEN", "").strip():
        return token
    path = os.environ.get("HF_TOKEN_PATH") or shelf.home() / "token"
    with suppress(OSError, UnicodeDecodeError):
        return Path(path).expanduser().read_text(encoding="ascii").strip() or None
    return None


class _Redirects(HTTPRedirectHandler):
    """The hub keeps its files elsewhere; the token is the hub's alone."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None and urlsplit(newurl)[:2] != urlsplit(req.full_url)[:2]:
            new.remove_header("Authorization")
        return new


def _ask(repo: str, path: str, start: int = 0) -> HTTPResponse:
    """What the hub answers, of a file from `start` on.

    Raises:
        HubError: it refuses, or cannot be reached.
        OSError: it was reached, and something broke.
    """
    endpoint, token = _endpoint(), _token()
    if not endpoint.startswith(("http://", "https://")):
        raise HubError(f"HF_ENDPOINT is no address: {endpoint}")
    asked = Request(endpoint + path)  # noqa: S310 - checked right above
    asked.add_header("User-Agent", f"tropilla/{__version__}")
    asked.add_header("Accept-Encoding", "identity")
    if token:
        asked.add_header("Authorization", f"Bearer {token}")
    if start:
        asked.add_header("Range", f"bytes={start}-")
    try:
        answer: HTTPResponse = build_opener(_Redirects).open(asked, timeout=_SILENCE_SECONDS)
    except HTTPError as error:
        with closing(error):
            if error.code == 416:
                raise OSError("it has no such bytes") from None
            if error.code >= 500:
                raise OSError(f"the hub answers {error.code}") from None
            raise HubError(_refusal(repo, error, token)) from None
    except URLError as error:
        if start or "/resolve/" in path:
            raise
        raise HubError(
            f"{endpoint} cannot be reached ({error.reason}). Without a network only models "
            "that are on disk can be served: `tropilla models` lists them. HF_ENDPOINT names "
            "another hub."
        ) from None
    return answer


def _refusal(repo: str, error: HTTPError, token: str | None) -> str:
    page = f"{_endpoint()}/{repo}"
    what = error.headers.get("X-Error-Code")
    if what == "GatedRepo":
        return f"{repo} is gated: agree to its terms at {page}, and " + (
            "wait until that is granted." if token else "set HF_TOKEN to a token of yours."
        )
    if error.code == 429:
        return "The hub has had too many requests from here: wait some minutes" + (
            "." if token else ", or set HF_TOKEN: it takes more from those it knows."
        )
    if token and error.code == 401 and what != "RepoNotFound":
        return "The hub does not take this token: look at HF_TOKEN, or at `hf auth login`."
    if error.code in {401, 404} or what == "RepoNotFound":
        hint = "" if token else "; if it is private, set HF_TOKEN to a token of yours"
        return f"There is no {repo} at {_endpoint()}, or it is not for you: look at {page}{hint}."
    return f"The hub refuses {repo}: it answers {error.code} {error.reason}."
