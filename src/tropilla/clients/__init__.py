"""How programs are told of a gateway: their own settings, with its address, a key and a model.

A client is a row of `CLIENTS`: what it is called, where its documentation says how, and a function
of a `Place` that tells what to run and which file of settings to change. Only values: `edits` makes
the new text of a file, and whoever wants it written writes it.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any, Literal

import msgspec


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A gateway, and the model that is asked for there."""

    root: str
    """Its address, without `/v1`."""
    model: str
    key: str | None = None
    context: int | None = None
    """Tokens that the model can see, where that is known."""

    @property
    def base(self) -> str:
        """The base URL of OpenAI's clients."""
        return f"{self.root}/v1"

    @property
    def shown_key(self) -> str:
        """What goes where a client insists on a key."""
        return self.key or "none"


class Step(msgspec.Struct, frozen=True):
    """Something to run, to paste or to do."""

    language: Literal["sh", "python", "js", "text"]
    text: str
    title: str = ""
    needed: bool = False
    """Also where the file of settings was written."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """A file that a client reads, and what has to be in it."""

    file: str
    """Its name, below `folder`."""
    folder: str
    """`~/...`, or `app:NAME` for the system's own place for the settings of NAME."""
    variable: str | None = None
    """An environment variable that names another folder."""
    kind: Literal["json", "yaml", "yaml-item", "toml"]
    """JSON and YAML are merged into what is there; a list gets an item; TOML is a file of ours."""
    value: Any
    under: str | None = None
    """The key of the list that gets the item; without one, the file is the list."""


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """All that connects a client."""

    steps: tuple[Step, ...] = ()
    settings: Settings | None = None


class Client(msgspec.Struct, frozen=True):
    """A program that can be connected."""

    name: str
    title: str
    documentation: str
    connection: Callable[[Place], Connection]


def _openai_python(place: Place) -> Connection:
    code = f"""\
from openai import OpenAI

client = OpenAI(base_url={_quoted(place.base)}, api_key={_quoted(place.shown_key)})
stream = client.chat.completions.create(
    model={_quoted(place.model)},
    messages=[{{"role": "user", "content": "Hello!"}}],
    stream=True,
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
"""
    return Connection(
        steps=(
            Step("python", code, "After pip install openai:"),
            Step("sh", _environment(place), "Or leave a program as it is, and run it after:"),
        )
    )


def _openai_node(place: Place) -> Connection:
    code = f"""\
import OpenAI from "openai";

const client = new OpenAI({{
  baseURL: {_quoted(place.base)}, apiKey: {_quoted(place.shown_key)},
}});
const stream = await client.chat.completions.create({{
  model: {_quoted(place.model)}, messages: [{{ role: "user", content: "Hello!" }}], stream: true,
}});
for await (const chunk of stream) process.stdout.write(chunk.choices[0]?.delta?.content ?? "");
console.log();
"""
    return Connection(
        steps=(
            Step("js", code, "After npm install openai, in a file that ends with .mjs:"),
            Step("sh", _environment(place), "Or leave a program as it is, and run it after:"),
        )
    )


def _curl(place: Place) -> Connection:
    body = {
        "model": place.model,
        "messages": [{"role": "user", "content": "Hello!"}],
        "stream": True,
    }
    told = msgspec.json.format(msgspec.json.encode(body), indent=0).decode()
    key = f" -H {shlex.quote(f'Authorization: Bearer {place.key}')}" if place.key else ""
    line = (
        f"curl -N {shlex.quote(place.base + '/chat/completions')}{key} "
        f"-H 'Content-Type: application/json' \\\n  -d {shlex.quote(told)}\n"
    )
    return Connection(steps=(Step("sh", line),))


def _langchain(place: Place) -> Connection:
    code = f"""\
from langchain_openai import ChatOpenAI

llm = ChatOpenAI(
    model={_quoted(place.model)},
    base_url={_quoted(place.base)},
    api_key={_quoted(place.shown_key)},
)
for chunk in llm.stream("Hello!"):
    print(chunk.content, end="", flush=True)
print()
"""
    return Connection(steps=(Step("python", code, "After pip install langchain-openai:"),))


def _llamaindex(place: Place) -> Connection:
    window = f"    context_window={place.context},\n" if place.context else ""
    code = f"""\
from llama_index.llms.openai_like import OpenAILike

llm = OpenAILike(
    model={_quoted(place.model)},
    api_base={_quoted(place.base)},
    api_key={_quoted(place.shown_key)},
    is_chat_model=True,
{window})
for part in llm.stream_complete("Hello!"):
    print(part.delta, end="", flush=True)
print()
"""
    title = "After pip install llama-index-llms-openai-like:"
    return Connection(steps=(Step("python", code, title),))


def _ai_sdk(place: Place) -> Connection:
    code = f"""\
import {{ createOpenAICompatible }} from "@ai-sdk/openai-compatible";
import {{ streamText }} from "ai";

const tropilla = createOpenAICompatible({{
  name: "tropilla",
  baseURL: {_quoted(place.base)},
  apiKey: {_quoted(place.shown_key)},
  includeUsage: true,
}});
const {{ textStream }} = streamText({{
  model: tropilla({_quoted(place.model)}), prompt: "Hello!",
}});
for await (const text of textStream) process.stdout.write(text);
console.log();
"""
    title = "After npm install ai @ai-sdk/openai-compatible, in a file that ends with .mjs:"
    return Connection(steps=(Step("js", code, title),))


