"""The vLLM engine in the trainer's own processes, and weights into it. Alone imports vllm."""
