"""What reaches outward: the only folder that opens a socket to an upstream."""
