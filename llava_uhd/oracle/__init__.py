"""The plain formulas of the papers: what tests compare with and what the benchmark measures against.

Each takes the model's own modules for their weights and computes as published, step by step, without the
rearrangements of `llava_uhd.model`: read these first. Start at `vision.image_tokens`.
"""
