"""The command line. Imports are lazy: `--version` and `--help` load nothing that serves."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tropilla import __version__

if TYPE_CHECKING:
    import socket

    from tropilla.config import Config

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(context_settings=_SETTINGS)
@click.version_option(__version__, "--version", prog_name="tropilla")
def main() -> None:
    """One OpenAI-compatible endpoint for a herd of llama.cpp servers."""


@main.command(context_settings=_SETTINGS)
@click.option(
    "--upstream", "--llama-api", "upstreams", multiple=True, metavar="URL",
    help="A running llama.cpp server to serve, as http://HOST:PORT. May be given several times. "
    "Without any, Tropilla runs an engine of its own.",
)  # fmt: skip
@click.option(
    "--upstream-api-key", metavar="KEY", envvar="TROPILLA_UPSTREAM_API_KEY",
    help="The key that the upstreams want.  [env: TROPILLA_UPSTREAM_API_KEY]",
)  # fmt: skip
@click.option(
    "--model", type=click.Path(path_type=Path), metavar="FILE.gguf",
    help="The model of the embedded engine. Without it, a tiny one that comes with Tropilla.",
)  # fmt: skip
@click.option("--model-name", metavar="NAME", help="Its name for clients; else the file's name.")
@click.option(
    "--slots", type=click.IntRange(1, 256), default=4, show_default=True,
    help="Requests that the embedded engine serves at once.",
)  # fmt: skip
@click.option(
    "--ctx-size", type=click.IntRange(0), default=0, metavar="TOKENS",
    help="Context of each slot of the embedded engine; 0 takes the model's own, up to 65536.",
)  # fmt: skip
@click.option(
    "--threads", type=click.IntRange(0), default=0, metavar="N",
    help="Threads of the embedded engine; 0 lets it choose.",
)  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8081, show_default=True,
    help="The port to listen on; 0 takes any that is free.",
)  # fmt: skip
@click.option(
    "--api-key", "api_keys", multiple=True, envvar="TROPILLA_API_KEY", metavar="KEY",
    help="A key that clients must show. May be given several times; an empty one means none.  "
    "[env: TROPILLA_API_KEY]",
)  # fmt: skip
@click.option(
    "--api-key-file", type=click.Path(path_type=Path), metavar="FILE",
    help="A file of such keys, one a line.",
)  # fmt: skip
@click.option(
    "--template", type=click.Choice(["auto", "classic"]),
    help="Who turns chat messages into a prompt: the server itself (auto, the default), or the "
    "template of api_like_OAI.py (classic, which the next five options choose too).",
)  # fmt: skip
@click.option(
    "--chat-prompt", metavar="TEXT", help=r"Classic: what comes first. \n is a line break."
)
@click.option("--user-name", metavar="TEXT", help="Classic: what comes before the user's words.")
@click.option("--ai-name", metavar="TEXT", help="Classic: what comes before the assistant's words.")
@click.option("--system-name", metavar="TEXT", help="Classic: what comes before a system message.")
@click.option(
    "--stop", metavar="TEXT", help='Classic: what ends an answer. Default: "</s>"; "" for nothing.'
)
@click.option(
    "--any-model/--no-any-model", default=None,
    help="Answer requests for a model that nobody serves with the model that is served. "
    "On by itself when started as api_like_OAI.py was (--llama-api, or a classic option).",
)  # fmt: skip
@click.option(
    "--allow-admin", is_flag=True,
    help="Relay the routes that change or expose a llama.cpp server.",
)  # fmt: skip
@click.pass_context
def serve(context: click.Context, /, **options: object) -> None:
    """Serve OpenAI clients from llama.cpp.

    With no options at all, serves a tiny model on http://127.0.0.1:8081.
    """
    from tropilla.config import ConfigError  # noqa: PLC0415

    logging.basicConfig(format="%(message)s", level=logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    try:
        config = _config(**options)  # type: ignore[arg-type]  # click has checked the types
        from tropilla.server.run import listen, run  # noqa: PLC0415

        sock = listen(config)
    except ConfigError as error:
        raise click.UsageError(str(error), context) from None
    base = _base(sock)
    click.echo(_banner(config, base))

    def first(model: str) -> None:
        if config.upstreams:
            click.echo(_try_it(config, base, model))

    fatal = run(config, sock, first)
    if fatal is not None:
        raise click.ClickException(fatal)


def _config(
    *,
    upstreams: tuple[str, ...],
    upstream_api_key: str | None,
    model: Path | None,
    model_name: str | None,
    slots: int,
    ctx_size: int,
    threads: int,
    host: str,
    port: int,
    api_keys: tuple[str, ...],
    api_key_file: Path | None,
    template: str | None,
    any_model: bool | None,
    allow_admin: bool,
    **classic: str | None,
) -> Config:
    from tropilla.config import (  # noqa: PLC0415
        TINY_MODEL,
        TINY_NAME,
        Config,
        ConfigError,
        EngineConfig,
        UpstreamConfig,
        read_keys,
        read_url,
    )
    from tropilla.templates import Classic  # noqa: PLC0415

    names = {name: text for name, text in classic.items() if text is not None}
    if names and template == "auto":
        raise ConfigError(
            f"--{next(iter(names)).replace('_', '-')} belongs to the classic template: "
            "leave out --template auto."
        )
    if model is not None and upstreams:
        raise ConfigError(
            "--model is for the embedded engine: it and --upstream exclude each other."
        )
    as_the_script = bool(names) or template == "classic" or "--llama-api" in _flags()
    return Config(
        listen=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        api_keys=read_keys(api_keys, api_key_file),
        upstreams=tuple(
            UpstreamConfig(url=read_url(url), api_key=upstream_api_key)
            for url in dict.fromkeys(upstreams)
        ),
        engine=EngineConfig(
            model=model or TINY_MODEL,
            name=model_name or (model.stem if model else TINY_NAME),
            slots=slots,
            ctx_size=ctx_size,
            threads=threads,
        ),
        template=Classic(**names) if names or template == "classic" else None,
        any_model=as_the_script if any_model is None else any_model,
        allow_admin=allow_admin,
    )


def _flags() -> set[str]:
    """The names of the flags as they were typed: an alias is only known by its spelling."""
    import sys  # noqa: PLC0415

    return {argument.split("=", 1)[0] for argument in sys.argv[1:]}


def _base(sock: socket.socket) -> str:
    """The base URL for clients on this machine."""
    host, port = sock.getsockname()[:2]
    shown = "127.0.0.1" if host in {"0.0.0.0", "::"} else host  # noqa: S104 - only read here
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/v1"


def _banner(config: Config, base: str) -> str:
    """What is served, and where; an engine's model has its name, so it can be tried at once."""
    engine = config.engine
    served = [f"  {one.url}" for one in config.upstreams] or [
        f"  {engine.name}: the embedded llama.cpp engine, {engine.slots} slots"
    ]
    lines = [f"Tropilla {__version__} listens on {base}, and serves", *served, ""]
    if not config.upstreams:
        lines.append(_try_it(config, base, engine.name))
    return "\n".join([*lines, "Ctrl-C ends it.\n"])


def _try_it(config: Config, base: str, model: str) -> str:
    """Lines to be copied into a terminal."""
    key = "YOUR_KEY" if config.api_keys else "none"
    header = " -H 'Authorization: Bearer YOUR_KEY'" if config.api_keys else ""
    messages = '[{"role": "user", "content": "Hello!"}]'
    return f"""\
Try it:
  curl {base}/chat/completions{header} -H 'Content-Type: application/json' \\
    -d '{{"model": "{model}", "messages": {messages}}}'

or, after pip install openai, in Python:
  from openai import OpenAI
  client = OpenAI(base_url="{base}", api_key="{key}")
  stream = client.chat.completions.create(
      model="{model}", messages={messages}, stream=True
  )
  for chunk in stream:
      print(chunk.choices[0].delta.content or "", end="", flush=True)
"""
