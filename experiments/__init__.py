"""Experiments on top of the package: they import `llava_uhd`, nothing imports them, and the wheel leaves them out."""
