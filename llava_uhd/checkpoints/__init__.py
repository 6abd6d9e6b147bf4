"""Convert original checkpoints to HF format, and export to their layout: `llava-uhd convert`, `verify` and `push`.

`convert_to_hf` in `convert`, `convert_to_original` in `export`, `verify_checkpoint` in `verify`.
"""
