"""The files of models: what is in them, what they need, where they come from.

`gguf` reads what a file says of itself, `names` knows files by their names, `sizing` decides how
much context fits; these three are pure. `memory` asks the machine, `shelf` looks what is on disk,
and `hub` fetches from the Hugging Face hub.
"""
