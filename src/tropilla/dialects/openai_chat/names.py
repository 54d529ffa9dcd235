"""The name of the dialect."""

NAME = "openai_chat"