def _claude_code(place: Place) -> Connection:
    told = {
        "ANTHROPIC_BASE_URL": place.root,
        "ANTHROPIC_AUTH_TOKEN": place.shown_key,
        # A key that is set wins over the token.
        "ANTHROPIC_API_KEY": "",
        "ANTHROPIC_DEFAULT_OPUS_MODEL": place.model,
        "ANTHROPIC_DEFAULT_SONNET_MODEL": place.model,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": place.model,
        "CLAUDE_CODE_SUBAGENT_MODEL": place.model,
        # A line that differs with every request, at the very start of the prompt: no cache would
        # ever be used.
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
    }
    if place.context:
        told["CLAUDE_CODE_AUTO_COMPACT_WINDOW"] = str(place.context)
    words = [f"{name}={shlex.quote(value)}" for name, value in told.items()]
    return Connection(
        steps=(Step("sh", " \\\n  ".join([*words, "claude\n"]), "Or for once, without a file:"),),
        settings=Settings(
            file="settings.json",
            folder="~/.claude",
            variable="CLAUDE_CONFIG_DIR",
            kind="json",
            value={"env": told},
        ),
    )


def _codex(place: Place) -> Connection:
    told: dict[str, Any] = {"model": place.model, "model_provider": "tropilla"}
    if place.context:
        told |= {"model_context_window": place.context}
    provider = {"name": "Tropilla", "base_url": place.base, "wire_api": "responses"}
    if place.key:
        provider |= {"env_key": "TROPILLA_API_KEY"}
    export = f"export TROPILLA_API_KEY={shlex.quote(place.key)}\n" if place.key else ""
    return Connection(
        steps=(Step("sh", f"{export}codex --profile tropilla\n", "Then:", needed=True),),
        settings=Settings(
            file="tropilla.config.toml",
            folder="~/.codex",
            variable="CODEX_HOME",
            kind="toml",
            value=told | {"model_providers": {"tropilla": provider}},
        ),
    )


def _aider(place: Place) -> Connection:
    told = {
        "openai-api-base": place.base,
        "openai-api-key": place.shown_key,
        "model": f"openai/{place.model}",
    }
    flags = " ".join(f"--{name} {shlex.quote(value)}" for name, value in told.items())
    return Connection(
        steps=(Step("sh", f"aider {flags}\n", "Or for once, without a file:"),),
        settings=Settings(file=".aider.conf.yml", folder="~", kind="yaml", value=told),
    )


def _continue(place: Place) -> Connection:
    told: dict[str, Any] = {
        "name": f"Tropilla: {place.model}",
        "provider": "openai",
        "model": place.model,
        "apiBase": place.base,
        "apiKey": place.shown_key,
        "roles": ["chat", "edit", "apply"],
    }
    if place.context:
        told["defaultCompletionOptions"] = {"contextLength": place.context}
    return Connection(
        settings=Settings(
            file="config.yaml",
            folder="~/.continue",
            variable="CONTINUE_GLOBAL_DIR",
            kind="yaml-item",
            value=told,
            under="models",
        )
    )


def _cline(place: Place) -> Connection:
    line = (
        f"cline auth --provider openai-compatible --apikey {shlex.quote(place.shown_key)} "
        f"--baseurl {shlex.quote(place.base)} \\\n  --modelid {shlex.quote(place.model)}\n"
    )
    form = (
        "API Provider: OpenAI Compatible\n"
        f"Base URL:     {place.base}\n"
        f"API Key:      {place.shown_key}\n"
        f"Model ID:     {place.model}\n"
    )
    if place.context:
        form += f"Context Window Size (under Model Configuration): {place.context}\n"
    return Connection(
        steps=(
            Step("sh", line, "In a terminal, after npm install -g cline:"),
            Step("text", form, "In an editor, behind the wheel of Cline's panel:"),
        )
    )


def _open_webui(place: Place) -> Connection:
    told = {"OPENAI_API_BASE_URL": place.base, "OPENAI_API_KEY": place.shown_key}
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in told.items())
    flags = " ".join(f"-e {shlex.quote(f'{name}={value}')}" for name, value in told.items())
    docker = (
        f"docker run -d --network=host {flags} \\\n"
        '  -v open-webui:/app/backend/data --name open-webui "$OPEN_WEBUI_IMAGE"\n'
    )
    form = (
        "Admin Settings > Connections > OpenAI API > + (Add Connection)\n"
        f"URL:  {place.base}\n"
        f"Key:  {place.shown_key}\n"
    )
    return Connection(
        steps=(
            Step("sh", f"{exports}open-webui serve\n", "After pip install open-webui:"),
            Step(
                "sh",
                docker,
                "With Docker, on the same machine, where OPEN_WEBUI_IMAGE is the image that its "
                "documentation names; it listens on port 8080:",
            ),
            Step("text", form, "Once it has started it goes by its own database. There:"),
        )
    )


