"""Operations whose forward pass is the generator's own kernel, so that generator and trainer agree to the last bit.

Each operation has a gradient of its own. On CPUs, and in float64, the forward pass is the same formula in torch.
`vllm_kernels` alone imports vLLM, and only when a kernel runs.
"""
