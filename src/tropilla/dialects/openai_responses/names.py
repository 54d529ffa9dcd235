"""What the modules of this dialect have in common: its name, and those of what it may include."""

from __future__ import annotations

NAME = "openai_responses"

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"
"""What a client can ask to be included in an answer."""
