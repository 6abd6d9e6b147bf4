"""Maker of the task `webdocs`: documents by programs that draw no training document, with exact answers."""
