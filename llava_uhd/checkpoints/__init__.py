"""Released checkpoints in, any checkpoint out: `llava-uhd convert`, `verify` and `push`.

`convert_to_ours` in `convert`, `convert_to_released` in `released`, `verify_checkpoint` in `verify`.
"""
