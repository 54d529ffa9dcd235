"""The HTTP surface: what listens, which path means what, who may ask, and how errors look."""
