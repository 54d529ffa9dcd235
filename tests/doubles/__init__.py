"""What stands in for the world in tests: servers that do exactly what a test says."""
