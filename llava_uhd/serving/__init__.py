"""Answering many people at once: one engine behind the terminal chat, the web page and the HTTP server."""
