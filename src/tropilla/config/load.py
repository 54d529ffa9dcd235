"""The tree of settings, filled from a file and from the environment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from tropilla.config.check import check
from tropilla.config.kinds import Plain, Templated, Tree, Way, settings
from tropilla.config.nodes import Complaint, Node, Place, Refused, scalar
from tropilla.config.read import Reader
from tropilla.config.tree import Config
from tropilla.templates import Template

FILE_NAME = "tropilla.yaml"
"""What a config file is called that nobody has to name."""

KEY_VARIABLE = "TROPILLA_API_KEY"

VARIABLES: dict[str, str] = {
    f"TROPILLA_{name.upper()}": name
    for name, setting in settings(Config).items()
    if isinstance(setting.kind, Plain | Templated)
}
"""The variables that set what is one value at the top; they win over the file."""


class Loaded(NamedTuple):
    """A config, and where it came from."""

    config: Config
    file: Path | None = None
    variables: tuple[str, ...] = ()
    """The variables of the environment that have set something."""
    references: Mapping[Way, str] = {}
    """Texts of the file with `${NAME}` in them, as they are written."""


def found(file: Path | None) -> Path | None:
    """The config file: the one that was named, or `tropilla.yaml` in the working directory."""
    if file is not None:
        return file
    here = Path(FILE_NAME)
    return here if here.exists() else None


def load(file: Path | None, environment: Mapping[str, str]) -> Loaded:
    """What a file and the environment say.

    Raises:
        Refused: something in them cannot be; it tells all of it.
    """
    complaints: list[Complaint] = []
    config, references = Config(), dict[Way, str]()
    if file is not None:
        reader = _read(file, environment)
        complaints += reader.complaints
        config = reader.values.get((), config)
        references = reader.references
    reader = Reader(Path(), None)
    told = {
        name: (variable, reader.setting(settings(Config)[name], node, (name,)))
        for variable, name, node in _variables(environment)
    }
    complaints += reader.complaints
    if complaints:
        raise Refused(*sorted(complaints, key=lambda one: one.place))
    over = {name: value for name, (_, value) in told.items()}
    return Loaded(
        msgspec.structs.replace(config, **over),
        file,
        tuple(variable for variable, _ in told.values()),
        {way: text for way, text in references.items() if way[0] not in over},
    )


def named_template(text: str) -> Template | None:
    """A template as the command line names it: `auto`, a name, or a file.

    Raises:
        ConfigError: there is none.
    """
    return Reader(Path(), None).template(text)


def _read(file: Path, environment: Mapping[str, str]) -> Reader:
    """Everything that a file says, and all complaints about it."""
    # YAML is read only where there is some.
    from tropilla.config.source import LARGEST, parse  # noqa: PLC0415

    try:
        with file.open("rb") as opened:
            data = opened.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise Refused(Complaint(Place(str(file)), "", f"it cannot be read: {why}.")) from None
    reader = Reader(file.parent, environment)
    reader.read(Tree(struct=Config), parse(data, str(file)))
    check(reader)
    config = reader.values.get(())
    if isinstance(config, Config) and ("engine", "model") in reader.values:
        # Without a name of its own, a model is called as its file.
        name = reader.values.get(("engine", "name"), config.engine.model.stem)
        engine = msgspec.structs.replace(config.engine, name=name)
        reader.values[()] = msgspec.structs.replace(config, engine=engine)
    return reader


def _variables(environment: Mapping[str, str]) -> Iterator[tuple[str, str, Node]]:
    """The settings that the environment has; an empty variable is none."""
    for variable, name in VARIABLES.items():
        if text := environment.get(variable):
            kind = settings(Config)[name].kind
            is_text = not isinstance(kind, Plain) or kind.type is str
            yield variable, name, Node(Place(variable), text if is_text else scalar(text))
    if keys := environment.get(KEY_VARIABLE, "").split():
        place = Place(KEY_VARIABLE)
        yield KEY_VARIABLE, "api_keys", Node(place, [Node(place, key) for key in keys])
