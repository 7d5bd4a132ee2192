"""GPUs of this node, read through nvidia-smi: no CUDA context is made that would take memory from the run."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from xml.etree import ElementTree

from tempo_megatron.preflight.facts import Gpu

_SECONDS = 20
_SLOWDOWNS = ("hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown", "sw_thermal_slowdown")


@dataclass(frozen=True)
class GpuReading:
    """What nvidia-smi told, or why it told nothing."""

    gpus: list[Gpu] = field(default_factory=list)
    driver: str = ""
    driver_cuda: str = ""
    problem: str = ""


def read_gpus(environment: Mapping[str, str] = os.environ) -> GpuReading:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves to this process, all where it is not set."""
    command = ["nvidia-smi", "--query", "--xml-format"]
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible:
        command.append(f"--id={visible}")
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True).stdout
    except FileNotFoundError:
        return GpuReading(problem="there is no nvidia-smi")
    except subprocess.TimeoutExpired:
        return GpuReading(problem=f"nvidia-smi gave no answer in {_SECONDS} s")
    except subprocess.CalledProcessError as error:
        said = (error.stdout + error.stderr).strip().splitlines()
        return GpuReading(problem=f"nvidia-smi failed: {said[-1] if said else f'exit code {error.returncode}'}")
    try:
        return parse(told)
    except ElementTree.ParseError as error:
        return GpuReading(problem=f"nvidia-smi told something that is not XML: {error}")


def parse(told: str) -> GpuReading:
    """Read the XML of `nvidia-smi -q -x`; what it does not have reads as none. Raises ElementTree.ParseError."""
    log = ElementTree.fromstring(told)
    return GpuReading(
        gpus=[_gpu(gpu) for gpu in log.iter("gpu")],
        driver=log.findtext("driver_version", ""),
        driver_cuda=log.findtext("cuda_version", ""),
    )


def _gpu(described: ElementTree.Element) -> Gpu:
    active = [part.tag for part in described.iter() if (part.text or "").strip() == "Active"]
    return Gpu(
        name=described.findtext("product_name", "unknown"),
        total_gib=_mebibytes(described.findtext("fb_memory_usage/total", "")) / 1024,
        used_gib=_mebibytes(described.findtext("fb_memory_usage/used", "")) / 1024,
        # Older drivers say clocks_throttle_reason_*, newer ones clocks_event_reason_*.
        slowed_by=[reason for reason in _SLOWDOWNS if any(tag.endswith(f"_reason_{reason}") for tag in active)],
        uncorrected_errors=_uncorrected(described),
        needs_reset=described.findtext("remapped_rows/remapped_row_pending", "No") == "Yes",
        processes=[
            f"{process.findtext('pid', '?')} {process.findtext('process_name', '?')}"
            for process in described.iter("process_info")
        ],
    )


def _uncorrected(described: ElementTree.Element) -> int:
    counters = described.find("ecc_errors/volatile")
    found = [part.text or "" for part in counters if "uncorrect" in part.tag] if counters is not None else []
    return sum(int(count) for count in found if count.strip().isdigit())


def _mebibytes(text: str) -> float:
    number = text.split(" ")[0]
    return float(number) if number.isdigit() else 0.0
