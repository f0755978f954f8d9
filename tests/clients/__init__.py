"""Real clients of every generation, from npm and PyPI."""
