"""Tropilla: one OpenAI-compatible endpoint for a herd of llama.cpp servers."""

__version__ = "0.1.0"
