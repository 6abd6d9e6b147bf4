"""Generation core of `ask`, evaluation and serving: prompts, prefix KV cache, request state, batched decoding.

Imports neither serving nor evaluation. `Generator` answers requests one token at a time, each with its own sampling;
`generate_batch` answers a batch of questions, with beams if wanted.
"""
