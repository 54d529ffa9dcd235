"""How each gateway is started in front of an upstream, and where it is to be had."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import msgspec

ROOT = Path(__file__).parent.parent
VENVS = ROOT / ".venvs"


class Started(NamedTuple):
    """What to run, and how to ask it."""

    command: list[str]
    environment: dict[str, str] = {}  # noqa: RUF012 - never changed
    headers: tuple[str, ...] = ()
    """More headers of each request."""
    ready: str = "/health"
    """What it answers once it serves."""


class Gateway(NamedTuple):
    """One of those that are compared."""

    name: str
    what: str
    program: Path | None
    """`None` if it is not here."""
    missing: str = ""
    """How to have it."""
    translates: bool = False
    """Whether it asks another dialect than it is asked."""

    def start(self, port: int, upstreams: list[int], folder: Path) -> Started:
        """How to run it on a port, before these upstreams."""
        return _START[self.name.split()[0]](self, port, upstreams, folder)


def _tropilla(one: Gateway, port: int, upstreams: list[int], folder: Path) -> Started:
    urls = [f"http://127.0.0.1:{upstream}" for upstream in upstreams]
    model: dict[str, object] = {"upstreams": urls}
    if one.translates:
        # The classic template: chat becomes a prompt here, for the server's own /completion.
        model["template"] = "classic"
    told = {
        "listen": f"127.0.0.1:{port}",
        "api_keys": ["bench"],
        "models": {"m": model},
        "accounts": {"store": f"sqlite:///{folder}/tropilla.db"},
    }
    file = folder / "tropilla.yaml"
    file.write_bytes(msgspec.json.encode(told))  # JSON is YAML
    return Started([str(one.program), "serve", "--config", str(file)])


_NGINX = """
daemon off; worker_processes 1; error_log {folder}/error.log crit; pid {folder}/pid;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream herd {{ {servers} keepalive 1024; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096; keepalive_requests 10000000;
    location / {{
      proxy_pass http://herd; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""


def _nginx(one: Gateway, port: int, upstreams: list[int], folder: Path) -> Started:
    servers = " ".join(f"server 127.0.0.1:{upstream};" for upstream in upstreams)
    file = folder / "nginx.conf"
    told = _NGINX.format(folder=folder, servers=servers, port=port)
    file.write_text(told, encoding="utf-8")
    return Started([str(one.program), "-p", str(folder), "-c", str(file)])


def _smg(one: Gateway, port: int, upstreams: list[int], folder: Path) -> Started:
    del folder
    urls = [f"http://127.0.0.1:{upstream}" for upstream in upstreams]
    more = ["--policy", "cache_aware", "--backend", "openai", "--log-level", "error"]
    other = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(port + 1)]
    return Started([str(one.program), "launch", "--worker-urls", *urls, *more, *other])


def _litellm(one: Gateway, port: int, upstreams: list[int], folder: Path) -> Started:
    models = [
        {
            "model_name": "m",
            "litellm_params": {
                "model": "openai/m",
                "api_base": f"http://127.0.0.1:{upstream}/v1",
                "api_key": "none",
            },
        }
        for upstream in upstreams
    ]
    file = folder / "litellm.yaml"
    file.write_bytes(msgspec.json.encode({"model_list": models}))
    told = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }
    command = [str(one.program), "--config", str(file), "--host", "127.0.0.1", "--port", str(port)]
    return Started([*command, "--telemetry", "False"], told, ready="/health/liveliness")


def _portkey(one: Gateway, port: int, upstreams: list[int], folder: Path) -> Started:
    del folder
    host = f"http://127.0.0.1:{upstreams[0]}/v1"
    headers = ("x-portkey-provider: openai", f"x-portkey-custom-host: {host}")
    command = [shutil.which("node") or "node", str(one.program), f"--port={port}", "--headless"]
    return Started(command, {"TRUSTED_CUSTOM_HOSTS": "127.0.0.1"}, headers, ready="/")


def _flask(one: Gateway, port: int, upstreams: list[int], folder: Path) -> Started:
    del folder
    script = ROOT / "bench" / "peers" / "flask" / "script.py"
    return Started([str(one.program), str(script), str(port), f"http://127.0.0.1:{upstreams[0]}"])


def _bare(one: Gateway, port: int, upstreams: list[int], folder: Path) -> Started:
    del folder
    script = ROOT / "bench" / "peers" / "bare" / "relay.py"
    return Started([str(one.program), str(script), str(port), str(upstreams[0])])


_START = {
    "bare": _bare,
    "tropilla": _tropilla,
    "nginx": _nginx,
    "smg": _smg,
    "litellm": _litellm,
    "portkey": _portkey,
    "flask": _flask,
}


def _here(path: Path) -> Path | None:
    return path if path.exists() else None


def gateways() -> list[Gateway]:
    """All that are compared, in the order in which they are told."""
    own = Path(sys.executable).with_name("tropilla")
    nginx = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    peers = "make bench sets it up"
    return [
        Gateway("tropilla", "with keys, usage, ledger, metrics, affinity, queue", own),
        Gateway("tropilla (translating)", "chat to /completion", own, translates=True),
        Gateway("bare", "what a relay in Python costs at least", Path(sys.executable)),
        Gateway("nginx", "pass-through", Path(nginx) if nginx else None, "apt-get install nginx"),
        Gateway("smg", "cache-aware", _here(VENVS / "bench-smg/bin/smg"), peers),
        Gateway("litellm", "proxy", _here(VENVS / "bench-litellm/bin/litellm"), peers),
        Gateway(
            "portkey",
            "gateway",
            _here(VENVS / "bench-portkey/node_modules/@portkey-ai/gateway/build/start-server.js"),
            peers + ", where npm is",
        ),
        Gateway(
            "flask",
            "a script as api_like_OAI.py was",
            _here(VENVS / "bench-flask/bin/python"),
            peers,
            translates=True,
        ),
    ]
