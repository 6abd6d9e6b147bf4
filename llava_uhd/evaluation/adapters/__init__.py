"""Adapters for VLMEvalKit and lmms-eval.

Both are optional and run in separate processes, since importing them changes global settings of torch and ssl.
"""
