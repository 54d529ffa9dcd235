"""What a program that uses `openai` expects: run by ../run.py, with 2.x and with 3.x."""

import openai

from clients.openai_python import (  # noqa: F401 - their checks are what is run
    chat,
    completions,
    embeddings,
    errors,
    formats,
    models,
    responses,
    tools,
    transport,
)
from clients.openai_python.harness import CHECKS, connect
from clients.telling import tell_all

if __name__ == "__main__":
    raise SystemExit(tell_all(openai.__version__, CHECKS, connect))
