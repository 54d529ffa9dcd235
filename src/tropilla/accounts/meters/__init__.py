"""Where it is counted what was taken: one module a place, all by the protocol `limits.Meter`."""
