"""The bytes of a file to values that know where they stand: YAML 1.2, of which JSON is a part.

Only what YAML 1.2's core schema calls so is a number or a truth value: `yes`, `on`, `12:30` and
dates are texts. References within the file (`&name`, `*name`) are followed; merge keys (`<<`) are
not YAML 1.2. No tag makes anything but these plain values, and what cannot be one is an `Odd`.
"""

from __future__ import annotations

import re

import yaml

from tropilla.config.nodes import (
    CORE,
    FORMS,
    Complaint,
    Items,
    Node,
    Odd,
    Place,
    Refused,
    Scalar,
    plain,
)

LARGEST = 1024 * 1024
"""Bytes of a config file."""

_TAG = "tag:yaml.org,2002:"


def parse(data: bytes, source: str) -> Node:
    """The values of a file; an empty one is an empty mapping.

    Raises:
        Refused: it is not one document of YAML.
    """

    def refuse(message: str, line: int = 0, column: int = 0) -> Refused:
        return Refused(Complaint(Place(source, line, column), "", message))

    if len(data) > LARGEST:
        raise refuse(f"a config file has at most {LARGEST} bytes.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = _position(data[: error.start].decode("utf-8", "replace"))
        raise refuse("the file is not in UTF-8.", line, column) from None
    if text.lstrip().startswith("{"):
        # JSON may be indented with tabs, which YAML's reader refuses; none is in a JSON string.
        text = text.replace("\t", " ")
    try:
        root = yaml.compose(text, Loader=_Loader)
        node = None if root is None else _Reader(source).node(root)
    except yaml.reader.ReaderError as error:
        line, column = _position(text[: error.position])
        raise refuse("there is a control character in the file.", line, column) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise refuse(_worded(error.problem or ""), *where) from None
    except RecursionError:
        raise refuse("the file is nested too deeply.") from None
    if node is None or node.value is None:
        return Node(Place(source, 1, 1), Items(()))
    return node


class _Loader(yaml.SafeLoader):
    pass


# PyYAML's own are YAML 1.1's.
_Loader.yaml_implicit_resolvers = {}
for _tag, _form, _first in CORE:
    _Loader.add_implicit_resolver(_TAG + _tag, _form, _first)


class _Reader:
    """PyYAML's nodes to ours. What is referred to several times stays one value."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._done: dict[int, Node] = {}
        self._open: set[int] = set()

    def node(self, node: yaml.Node) -> Node:
        """The value of a node."""
        mark = node.start_mark
        place = Place(self._source, mark.line + 1, mark.column + 1)
        if id(node) in self._open:
            return Node(place, Odd("refers to itself"))
        if id(node) not in self._done:
            self._open.add(id(node))
            self._done[id(node)] = Node(place, self._value(node))
            self._open.remove(id(node))
        return self._done[id(node)]

    def _value(self, node: yaml.Node) -> Scalar | list[Node] | Items | Odd:
        tag = node.tag.removeprefix(_TAG)
        match node:
            case yaml.ScalarNode(value=text) if tag in {"str", *FORMS}:
                if tag in FORMS and not FORMS[tag].match(text):
                    return Odd("is not what its tag says")
                return plain(tag, _joined(text)) if _is_text(text) else Odd("is no text")
            case yaml.SequenceNode(value=items) if tag == "seq":
                return [self.node(item) for item in items]
            case yaml.MappingNode(value=pairs) if tag == "map":
                return Items(tuple((self._key(key), self.node(value)) for key, value in pairs))
            case _:
                return Odd("has a tag (`!`) that means nothing here: leave it out")

    def _key(self, node: yaml.Node) -> Node:
        """A key is a text, whatever it looks like: a model may be called 70."""
        key = self.node(node)
        is_text = isinstance(node, yaml.ScalarNode) and not isinstance(key.value, Odd)
        return key._replace(value=node.value if is_text else Odd("is no name of a setting"))


def _joined(text: str) -> str:
    """JSON writes what is beyond 16 bits as two halves."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16")


def _is_text(text: str) -> bool:
    try:
        _joined(text)
    except UnicodeDecodeError:
        return False
    return True


def _position(before: str) -> tuple[int, int]:
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def _worded(problem: str) -> str:
    """What PyYAML says is wrong, without the words of the file: a secret may be among them."""
    if "document" in problem and "another" in problem:
        return "a config file has only one document: there is a second one."
    if "undefined alias" in problem:
        return "a `*` refers to what no `&` names: put a text that begins with `*` in quotes."
    if "cannot start any token" in problem:
        return (
            "a value cannot begin with this character (a tab, `@`, `` ` `` and `%` are such): "
            "put it in quotes, and indent with spaces."
        )
    if "mapping values are not allowed" in problem:
        return "a `: ` cannot stand here: put a text that has one in quotes, or mend the indent."
    if "but got '{'" in problem:
        return "a `{` cannot stand here: within braces or brackets, put `${NAME}` in quotes."
    told = re.sub(r"'([^']*)'", _token, problem)
    return f"this is not YAML: {told}."


def _token(quoted: re.Match[str]) -> str:
    is_of_yaml = len(quoted[1]) <= 1 or re.fullmatch("<[a-z ]+>", quoted[1])
    return quoted[0] if is_of_yaml else "'...'"
