"""The commands, by subject; `gateway.__main__` puts them together."""
