"""`tropilla chat`: a model in the terminal, of a gateway that runs or of one of its own."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tropilla.cli.asking import NoGateway, ask, asking, root_of, streamed
from tropilla.cli.options import SETTINGS

if TYPE_CHECKING:
    from tropilla.config import EngineConfig

_HELP = '''\
/system TEXT   what the model is told before everything; - for nothing; without TEXT, what that is
/model NAME    go on with another model; without NAME, which there are
/clear         begin anew; the system message stays
/save FILE     write the chat: as JSON, if FILE ends with .json, else as Markdown
/help          this
/exit          the end; Ctrl-D too
"""            begins and ends a message of several lines
Ctrl-C         stops an answer'''
# What a terminal would obey: a model may write anything.
_OBEYED = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])


@click.command("chat", context_settings=SETTINGS)
@asking
@click.option("--system", metavar="TEXT", help="What the model is told before everything.")
@click.option(
    "--prompt", "-p", metavar="TEXT",
    help="Ask that, print the answer, and end. What is piped in comes after it.",
)  # fmt: skip
@click.argument("model", required=False)
@click.pass_context
def command(
    context: click.Context,
    /,
    model: str | None,
    url: str,
    api_key: str | None,
    system: str | None,
    prompt: str | None,
) -> None:
    """Chat with a model in the terminal.

    MODEL is one that a gateway serves, a GGUF file, or OWNER/NAME[:QUANT] of the Hugging Face hub;
    without it, it is the gateway's first.

    The gateway is the one that runs at --url. Where none does, or it has no such model, an engine
    is started for the chat, and ends with it. What is piped in is one message, and the answer goes
    to standard output.
    """
    named = context.get_parameter_source("url") is not click.core.ParameterSource.DEFAULT
    # A terminal that is closed ends the chat in order.
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: sys.exit(1))
    text = _piped(prompt)
    with ExitStack() as stack:
        chat = _open(stack, root_of(url), api_key, model, named=named)
        if system:
            chat.system = system
        if text is not None:
            _once(chat, text)
        else:
            _talk(chat)


class Refused(Exception):  # noqa: N818 - what people read
    """Why there is no answer."""


class Chat:
    """What was said, and to whom."""

    def __init__(self, root: str, key: str | None, card: dict[str, Any]) -> None:
        self._root = root
        self._key = key
        self.card = card
        self.system: str | None = None
        self.messages: list[dict[str, str]] = []
        self.told = ""
        """Of the last answer: how fast it was, and how much the model has seen."""

    def models(self) -> list[dict[str, Any]]:
        """The models that there are."""
        cards: list[dict[str, Any]] = ask(self._root, self._key, "/v1/models")["data"]
        return cards

    def said(self) -> list[dict[str, str]]:
        """All messages, the system's first."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        return [*first, *self.messages]

    def ask(self, text: str) -> Generator[tuple[str, str]]:
        """Say something; the answer comes in pieces of `content` and of `reasoning`.

        What has come of it is kept, however it ends; without any, nothing was said.

        Raises:
            Refused: there is no answer.
        """
        self.messages.append({"role": "user", "content": text})
        answer = ""
        body = {
            "model": self.card["id"],
            "messages": self.said(),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        clock = _Clock(self.card.get("context_length"))
        try:
            for chunk in streamed(self._root, self._key, "/v1/chat/completions", body):
                if "error" in chunk:
                    raise Refused(chunk["error"]["message"])
                for kind, piece in clock.heard(chunk):
                    answer += piece if kind == "content" else ""
                    yield kind, piece
        except click.ClickException as error:
            raise Refused(error.message) from None
        except OSError as error:
            raise Refused(f"The gateway has gone: {error}.") from None
        finally:
            if answer:
                self.messages.append({"role": "assistant", "content": answer})
            else:
                self.messages.pop()
            self.told = clock.told()


class _Clock:
    """How long an answer is, and how fast it came."""

    def __init__(self, context: int | None) -> None:
        self._context = context
        self._first = self._last = 0.0
        self._pieces = 0
        self._usage: dict[str, Any] = {}
        self._speed: float | None = None
        self._cut = False

    def heard(self, chunk: dict[str, Any]) -> Iterator[tuple[str, str]]:
        """The text of a chunk."""
        self._usage = chunk.get("usage") or self._usage
        self._speed = (chunk.get("timings") or {}).get("predicted_per_second", self._speed)
        for choice in chunk["choices"]:
            self._cut = self._cut or choice.get("finish_reason") == "length"
            for kind, name in (("reasoning", "reasoning_content"), ("content", "content")):
                if piece := choice["delta"].get(name):
                    self._last = time.monotonic()
                    self._first = self._first or self._last
                    self._pieces += 1
                    yield kind, piece

    def told(self) -> str:
        """All of it in words."""
        count = self._usage.get("completion_tokens", self._pieces)
        seconds = self._last - self._first
        speed = self._speed or ((count - 1) / seconds if count > 1 and seconds else None)
        parts = [f"{count} tokens" if count != 1 else "1 token"]
        if speed:
            parts.append(f"{speed:.1f} tokens/s")
        if total := self._usage.get("total_tokens"):
            seen = f"context {total}"
            if self._context:
                seen += f" of {self._context} ({100 * total / self._context:.0f} %)"
            parts.append(seen)
        if self._cut:
            parts.append("cut at its limit")
        return ", ".join(parts)


def _piped(prompt: str | None) -> str | None:
    """The one message, where there is only one."""
    if sys.stdin.isatty():
        return prompt
    told = sys.stdin.read().strip()
    text = "\n\n".join(one for one in (prompt, told) if one)
    if not text:
        raise click.UsageError("Nothing was piped in, and there is no --prompt.")
    return text


def _open(stack: ExitStack, root: str, key: str | None, model: str | None, *, named: bool) -> Chat:
    """The chat with a model, wherever that is."""
    cards: list[dict[str, Any]] | None = None
    try:
        cards = ask(root, key, "/v1/models")["data"]
    except NoGateway:
        if named:
            raise
    if cards is not None and model is None:
        if not cards:
            raise click.ClickException(f"The gateway at {root} serves nothing yet.")
        able = [one for one in cards if one["status"]["value"] == "loaded"]
        return Chat(root, key, (able or cards)[0])
    if cards is not None and (card := _card(cards, model)):
        return Chat(root, key, card)
    if model is None or "/" in model or model.endswith(".gguf"):
        return _own(stack, model)
    if cards is None:
        raise click.ClickException(
            f"No gateway runs at {root}, and {model} is no GGUF file and no OWNER/NAME of the hub."
        )
    there = ", ".join(one["id"] for one in cards) or "nothing"
    raise click.ClickException(f"The gateway at {root} serves no {model}; it serves {there}.")


def _own(stack: ExitStack, model: str | None) -> Chat:
    """A chat with an engine that is there for it alone."""
    import secrets  # noqa: PLC0415

    from tropilla.cli.fetching import TOO_LARGE, sized  # noqa: PLC0415
    from tropilla.cli.running import gateway  # noqa: PLC0415
    from tropilla.config import Config  # noqa: PLC0415

    engine, plan = sized(_engine(model))
    if plan is not None:
        click.echo(f"{engine.name}: {plan.said()}", err=True)
        if not plan.fits:
            click.echo(TOO_LARGE, err=True)
    key = secrets.token_urlsafe(32)
    config = Config(listen="127.0.0.1:0", engine=engine, api_keys=(key,), drain=0)
    root = stack.enter_context(gateway(config))
    return Chat(root, key, ask(root, key, "/v1/models")["data"][0])


def _engine(model: str | None) -> EngineConfig:
    from tropilla.config import EngineConfig  # noqa: PLC0415

    if model is None:
        return EngineConfig(slots=1)
    if model.endswith(".gguf"):
        path = Path(model).expanduser()
        return EngineConfig(slots=1, model=path, name=path.stem)
    from tropilla.cli.fetching import fetched, read_wanted  # noqa: PLC0415

    wanted = read_wanted(model)
    return EngineConfig(slots=1, model=fetched(wanted), name=wanted.name)


def _card(cards: list[dict[str, Any]], name: str | None) -> dict[str, Any] | None:
    return next((one for one in cards if name in {one["id"], *one.get("aliases", ())}), None)


def _once(chat: Chat, text: str) -> None:
    last = "\n"
    try:
        for kind, piece in chat.ask(text):
            if kind == "content":
                click.echo(piece, nl=False)
                last = piece
    except Refused as error:
        raise click.ClickException(str(error)) from None
    if not last.endswith("\n"):
        click.echo()


def _talk(chat: Chat) -> None:
    """Ask and answer, until the end."""
    with suppress(ImportError):
        import readline  # noqa: F401, PLC0415 - by being there, it edits the lines that are typed

    click.echo(f"{chat.card['id']}. /help says what can be done, Ctrl-D ends.")
    while True:
        try:
            text = _typed()
            word, _, rest = text.partition(" ")
            if word in {"/exit", "/bye", "/quit"}:
                return
            if text.startswith("/") and not text.startswith("//"):
                _obey(chat, word, rest.strip())
            elif text.strip():
                _answer(chat, text.removeprefix("/") if text.startswith("//") else text)
        except KeyboardInterrupt:
            click.echo("\nCtrl-D ends.")
        except EOFError:
            click.echo()
            return


def _typed() -> str:
    """A message: a line, or several between triple quotes."""
    line = input(">>> ")
    if not line.startswith('"""'):
        return line
    text = line[3:]
    while '"""' not in text:
        text += "\n" + input("... ")
    return text.partition('"""')[0].strip("\n")


def _answer(chat: Chat, text: str) -> None:
    last = ""
    try:
        with closing(chat.ask(text)) as pieces:
            for kind, piece in pieces:
                last = piece.translate(_OBEYED)
                click.secho(last, nl=False, dim=kind == "reasoning")
    except KeyboardInterrupt:
        click.echo(" (stopped)", nl=False)
        last = " "
    except Refused as error:
        if last:
            click.echo()
        click.secho(str(error), fg="red")
        return
    if not last.endswith("\n"):
        click.echo()
    click.secho(f"[{chat.told}]", dim=True)


def _obey(chat: Chat, word: str, rest: str) -> None:
    """Do what a line that begins with a slash says."""
    try:
        match word:
            case "/help":
                click.echo(_HELP)
            case "/clear":
                chat.messages.clear()
                click.echo("Anew.")
            case "/system":
                chat.system = None if rest == "-" else rest or chat.system
                click.echo(f"System: {chat.system or 'nothing'}")
            case "/model":
                _model(chat, rest)
            case "/save":
                _save(chat, rest)
            case _:
                click.echo(f"There is no {word}: /help says what there is.")
    except click.ClickException as error:
        click.secho(error.message, fg="red")


def _model(chat: Chat, name: str) -> None:
    cards = chat.models()
    if name:
        card = _card(cards, name)
        if card is None:
            raise click.ClickException(f"There is no {name}; /model says which there are.")
        chat.card = card
    for one in cards:
        mark = "*" if one["id"] == chat.card["id"] else " "
        size = f", {one['context_length']} tokens" if "context_length" in one else ""
        click.echo(f"{mark} {one['id']}{size}")


def _save(chat: Chat, name: str) -> None:
    import msgspec  # noqa: PLC0415

    if not name:
        raise click.ClickException("/save FILE: where to?")
    path = Path(name).expanduser()
    if path.suffix == ".json":
        told = {"model": chat.card["id"], "messages": chat.said()}
        text = msgspec.json.format(msgspec.json.encode(told), indent=2).decode() + "\n"
    else:
        parts = (f"## {one['role']}\n\n{one['content']}\n" for one in chat.said())
        text = "\n".join([f"# {chat.card['id']}\n", *parts])
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror}.") from None
    click.echo(f"Saved in {path}.")
