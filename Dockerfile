# The image for TEMPO_CONTAINER (docs/clusters.md). It has CUDA, NCCL and network libraries of an NGC image, this project's
# locked packages in a virtual environment, and NVIDIA Apex with its CUDA extensions.
#
#   docker build --tag tempo-megatron .
FROM nvcr.io/nvidia/pytorch:25.10-py3

ARG APEX_COMMIT=10417aceddd7d5d05d7cbf7b0fc2daad1105f8b4
# Compiles Transformer Engine and Apex for Hopper and Blackwell. The image's own ENV would override an ARG.
ENV TORCH_CUDA_ARCH_LIST="9.0 10.0"
ENV VIRTUAL_ENV=/opt/tempo/.venv UV_PROJECT_ENVIRONMENT=/opt/tempo/.venv UV_LINK_MODE=copy
# Containers are read-only on the cluster: without bytecode every rank would compile the packages at every start.
ENV UV_COMPILE_BYTECODE=1
# NGC constrains pip to the versions of its own torch, with which vLLM does not run.
ENV PIP_CONSTRAINT="" UV_CONSTRAINT="" PATH=/opt/tempo/.venv/bin:$PATH

WORKDIR /opt/tempo
RUN pip install --no-cache-dir uv
COPY pyproject.toml uv.lock .python-version README.md ./
# Transformer Engine's PyTorch part is compiled against the torch that is installed before it.
RUN uv sync --frozen --no-cache --no-install-project --no-dev --extra cuda --extra launch \
        --no-install-package transformer-engine-torch \
    && uv sync --frozen --no-cache --no-install-project --no-dev --extra cuda --extra launch
# From its repository: `apex` on the package index is another project, which `tempo train` refuses.
RUN uv pip install --no-cache setuptools wheel ninja packaging \
    && APEX_CPP_EXT=1 APEX_CUDA_EXT=1 APEX_PARALLEL_BUILD=8 NVCC_APPEND_FLAGS="--threads 4" \
        uv pip install --no-cache --no-build-isolation --no-deps "apex @ git+https://github.com/NVIDIA/apex@${APEX_COMMIT}" \
    && python -c "import torch, amp_C, fused_weight_gradient_mlp_cuda"
COPY . .
# --inexact keeps Apex, which is not in the lock file.
RUN uv sync --frozen --no-cache --inexact --no-dev --extra cuda --extra launch
