"""Execution of README and guides: every shell block at toy size, in the page's order."""
