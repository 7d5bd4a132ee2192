"""The vLLM engine inside the trainer's processes, and the transfer of weights into it.

No other package imports vllm.
"""
