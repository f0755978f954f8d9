"""The bench: what a command costs here, and in what anyone would pick instead. See README.md beside it."""
