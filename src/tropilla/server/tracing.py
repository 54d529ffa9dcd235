"""Whether requests have spans, and who makes them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from tropilla import log
from tropilla.config import ConfigError, TracesConfig

if TYPE_CHECKING:
    from tropilla.observing.spans import Spans

_PLACES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_SPOKEN = "http/protobuf"
_PATH = "/v1/traces"


def spans(config: TracesConfig) -> Spans | None:
    """Who makes spans; nobody, where neither the settings nor the environment say where they go.

    Raises:
        ConfigError: the settings do, and it cannot be.
    """
    told = os.environ
    if told.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    endpoint = config.endpoint
    if endpoint is None:
        if (
            not any(told.get(name) for name in _PLACES)
            or told.get("OTEL_TRACES_EXPORTER") == "none"
        ):
            return None
        spoken = next((told[name] for name in _PROTOCOLS if told.get(name)), _SPOKEN)
        if spoken != _SPOKEN:
            _tell(f"There are no traces: OTLP is spoken here as {_SPOKEN}, and not as {spoken}.")
            return None
    elif not endpoint.partition("://")[2].partition("/")[2]:
        config = msgspec.structs.replace(config, endpoint=endpoint + _PATH)
    try:
        from tropilla.observing.spans import Spans  # noqa: PLC0415 - an extra, and only for who has traces
    except ImportError:
        why = "they want what `pip install 'tropilla[otel]'` brings."
        if endpoint is not None:
            raise ConfigError(f"traces: {why}") from None
        _tell(f"There are no traces: {why}")
        return None
    return Spans(config)


def _tell(why: str) -> None:
    log.warning("traces.none", "{why}", why=why)
