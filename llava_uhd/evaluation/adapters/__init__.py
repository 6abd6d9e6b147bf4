"""Adapters for VLMEvalKit and lmms-eval. Both are optional and live in processes
of their own, since importing them changes global settings of torch and ssl.
"""