def _llm(place: Place) -> Connection:
    told: dict[str, Any] = {
        "model_id": f"tropilla/{place.model}",
        "model_name": place.model,
        "api_base": place.base,
        "supports_schema": True,
        "supports_tools": True,
    }
    line = f"llm -m {shlex.quote(told['model_id'])} 'Hello!'\n"
    steps = [Step("sh", line, "Then:", needed=True)]
    if place.key:
        told["api_key_name"] = "tropilla"
        line = f"llm keys set tropilla --value {shlex.quote(place.key)}\n"
        steps.insert(0, Step("sh", line, "The key, which llm keeps apart:", needed=True))
    return Connection(
        steps=tuple(steps),
        settings=Settings(
            file="extra-openai-models.yaml",
            folder="app:io.datasette.llm",
            variable="LLM_USER_PATH",
            kind="yaml-item",
            value=told,
        ),
    )


def _zed(place: Place) -> Connection:
    model = {
        "name": place.model,
        "display_name": f"Tropilla: {place.model}",
        "max_tokens": place.context or _ASSUMED_CONTEXT,
        "capabilities": {
            "tools": True, "images": False, "parallel_tool_calls": True, "prompt_cache_key": False,
        },
    }  # fmt: skip
    told = {"api_url": place.base, "available_models": [model]}
    line = f"TROPILLA_API_KEY={shlex.quote(place.shown_key)} zed\n"
    title = "Then, as Zed takes keys from nowhere else but its own panel:"
    return Connection(
        steps=(Step("sh", line, title, needed=True),),
        settings=Settings(
            file="zed/settings.json",
            folder="~/.config",
            variable="XDG_CONFIG_HOME",
            kind="json",
            value={"language_models": {"openai_compatible": {"tropilla": told}}},
        ),
    )


def _n8n(place: Place) -> Connection:
    credentials = [
        {
            "id": "tropilla",
            "name": "Tropilla",
            "type": "openAiApi",
            "data": {"apiKey": place.shown_key, "url": place.base},
        }
    ]
    told = msgspec.json.format(msgspec.json.encode(credentials), indent=0).decode()
    line = (
        f"printf %s {shlex.quote(told)} > tropilla.json\n"
        "n8n import:credentials --input=tropilla.json\n"
        "rm tropilla.json\n"
    )
    form = (
        "Credentials > Create credential > OpenAI\n"
        f"API Key:   {place.shown_key}\n"
        f"Base URL:  {place.base}\n"
        "Then, in the node OpenAI Chat Model:\n"
        f"Model, By ID:  {place.model}\n"
    )
    return Connection(
        steps=(
            Step("text", form, "In the browser:"),
            Step("sh", line, "Or in a terminal where n8n is; the node then finds it by its name:"),
        )
    )


_ASSUMED_CONTEXT = 8192
"""Zed wants a number; this is the smallest that an agent's prompts fit into."""


def _quoted(text: str) -> str:
    """As a literal of JSON, which is one of Python and of JavaScript too."""
    return msgspec.json.encode(text).decode()


def _environment(place: Place) -> str:
    base, key = shlex.quote(place.base), shlex.quote(place.shown_key)
    return f"export OPENAI_BASE_URL={base} OPENAI_API_KEY={key}\n"


CLIENTS = {
    one.name: one
    for one in (
        Client("openai-python", "OpenAI's SDK for Python",
               "https://github.com/openai/openai-python", _openai_python),
        Client("openai-node", "OpenAI's SDK for Node.js",
               "https://github.com/openai/openai-node", _openai_node),
        Client("curl", "curl", "https://curl.se/docs/manpage.html", _curl),
        Client("langchain", "LangChain",
               "https://docs.langchain.com/oss/python/integrations/chat/openai", _langchain),
        Client("llamaindex", "LlamaIndex",
               "https://docs.llamaindex.ai/en/stable/api_reference/llms/openai_like/", _llamaindex),
        Client("ai-sdk", "Vercel AI SDK",
               "https://ai-sdk.dev/providers/openai-compatible-providers", _ai_sdk),
        Client("claude-code", "Claude Code",
               "https://code.claude.com/docs/en/llm-gateway", _claude_code),
        Client("codex", "Codex", "https://developers.openai.com/codex/config-advanced", _codex),
        Client("aider", "aider", "https://aider.chat/docs/llms/openai-compat.html", _aider),
        Client("continue", "Continue", "https://docs.continue.dev/reference", _continue),
        Client("cline", "Cline",
               "https://docs.cline.bot/provider-config/openai-compatible", _cline),
        Client("open-webui", "Open WebUI",
               "https://docs.openwebui.com/reference/env-configuration", _open_webui),
        Client("llm", "llm",
               "https://llm.datasette.io/en/stable/other-models.html", _llm),
        Client("zed", "Zed", "https://zed.dev/docs/ai/llm-providers", _zed),
        Client("n8n", "n8n",
               "https://docs.n8n.io/integrations/builtin/credentials/openai", _n8n),
    )
}  # fmt: skip
"""Who can be connected, by the names of the command."""
