"""Measures time and memory of both conversions of a random Qwen3, and compares them with a synced copy.

usage: python tools/benchmark_conversion.py DIRECTORY [--layers 28 --hidden 2048 ...]

The source leaves the page cache before each measurement, so that each reads from the disk. Start-up (the interpreter
and its imports) is excluded. Memory is the largest RssAnon of the converting process: the memory that no file backs,
which grows with what a conversion holds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tempo_megatron.conversion import decoder, hf_config, hf_files
from tempo_megatron.conversion.hf_files import TensorDescription

_TIMED = """
import sys, time
from pathlib import Path
import torch
from checkpoints_convert import convert
started = time.monotonic()
convert.{call}(Path(sys.argv[1]), Path(sys.argv[2]), role="policy", workers={workers})
print(time.monotonic() - started)
"""


def make_model(directory: Path, config: dict[str, object]) -> int:
    """Makes a model directory of random bf16 tensors and returns their bytes."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    entries = decoder.policy_mappings(hf_config.backbone_settings(config))
    descriptions = {
        name: TensorDescription(shape, torch.bfloat16)
        for entry in entries
        for name, shape in zip(entry.hf_names, entry.hf_shapes(), strict=True)
    }
    tensors = (
        (name, torch.empty(description.shape, dtype=description.dtype).normal_())
        for name, description in descriptions.items()
    )
    hf_files.write_tensors(directory, descriptions, tensors)
    return sum(description.bytes for description in descriptions.values())


def drop_from_page_cache(directory: Path) -> None:
    """Writes a directory's files back and drops them from the page cache."""
    for file in filter(Path.is_file, directory.rglob("*")):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def copy_seconds(source: Path, target: Path) -> float:
    """Copies a directory, syncs each file of the copy, and returns the seconds."""
    drop_from_page_cache(source)
    started = time.monotonic()
    shutil.copytree(source, target)
    for file in filter(Path.is_file, target.rglob("*")):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return time.monotonic() - started


def measure_conversion(call: str, source: Path, target: Path, workers: int) -> tuple[float, float]:
    """Runs one conversion in its own process and returns (seconds, peak anonymous GB)."""
    drop_from_page_cache(source)
    command = [sys.executable, "-c", _TIMED.format(call=call, workers=workers), str(source), str(target)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    peak = [0]
    thread = threading.Thread(target=_record_peak, args=(process, peak))
    thread.start()
    output, _ = process.communicate()
    thread.join()
    if process.returncode:
        raise RuntimeError(f"{call} failed")
    return float(output), peak[0] / 1e6


def _record_peak(process: subprocess.Popen[str], peak: list[int]) -> None:
    """Keeps the largest RssAnon of a process, in kB, in `peak[0]` until the process ends."""
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        peak[0] = max(peak[0], int(fields.get("RssAnon", "0").split()[0]))
        time.sleep(0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directory", type=Path, help="a new directory, with space for three copies of the model")
    for name, default in (("layers", 28), ("hidden", 2048), ("ffn", 6144), ("heads", 16), ("workers", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--untied", action="store_true", help="separate embedding and output layer")
    options = parser.parse_args()
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "num_hidden_layers": options.layers,
        "hidden_size": options.hidden,
        "intermediate_size": options.ffn,
        "num_attention_heads": options.heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": not options.untied,
    }
    hf, copy, saved, back = (options.directory / name for name in ("hf", "copy", "checkpoint", "back"))
    size = make_model(hf, config)
    print(f"{size / 1e9:.2f} GB, {options.workers} workers")
    results: list[tuple[str, Callable[[], tuple[float, float]]]] = [
        ("to-megatron", lambda: measure_conversion("to_megatron", hf, saved, options.workers)),
        ("to-hf", lambda: measure_conversion("to_hf", saved, back, options.workers)),
    ]
    for name, measure in results:
        reference = copy_seconds(hf, copy)
        shutil.rmtree(copy)
        seconds, peak = measure()
        ratio = seconds / reference
        print(f"{name}: {seconds:.1f} s, copy {reference:.1f} s, ratio {ratio:.2f}, peak anonymous {peak:.2f} GB")
    shutil.rmtree(options.directory)


if __name__ == "__main__":
    main()
