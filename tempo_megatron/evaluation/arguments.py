"""The command line of `tempo eval`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tempo_megatron.config import Precision
from tempo_megatron.evaluation.protocol import Given

_OVERRIDE = re.compile(r"[a-z_]+(\.[a-z_0-9]+)*=")
_SETTINGS = {
    "model": "model.hf_path",
    "precision": "model.precision",
    "processes": "parallel.processes_per_node",
    "tensor_parallel": "generation.tensor_parallel_size",
    "max_response_tokens": "generation.max_response_tokens",
}
"""flags that are short for a setting"""


@dataclass(frozen=True)
class Arguments:
    model: Path
    data: tuple[str, ...]
    recipe: str | None
    out: Path
    protocol: Given
    overrides: tuple[str, ...]
    """`key=value`, the flags' ones last"""


def parse(arguments: Sequence[str]) -> Arguments:
    """A wrong flag exits with 2. Whatever is written `key=value` is an override, wherever it stands."""
    overrides = [argument for argument in arguments if _OVERRIDE.match(argument)]
    given = _parser().parse_args([argument for argument in arguments if argument not in overrides])
    flags = {key: getattr(given, flag) for flag, key in _SETTINGS.items()}
    overrides += [f"{key}={value}" for key, value in flags.items() if value is not None]
    model = Path(given.model)
    return Arguments(
        model=model,
        data=tuple(given.data),
        recipe=given.recipe,
        out=Path(given.out) if given.out else Path("runs", "eval", "-".join(model.resolve().parts[-2:])),
        protocol=Given(given.samples, tuple(given.k) if given.k else None, given.temperature, given.top_p),
        overrides=tuple(overrides),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "tempo eval",
        usage="%(prog)s --model DIR (--data FILE [FILE ...] | --recipe RECIPE) [options] [key=value ...]",
        description="Evaluate a Hugging Face model directory. The same command again resumes. `key=value` sets any "
        "setting that `tempo settings` lists, such as data.chat_template=true.",
    )
    add = parser.add_argument
    add("--model", metavar="DIR", required=True, help="Hugging Face model directory, such as runs/demo/hf")
    add("--data", metavar="FILE", nargs="+", default=[], help="JSONL files of questions with answers, a benchmark each")
    add("--recipe", help="recipe whose settings are used and, without --data, whose unlabeled and held-out sets")
    add("--out", metavar="DIR", help="directory of samples and results (runs/eval/ and the model's path)")
    add("--samples", metavar="N", type=int, help="responses a question (the benchmark's protocol, else 16)")
    add("--k", metavar="K", type=int, nargs="+", help="pass@k and cons@k to report (the benchmark's protocol, else 8)")
    add("--temperature", metavar="T", type=float, help="sampling temperature (1.0)")
    add("--top-p", metavar="P", type=float, help="nucleus sampling mass (1.0)")
    add("--max-response-tokens", metavar="N", type=int, help="tokens; a response that reaches it is truncated, wrong")
    add("--processes", metavar="N", type=int, help="ranks to start here, one a GPU, or a CPU core (1)")
    add("--tensor-parallel", metavar="T", type=int, help="ranks of one vLLM replica (1, or the recipe's)")
    add("--precision", choices=[kind.value for kind in Precision], help="bf16, or fp32 (the only choice on CPUs)")
    return parser
