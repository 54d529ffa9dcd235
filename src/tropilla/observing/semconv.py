"""Names of OpenTelemetry's semantic conventions, all of those that are used here.

Those of `gen_ai` are in development and change: they are as of GenAI 1.42.0, whose schema is named
with every span; the others are as of 1.44.0, and stable. What has no name there begins with
`tropilla`.
"""

from __future__ import annotations

from typing import Final

SCHEMA: Final = "https://opentelemetry.io/schemas/gen-ai/1.42.0"

ERROR_TYPE: Final = "error.type"
HTTP_METHOD: Final = "http.request.method"
HTTP_ROUTE: Final = "http.route"
HTTP_STATUS: Final = "http.response.status_code"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
URL_PATH: Final = "url.path"
URL_SCHEME: Final = "url.scheme"

OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_STREAM: Final = "gen_ai.request.stream"
CHOICES: Final = "gen_ai.request.choice.count"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
CACHED_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
REASONING_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"

PROVIDERS: Final = {"llamacpp": "llama_cpp", "openai": "openai", "afs": "afs"}
"""By what an upstream speaks; the conventions have no name of their own for llama.cpp."""

REQUEST_ID: Final = "tropilla.request.id"
KEY: Final = "tropilla.key"
DIALECT: Final = "tropilla.dialect"
CLIENT_LEFT: Final = "tropilla.client.left"
ATTEMPTS: Final = "tropilla.attempts"
UPSTREAM: Final = "tropilla.upstream"
REPLAYS: Final = "tropilla.replays"
"""The id of the request whose answer was said again."""
EXPECTED_CACHE: Final = "tropilla.cache.expected"
ESTIMATED: Final = "tropilla.accounts.usage.estimated"
