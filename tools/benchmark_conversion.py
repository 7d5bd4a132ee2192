"""Time and memory of both conversions of a random Qwen3, beside copying its directory and syncing the copy.

usage: python tools/benchmark_conversion.py DIRECTORY [--layers 28 --hidden 2048 ...]

The page cache is emptied of the source before each measurement, so that all of them read from the disk. Start-up (the
interpreter and its imports) is excluded. Memory is the largest RssAnon of the converting process: what is not backed by
a file, and so grows with what a conversion holds.
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
begun = time.monotonic()
convert.{call}(Path(sys.argv[1]), Path(sys.argv[2]), role="policy", workers={workers})
print(time.monotonic() - begun)
"""


def make(directory: Path, config: dict[str, object]) -> int:
    """A model directory of random bf16 tensors; returns its bytes."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    entries = decoder.policy_mappings(hf_config.backbone_settings(config))
    described = {
        name: TensorDescription(shape, torch.bfloat16)
        for entry in entries
        for name, shape in zip(entry.hf_names, entry.hf_shapes(), strict=True)
    }
    tensors = ((name, torch.empty(made.shape, dtype=made.dtype).normal_()) for name, made in described.items())
    hf_files.write_tensors(directory, described, tensors)
    return sum(made.bytes for made in described.values())


def uncached(directory: Path) -> None:
    """Drop a directory's files from the page cache, written back first."""
    for file in filter(Path.is_file, directory.rglob("*")):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def copied(source: Path, target: Path) -> float:
    """Seconds of copying a directory and syncing every file of the copy."""
    uncached(source)
    begun = time.monotonic()
    shutil.copytree(source, target)
    for file in filter(Path.is_file, target.rglob("*")):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return time.monotonic() - begun


def converted(call: str, source: Path, target: Path, workers: int) -> tuple[float, float]:
    """(seconds, peak anonymous GB) of one conversion in a process of its own."""
    uncached(source)
    command = [sys.executable, "-c", _TIMED.format(call=call, workers=workers), str(source), str(target)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    peak = [0]
    thread = threading.Thread(target=_watch, args=(process, peak))
    thread.start()
    output, _ = process.communicate()
    thread.join()
    if process.returncode:
        raise RuntimeError(f"{call} failed")
    return float(output), peak[0] / 1e6


def _watch(process: subprocess.Popen[str], peak: list[int]) -> None:
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        peak[0] = max(peak[0], int(fields.get("RssAnon", "0").split()[0]))
        time.sleep(0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directory", type=Path, help="an empty place with room for three copies of the model")
    for name, default in (("layers", 28), ("hidden", 2048), ("ffn", 6144), ("heads", 16), ("workers", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--untied", action="store_true", help="embedding and output layer apart")
    given = parser.parse_args()
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "num_hidden_layers": given.layers,
        "hidden_size": given.hidden,
        "intermediate_size": given.ffn,
        "num_attention_heads": given.heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": not given.untied,
    }
    hf, copy, saved, back = (given.directory / name for name in ("hf", "copy", "checkpoint", "back"))
    size = make(hf, config)
    print(f"{size / 1e9:.2f} GB, {given.workers} workers")
    results: list[tuple[str, Callable[[], tuple[float, float]]]] = [
        ("to-megatron", lambda: converted("to_megatron", hf, saved, given.workers)),
        ("to-hf", lambda: converted("to_hf", saved, back, given.workers)),
    ]
    for name, measure in results:
        reference = copied(hf, copy)
        shutil.rmtree(copy)
        seconds, peak = measure()
        ratio = seconds / reference
        print(f"{name}: {seconds:.1f} s, copy {reference:.1f} s, ratio {ratio:.2f}, peak anonymous {peak:.2f} GB")
    shutil.rmtree(given.directory)


if __name__ == "__main__":
    main()
