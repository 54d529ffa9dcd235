"""Which upstream serves a request: pure functions over values, no I/O, no clock, no chance."""
