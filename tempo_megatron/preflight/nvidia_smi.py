"""Reads this node's GPUs by nvidia-smi, because a CUDA context would take memory from the run."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from xml.etree import ElementTree

from tempo_megatron.preflight.node_facts import Gpu

_TIMEOUT_SECONDS = 20
_SLOWDOWNS = ("hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown", "sw_thermal_slowdown")


@dataclass(frozen=True)
class GpuReading:
    """What nvidia-smi reports, or the problem that kept it from doing so."""

    gpus: list[Gpu] = field(default_factory=list)
    driver: str = ""
    driver_cuda: str = ""
    problem: str = ""


def read_gpus(environment: Mapping[str, str] = os.environ) -> GpuReading:
    """Return the GPUs that CUDA_VISIBLE_DEVICES leaves to this process, or all GPUs if it is not set."""
    command = ["nvidia-smi", "--query", "--xml-format"]
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible:
        command.append(f"--id={visible}")
    try:
        xml = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=True).stdout
    except FileNotFoundError:
        return GpuReading(problem="there is no nvidia-smi")
    except subprocess.TimeoutExpired:
        return GpuReading(problem=f"nvidia-smi gave no answer in {_TIMEOUT_SECONDS} s")
    except subprocess.CalledProcessError as error:
        lines = (error.stdout + error.stderr).strip().splitlines()
        return GpuReading(problem=f"nvidia-smi failed: {lines[-1] if lines else f'exit code {error.returncode}'}")
    try:
        return parse(xml)
    except ElementTree.ParseError as error:
        return GpuReading(problem=f"nvidia-smi printed something that is not XML: {error}")


def parse(xml: str) -> GpuReading:
    """Parse the XML of `nvidia-smi -q -x`. Missing elements give defaults. Raises ElementTree.ParseError."""
    log = ElementTree.fromstring(xml)
    return GpuReading(
        gpus=[_gpu(element) for element in log.iter("gpu")],
        driver=log.findtext("driver_version", ""),
        driver_cuda=log.findtext("cuda_version", ""),
    )


def _gpu(element: ElementTree.Element) -> Gpu:
    active_tags = [child.tag for child in element.iter() if (child.text or "").strip() == "Active"]
    return Gpu(
        name=element.findtext("product_name", "unknown"),
        total_gib=_mebibytes(element.findtext("fb_memory_usage/total", "")) / 1024,
        used_gib=_mebibytes(element.findtext("fb_memory_usage/used", "")) / 1024,
        # Older drivers say clocks_throttle_reason_*, newer ones clocks_event_reason_*.
        slowed_by=[reason for reason in _SLOWDOWNS if any(tag.endswith(f"_reason_{reason}") for tag in active_tags)],
        uncorrected_errors=_uncorrected_errors(element),
        needs_reset=element.findtext("remapped_rows/remapped_row_pending", "No") == "Yes",
        processes=[
            f"{process.findtext('pid', '?')} {process.findtext('process_name', '?')}"
            for process in element.iter("process_info")
        ],
    )


def _uncorrected_errors(element: ElementTree.Element) -> int:
    counters = element.find("ecc_errors/volatile")
    counts = [counter.text or "" for counter in counters if "uncorrect" in counter.tag] if counters is not None else []
    return sum(int(count) for count in counts if count.strip().isdigit())


def _mebibytes(text: str) -> float:
    number = text.split(" ")[0]
    return float(number) if number.isdigit() else 0.0
