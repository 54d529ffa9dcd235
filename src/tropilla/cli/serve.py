"""`tropilla serve`: the flags over the config file, and the gateway's life."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tropilla.cli import options
from tropilla.cli.options import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tropilla.config import Config
    from tropilla.config.load import Loaded
    from tropilla.models.sizing import Plan
    from tropilla.server.run import Serve
    from tropilla.templates import Template


@click.command("serve", context_settings=SETTINGS)
@options.config_file
@options.upstreams
@options.upstream_api_key
@click.option(
    "--model", type=click.Path(path_type=Path), metavar="FILE.gguf",
    help="The model of the embedded engine. Without it, a tiny one that comes with Tropilla.",
)  # fmt: skip
@click.option(
    "--hf", metavar="OWNER/NAME[:QUANT]",
    help="The model of the embedded engine, from the Hugging Face hub; fetched if it is not on "
    "disk. `tropilla pull --help` says more.",
)  # fmt: skip
@click.option("--model-name", metavar="NAME", help="Its name for clients; else the file's name.")
@click.option(
    "--slots", type=click.IntRange(0, 256), metavar="N",
    help="Requests that the embedded engine serves at once; without it, or 0, up to 4, as the "
    "free memory allows.",
)  # fmt: skip
@click.option(
    "--ctx-size", type=click.IntRange(0), metavar="TOKENS",
    help="Context of each slot of the embedded engine; without it, or 0, the model's own as far as "
    "the free memory allows, up to 65536 of all slots.",
)  # fmt: skip
@click.option(
    "--threads", type=click.IntRange(0), metavar="N",
    help="Threads of the embedded engine; 0 lets it choose.",
)  # fmt: skip
@click.option("--host", show_default="127.0.0.1", help="The address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), show_default="8081",
    help="The port to listen on; 0 takes any that is free.",
)  # fmt: skip
@click.option(
    "--api-key", "api_keys", multiple=True, metavar="KEY",
    help="A key that clients must show. May be given several times; an empty one means none. "
    "Whoever lists the processes of this machine sees it: the variable, a file of settings or "
    "--api-key-file keep it.  [env: TROPILLA_API_KEY]",
)  # fmt: skip
@click.option(
    "--api-key-file", type=click.Path(path_type=Path), metavar="FILE",
    help="A file of such keys, one a line.",
)  # fmt: skip
@click.option(
    "--insecure/--no-insecure", default=None,
    help="Do not warn that other machines can ask without a key.",
)  # fmt: skip
@click.option(
    "--template", metavar="NAME",
    help="Who turns chat messages into a prompt: the server itself (auto, the default), or the "
    "template of api_like_OAI.py (classic, which the next five options choose too), another "
    "built-in one by its name, or a Jinja file by its path.",
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
    "--allow-admin/--no-allow-admin", default=None,
    help="Relay the routes that change or expose a llama.cpp server.",
)  # fmt: skip
@click.option(
    "--drain", type=click.FloatRange(0, 86400), metavar="SECONDS", show_default="30",
    help="How long open answers may go on once it is asked to end; asked again it ends at once.",
)  # fmt: skip
@click.option(
    "--ollama-port", type=click.IntRange(0, 65535), metavar="PORT",
    help="A second port, for programs that look for Ollama on 11434 and nowhere else; 0 for none.",
)  # fmt: skip
@options.store
@click.option(
    "--log", type=click.Choice(["human", "json"]),
    help="What happened, as sentences or as JSON, a line each; by itself JSON where nobody looks.",
)  # fmt: skip
@click.option(
    "--log-requests/--no-log-requests", default=None,
    help="A line of the log for every request; on by itself.",
)  # fmt: skip
@click.option(
    "--workers", type=click.IntRange(1, 256), metavar="N", show_default="1",
    help="Processes that serve, on the same address and from the same slots.",
)  # fmt: skip
@click.pass_context
def command(context: click.Context, /, **flags: Any) -> None:
    """Serve OpenAI clients from llama.cpp.

    With no options and no tropilla.yaml, serves a tiny model on http://127.0.0.1:8081.
    """
    from tropilla import log  # noqa: PLC0415
    from tropilla.cli.banner import banner, base_of, try_it  # noqa: PLC0415
    from tropilla.config import ConfigError  # noqa: PLC0415

    log.begin(sys.stderr, flags.pop("log"))
    file = flags.pop("config_file")
    told = options.loaded(file)
    _fetch(flags, flags.pop("hf"))
    try:
        asked = with_flags(told, **flags)
        config, plan = _sized(asked)
        if config.workers == 1:
            from tropilla.server.run import listen, run  # noqa: PLC0415

            sockets = listen(config)
            serve: Serve = run
        else:
            from tropilla.server.processes import claim, run_several  # noqa: PLC0415

            sockets = claim(config)
            serve = run_several
    except ConfigError as error:
        raise click.UsageError(str(error), context) from None
    base = base_of(sockets[0])
    click.echo(banner(config, base, told.file, plan))
    address = sockets[0].getsockname()[0]
    gave = not _is_alone(address) and _gave_keys(config)
    _warn(config, address, gave=gave)

    def first(model: str) -> None:
        if config.upstreams or config.models:
            click.echo(try_it(config, base, model))

    again = _again(file, asked, config, flags, lambda now: _warn(now, address, gave=gave))
    fatal = serve(config, sockets, first, again, told.file)
    if fatal is not None:
        raise click.ClickException(fatal)


def _is_alone(address: str) -> bool:
    """Whether no other machine reaches an address."""
    from ipaddress import ip_address  # noqa: PLC0415

    return ip_address(address).is_loopback


def _gave_keys(config: Config) -> bool:
    """Whether keys were given in the store of a config: then one is needed."""
    import asyncio  # noqa: PLC0415

    from tropilla.accounts.store import StoreError, open_store  # noqa: PLC0415
    from tropilla.accounts.store.places import place  # noqa: PLC0415

    url = place(config.accounts.store)
    if url is None:
        return False

    async def any_() -> bool:
        store = await open_store(url, migrate=False)
        try:
            return bool(await store.read("SELECT id FROM keys LIMIT 1"))
        finally:
            await store.close()

    try:
        return asyncio.run(any_())
    except (StoreError, OSError):
        return False  # it is made, or told of, when the gateway opens it


def _warn(config: Config, address: str, *, gave: bool) -> None:
    """Say that anybody may ask, if so; not where keys were given in the store."""
    from tropilla import log  # noqa: PLC0415

    if config.insecure or gave or config.wants_key or _is_alone(address):
        return
    log.warning(
        "gateway.open",
        "Whoever can reach {address} can ask without a key: set one (TROPILLA_API_KEY, api_keys, "
        "--api-key-file), or say that it is meant so (--insecure).",
        address=address,
    )


def _fetch(flags: dict[str, Any], hf: str | None) -> None:
    """Make of a model of the hub what --model and --model-name would say."""
    if hf is None:
        return
    from tropilla.cli.fetching import fetched, read_wanted  # noqa: PLC0415

    if flags["model"] is not None or flags["upstreams"]:
        raise click.UsageError("--hf says what is served: --model and --upstream exclude it.")
    wanted = read_wanted(hf)
    flags["model"] = fetched(wanted)
    flags["model_name"] = flags["model_name"] or wanted.name


def _sized(config: Config) -> tuple[Config, Plan | None]:
    """The same with an engine that fits into the memory, if it is to run."""
    import msgspec  # noqa: PLC0415

    from tropilla.cli.fetching import sized  # noqa: PLC0415

    if config.models or config.upstreams:
        return config, None
    engine, plan = sized(config.engine)
    return msgspec.structs.replace(config, engine=engine), plan


def _again(
    file: Path | None,
    asked: Config,
    sized: Config,
    flags: dict[str, Any],
    warn: Callable[[Config], None],
) -> Callable[[], tuple[Config, str]]:
    """What reads the settings again, under the same flags.

    `asked` is what they said, and `sized` what that was for the memory then: the engine stays as it
    is while they say the same of it.
    """
    import msgspec  # noqa: PLC0415

    from tropilla.config import ConfigError  # noqa: PLC0415

    now = asked

    def again() -> tuple[Config, str]:
        nonlocal now
        try:
            told = options.loaded(file)
        except options.ConfigRefused as error:
            raise ConfigError(error.message) from None
        before, now = now, with_flags(told, **flags)
        if before.wants_key or before.insecure:
            warn(now)
        news = _news(told, before, now)
        same = now.engine == asked.engine
        return msgspec.structs.replace(now, engine=sized.engine) if same else now, news

    return again


def _news(told: Loaded, before: Config, now: Config) -> str:
    """What has changed, as lines of YAML; secrets are not shown."""
    from difflib import unified_diff  # noqa: PLC0415

    from tropilla.config.show import show  # noqa: PLC0415

    old, new = (
        show(told._replace(config=one, references={})).splitlines() for one in (before, now)
    )
    lines = list(unified_diff(old, new, n=1, lineterm=""))[2:]
    if lines:
        return "\n".join(["What is new:", *lines])
    return "Nothing is new." if before == now else "What is new is secret."


def with_flags(
    loaded: Loaded,
    *,
    upstreams: tuple[str, ...],
    upstream_api_key: str | None,
    model: Path | None,
    model_name: str | None,
    slots: int | None,
    ctx_size: int | None,
    threads: int | None,
    host: str | None,
    port: int | None,
    api_keys: tuple[str, ...],
    api_key_file: Path | None,
    template: str | None,
    any_model: bool | None,
    allow_admin: bool | None,
    insecure: bool | None,
    drain: float | None,
    workers: int | None,
    ollama_port: int | None,
    store: str | None,
    log_requests: bool | None,
    **classic: str | None,
) -> Config:
    """What the flags make of a config: they win, setting by setting.

    `--upstream` and `--model` say what is served, in the place of the models and the upstreams
    of the file.

    Raises:
        ConfigError: flags that cannot be, or not together.
    """
    import msgspec  # noqa: PLC0415

    from tropilla.config import ConfigError, read_keys  # noqa: PLC0415

    names = {name: text for name, text in classic.items() if text is not None}
    if model is not None and upstreams:
        raise ConfigError(
            "--model is for the embedded engine: it and --upstream exclude each other."
        )
    if loaded.file is not None and not upstreams and "--upstream-api-key" in _typed():
        raise ConfigError(
            f"--upstream-api-key goes with --upstream: in {loaded.file} each upstream has its own "
            "api_key."
        )
    config = loaded.config
    over: dict[str, Any] = {
        "listen": _listen(config, host, port),
        "engine": _engine(
            config, model, name=model_name, slots=slots, ctx_size=ctx_size, threads=threads
        ),
        "template": _template(template, names, config.template),
    }
    if upstreams or model is not None:
        over |= {"models": {}, "upstreams": options.named_upstreams(upstreams, upstream_api_key)}
    if api_keys or api_key_file is not None:
        over["api_keys"] = read_keys(api_keys, api_key_file)
    as_the_script = bool(names) or template == "classic" or "--llama-api" in _typed()
    if any_model is not None or as_the_script:
        over["any_model"] = as_the_script if any_model is None else any_model
    if allow_admin is not None:
        over["allow_admin"] = allow_admin
    if insecure is not None:
        over["insecure"] = insecure
    plain = {
        "drain": drain, "workers": workers, "ollama_port": ollama_port, "log_requests": log_requests
    }  # fmt: skip
    over |= {name: value for name, value in plain.items() if value is not None}
    if store is not None:
        over["accounts"] = msgspec.structs.replace(config.accounts, store=store)
    return msgspec.structs.replace(config, **over)


def _listen(config: Config, host: str | None, port: int | None) -> str:
    if host is None and port is None:
        return config.listen
    host = config.host if host is None else host
    port = config.port if port is None else port
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _engine(config: Config, model: Path | None, **flags: Any) -> Any:
    import msgspec  # noqa: PLC0415

    given = {name: value for name, value in flags.items() if value}
    # A zero is a choice: it leaves it to the engine, whatever the file says.
    given |= {name: 0 for name in ("slots", "ctx_size", "threads") if flags[name] == 0}
    if model is not None:
        given = {"name": model.stem, "model": model} | given
    return msgspec.structs.replace(config.engine, **given)


def _template(
    flag: str | None, names: dict[str, str], otherwise: Template | None
) -> Template | None:
    import msgspec  # noqa: PLC0415

    from tropilla.config import ConfigError  # noqa: PLC0415
    from tropilla.config.load import named_template  # noqa: PLC0415
    from tropilla.templates import Classic  # noqa: PLC0415

    if names:
        if flag not in {None, "classic"}:
            raise ConfigError(
                f"--{next(iter(names)).replace('_', '-')} belongs to the classic template: "
                f"leave out --template {flag}."
            )
        below = otherwise if flag is None and isinstance(otherwise, Classic) else Classic()
        return msgspec.structs.replace(below, **names)
    if flag is None:
        return otherwise
    try:
        return named_template(flag)
    except ConfigError as error:
        raise ConfigError(f"--template: {error}") from None


def _typed() -> set[str]:
    """The names of the flags as they were typed: an alias is only known by its spelling."""
    return {argument.split("=", 1)[0] for argument in sys.argv[1:]}
