"""What `tropilla serve` prints when it listens: what is served, where, and how to try it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tropilla import __version__
from tropilla.cli.fetching import TOO_LARGE
from tropilla.config import Config, UpstreamConfig, shown_url

if TYPE_CHECKING:
    from tropilla.models.sizing import Plan


def base_of(sock: socket.socket) -> str:
    """The base URL for clients on this machine."""
    host, port = sock.getsockname()[:2]
    shown = "127.0.0.1" if host in {"0.0.0.0", "::"} else host  # noqa: S104 - only read here
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/v1"


def banner(config: Config, base: str, file: Path | None, plan: Plan | None) -> str:
    """What is served, and where; an engine's model has its name, so it can be tried at once."""
    lines = [f"Tropilla {__version__} listens on {base}, and serves", *_served(config, plan)]
    if file is not None:
        lines.append(f"Its settings are from {file}.")
    lines.append("")
    if not config.upstreams and not config.models:
        lines.append(try_it(config, base, config.engine.name))
    return "\n".join([*lines, "Ctrl-C ends it.\n"])


def try_it(config: Config, base: str, model: str) -> str:
    """Lines to be copied into a terminal."""
    key = "YOUR_KEY" if config.wants_key else "none"
    header = " -H 'Authorization: Bearer YOUR_KEY'" if config.wants_key else ""
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


def _served(config: Config, plan: Plan | None) -> Iterator[str]:
    for name, model in config.models.items():
        aliases = f" (also {', '.join(model.aliases)})" if model.aliases else ""
        yield f"  {name}{aliases}: {', '.join(_shown(one) for one in model.upstreams)}"
    for one in config.upstreams:
        yield f"  {_shown(one)}"
    if not config.models and not config.upstreams:
        engine = config.engine
        size = f", {plan.said()}" if plan is not None else ""
        yield f"  {engine.name}: the embedded llama.cpp engine{size}"
        if plan is not None and not plan.fits:
            yield f"  {TOO_LARGE}"


def _shown(upstream: UpstreamConfig) -> str:
    weight = f" (weight {upstream.weight:g})" if upstream.weight != 1 else ""
    return shown_url(upstream.url) + weight
