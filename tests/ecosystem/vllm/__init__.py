"""vLLM against `generate`: token ids, odd requests and speed. Run as `python -m tests.ecosystem vllm`."""
