"""Embeddings: OpenAI's `/v1/embeddings`, llama.cpp's of every age, and those of AFS.

Numbers stay what they were: a client that wants base64 gets it from the numbers, made here, and
the other way round, whatever the upstream can do. llama.cpp is asked for base64, which is a
quarter of the bytes and a fifth of the work, and exactly the same numbers; a server that does not
know it (before #10967) ignores the field.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from tropilla.dialects import Wire
from tropilla.dialects._bases import AFS_BASES
from tropilla.dialects._fields import Fields, invalid, missing, wrong_type
from tropilla.dialects._openai import encode
from tropilla.ir import Json, JsonObject, Malformed, Traits
from tropilla.measures import Counted, Embed, Input, Place, Vector, Vectors, _answers, _vectors

ABILITY: Literal["embeddings"] = "embeddings"

_AFS = "/models/embeddings"
_OLD_AFS = "/embeddings/api/embeddings"
PLACES = (
    Place(path="/v1/embeddings"),
    Place(path="/embeddings"),
    *(Place(path=base + _AFS, dialect="afs") for base in AFS_BASES),
    Place(path=_OLD_AFS, dialect="afs"),
)

_MOST_INPUTS = 2048
_AT_ONCE = 128
"""Inputs of one request to an upstream: an answer of them all may be larger than any answer is
allowed to be, and to read it would keep everybody else waiting."""

_HAS_V1 = 2004
_READS_IDS = 2372
_READS_LISTS = 4355


# A client's request.


def parse_request(body: JsonObject, path: str) -> Embed:
    """Read a request: OpenAI's, or on the paths of AFS its own.

    An OpenAI client whose base URL is that of AFS with `/models` asks on the path of AFS.
    """
    fields = Fields(body)
    if path == _OLD_AFS or (path.endswith(_AFS) and "inputs" in body):
        name = "inputs" if "inputs" in body else "input"
        return Embed(
            inputs=_read_inputs(fields.any(name), name, ids=False),
            model=fields.string("model"),
            form="afs",
            extras=fields.rest,
        )
    inputs = _read_inputs(fields.any("input"), "input")
    base64 = fields.choice("encoding_format", ("float", "base64")) == "base64"
    return Embed(
        inputs=inputs,
        model=fields.string("model"),
        dimensions=fields.integer("dimensions", least=1),
        encoding="base64" if base64 else "float",
        extras=fields.rest,
    )


def _read_inputs(value: Json, name: str, *, ids: bool = True) -> tuple[Input, ...]:
    """A text, token ids, or a list of such."""
    if value is None:
        raise missing(name)
    if type(value) is not list:
        return (_read_input(value, name, ids=ids),)
    if not value:
        raise invalid(name, "it must not be empty.", "array_below_min_length")
    if ids and type(value[0]) is int:
        return (_read_input(value, name),)
    if len(value) > _MOST_INPUTS:
        raise invalid(
            name,
            f"expected at most {_MOST_INPUTS} inputs, but got {len(value)} instead.",
            "array_above_max_length",
        )
    return tuple(_read_input(item, f"{name}.{place}", ids=ids) for place, item in enumerate(value))


def _read_input(value: Json, path: str, *, ids: bool = True) -> Input:
    if type(value) is not str and not (ids and type(value) is list):
        raise wrong_type(path, "a string or an array of token ids" if ids else "a string", value)
    if not value:
        raise invalid(path, "it must not be empty.")
    if type(value) is list:
        for place, item in enumerate(value):
            if type(item) is not int:
                raise wrong_type(f"{path}.{place}", "an integer", item)
            if not 0 <= item < 2**31:
                raise invalid(f"{path}.{place}", f"{item} is no token id.")
    return value  # type: ignore[no-any-return]


# To an upstream.


def split(request: Embed, traits: Traits) -> tuple[Embed, ...]:
    """As many inputs at once as an upstream reads right."""
    size = 1 if traits.llamacpp and traits.build < _READS_LISTS else _AT_ONCE
    inputs = request.inputs
    return tuple(
        msgspec.structs.replace(request, inputs=inputs[start : start + size])
        for start in range(0, len(inputs), size)
    )


def render_request(request: Embed, traits: Traits) -> Wire:
    """Say a request to an upstream.

    OpenAI's servers shorten vectors themselves; nobody else can be asked for that.
    """
    _refuse_ids(request, traits)
    related = _related(request, traits)
    body: JsonObject = dict(request.extras) if related else {}
    dropped = () if related else tuple(request.extras)
    if request.model is not None:
        body["model"] = request.model
    if traits.dialect == "afs":
        return Wire(path=_AFS, body=body | {"inputs": list(request.inputs)}, dropped=dropped)
    if not traits.llamacpp:
        if request.dimensions is not None:
            body["dimensions"] = request.dimensions
        return Wire(
            path="/v1/embeddings", body=body | {"input": list(request.inputs)}, dropped=dropped
        )
    if traits.build < _HAS_V1:
        # One server, one model: there is nothing but the input that it reads.
        wire = {"content": request.inputs[0]}
        return Wire(path="/embedding", body=wire, dropped=tuple(request.extras))
    lists = traits.build >= _READS_LISTS
    body["input"] = list(request.inputs) if lists else request.inputs[0]
    if lists:
        body["encoding_format"] = "base64"
    return Wire(path="/v1/embeddings", body=body, dropped=dropped)


def _refuse_ids(request: Embed, traits: Traits) -> None:
    """Refuse token ids where they would be misread.

    From b1591 (#4232) on each id was an input of its own, until #5300 (b2076) and #5955 (b2372).
    """
    if all(type(one) is str for one in request.inputs):
        return
    if traits.dialect == "afs":
        why = "AFS reads texts only, no token ids."
    elif traits.llamacpp and 1561 <= traits.build < _READS_IDS:
        why = f"The server is so old that it misreads token ids: llama.cpp b{_READS_IDS} does not."
    else:
        return
    raise Malformed(why, param="input", kind="unsupported")


def _related(request: Embed, traits: Traits) -> bool:
    """Whether fields that nobody here knows mean the same on both sides."""
    return (request.form == "afs") == (traits.dialect == "afs")


# An upstream's answer.


def parse_answer(body: Json, request: Embed, traits: Traits) -> Vectors:
    """Read the vectors: OpenAI's list, AFS's, or the one vector of a server before b2004."""
    holes = traits.dialect == "afs"  # its old models leave some
    count = len(request.inputs)
    match body:
        case {"data": entries}:
            told = dict(_answers.indexed(entries, count, "vectors"))
            if len(told) < count:
                raise Malformed(f"The upstream gave {len(told)} vectors for {count} inputs.")
            said = [told[place].get("embedding") for place in range(count)]
        case {"embedding": one} if count == 1:
            said = [one]
        case _:
            raise Malformed("The upstream's answer has no vectors.")
    vectors = tuple(_vectors.read(one, holes=holes) for one in said)
    if traits.llamacpp and not all(map(any, vectors)):
        raise Malformed(
            "The server answered with a vector of zeros: it makes no embeddings. Start it with "
            "--embedding, and with a model that has a pooling.",
            kind="unsupported",
        )
    extras = {key: body[key] for key in body.keys() - _OWN} if _related(request, traits) else {}
    return Vectors(vectors=vectors, usage=_answers.usage_of(body), extras=extras)


_OWN = {"data", "embedding", "model", "object", "usage"}


def join(parts: list[Vectors], request: Embed, *, matryoshka: bool) -> Vectors:
    """All vectors, in as many dimensions as were wanted."""
    vectors = tuple(vector for part in parts for vector in part.vectors)
    size = len(vectors[0])
    if any(len(vector) != size for vector in vectors):
        raise Malformed("The upstream's vectors differ in size.", kind="upstream_failed")
    if request.dimensions is not None and request.dimensions != size:
        _refuse_size(request.dimensions, size, matryoshka=matryoshka)
        vectors = tuple(_vectors.shortened(vector, request.dimensions) for vector in vectors)
    usage = _answers.added([part.usage for part in parts])
    return Vectors(vectors=vectors, usage=usage, extras=parts[0].extras)


def _refuse_size(wanted: int, size: int, *, matryoshka: bool) -> None:
    """Refuse a size that cannot be had.

    Raises:
        Malformed: vectors do not grow; and only where a model was trained for it does the
            beginning of a vector mean what the whole means.
    """
    if wanted > size:
        raise invalid("dimensions", f"the model's vectors have {size}, but got {wanted}.")
    if not matryoshka:
        raise Malformed(
            f"The model's vectors have {size} dimensions, and it is not known to allow fewer.",
            param="dimensions",
            kind="unsupported",
        )


def counted(request: Embed) -> list[Counted]:
    """Every input, once."""
    return [Counted(input=one) for one in request.inputs]


# A client's answer.


def render_answer(answer: Vectors, request: Embed, model: str) -> bytes:
    """The answer, whole: in OpenAI's form, or in that of AFS."""
    base64 = request.encoding == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _written(vector, base64=base64)}
        for index, vector in enumerate(answer.vectors)
    ]
    told = {"data": data, "usage": _answers.write_usage(answer.usage)}
    if request.form == "afs":
        # What nobody measured takes no time, as in the other answers of AFS's form.
        return encode({"total_time_taken": "0.00 sec"} | answer.extras | told)
    return encode(answer.extras | {"object": "list", "model": model} | told)


def _written(vector: Vector, *, base64: bool) -> Any:
    return _vectors.little_endian(vector) if base64 else vector.tolist()
