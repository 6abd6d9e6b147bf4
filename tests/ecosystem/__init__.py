"""Ecosystem tests: each tool that people run, in an environment of its own, against the package's own answers."""
