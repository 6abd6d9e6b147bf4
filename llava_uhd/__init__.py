"""LLaVA-UHD: ask questions about images at their own resolution and aspect ratio."""
