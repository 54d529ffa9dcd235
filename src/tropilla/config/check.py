"""What settings have to satisfy together. It looks at those that are fine by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tropilla.config.kinds import Way
from tropilla.config.read import Reader
from tropilla.config.tree import BudgetConfig, UpstreamConfig


class _Served(NamedTuple):
    """An upstream, and where it was named."""

    way: Way
    upstream: UpstreamConfig

    @property
    def server(self) -> object:
        """What makes it another server than the next; its slots are there once."""
        one = self.upstream
        return one.url, one.dialect, one.api_key, tuple(sorted(one.headers.items()))


def check(reader: Reader) -> None:
    """Add a complaint for each setting that another one contradicts."""
    _names(reader)
    _servers(reader)
    _outside(reader)
    _engine(reader)
    _templates(reader)
    _budgets(reader)


def _names(reader: Reader) -> None:
    taken: dict[str, Way] = {
        way[1]: way for way in reader.places if len(way) == 2 and way[0] == "models"
    }
    for way, alias in _aliases(reader):
        if alias in taken:
            owner = taken[alias]
            what = "a model" if owner[2:] == () else f"an alias of {owner[1]}"
            shown = "the name" if way in reader.references else repr(alias)
            line = reader.places[owner].line
            reader.complain(way, f"{shown} is {what} already (line {line}): take another name.")
        else:
            taken[alias] = way


def _aliases(reader: Reader) -> Iterator[tuple[Way, str]]:
    for way, value in reader.values.items():
        if len(way) == 4 and (way[0], way[2]) == ("models", "aliases"):
            yield way, value


def _servers(reader: Reader) -> None:
    first: dict[object, _Served] = {}
    in_list: set[tuple[Way, object]] = set()
    for way, value in reader.values.items():
        if not isinstance(value, UpstreamConfig):
            continue
        one = _Served(way, value)
        if (way[:-1], one.server) in in_list:
            reader.complain(way, "is the same server as one before it: weight says how much of "
                            "the work it gets.")  # fmt: skip
        in_list.add((way[:-1], one.server))
        before = first.setdefault(one.server, one)
        if value.each_address and not value.url.startswith("http://"):
            reader.complain((*way, "each_address"), "is for http:// addresses alone.")
        for name in ("timeouts", "client", "slots", "failures", "each_address"):
            if getattr(before.upstream, name) != getattr(value, name):
                reader.complain(
                    way,
                    f"is the same server as {'.'.join(before.way)} (line "
                    f"{reader.places[before.way].line}), with other {name}: a server has one set.",
                )


def _outside(reader: Reader) -> None:
    for way, value in reader.values.items():
        if way[:1] == ("upstreams",) and way[2:] == ("model",) and value is not None:
            reader.complain(
                way,
                "an upstream outside of models is asked for its models: name it below models, "
                "or leave its model out.",
            )


def _engine(reader: Reader) -> None:
    served = next((name for name in ("models", "upstreams") if _names_some(reader, name)), None)
    if ("engine",) in reader.places and served:
        reader.complain(
            ("engine",), f"the engine runs only where there are no {served}: leave one of them out."
        )


def _names_some(reader: Reader, name: str) -> bool:
    return any(way[0] == name and len(way) > 1 for way in reader.places if way)


def _templates(reader: Reader) -> None:
    for way, value in reader.values.items():
        if value is not None or way[-1:] != ("template",):
            continue
        above: tuple[Way, ...] = ((), way[:2]) if len(way) > 3 else ((),)
        outer = next((up for up in above if reader.values.get((*up, "template"))), None)
        if outer is not None:
            told = ".".join((*outer, "template"))
            reader.complain(
                way, f"auto does not undo {told}: leave that out, and name it where it is wanted."
            )


def _budgets(reader: Reader) -> None:
    for way, value in reader.values.items():
        if isinstance(value, BudgetConfig) and (value.tokens is None) == (value.money is None):
            reader.complain(way, "a budget is of tokens or of money: name one of them.")
