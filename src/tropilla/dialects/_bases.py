"""What may stand before the paths of AFS: programs that were written for it keep what they have."""

# Below nothing, in public mode, in a private deployment, and before its OpenAI-compatible paths.
AFS_BASES = ("", "/api", "/text-generation/api", "/text-generation/api/v4")
