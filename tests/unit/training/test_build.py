"""What a run writes when it is put together."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tempo_megatron.config import Config
from tempo_megatron.training import build
from tempo_megatron.training.reporting import Console


def test_a_plan_is_a_matter_of_gpus_and_its_failure_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run does not need it. That of an earlier start, perhaps on another machine, does not stay."""
    calls: list[dict[str, Any]] = []

    def predict(config: Config, **machine: Any) -> dict[str, Any]:
        calls.append(machine)
        if len(calls) > 1:
            raise ZeroDivisionError
        return {"response_tokens": 8.0}

    monkeypatch.setattr(build, "predict", predict)
    properties = SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    data: Any = SimpleNamespace(questions=SimpleNamespace(with_answers=lambda: {"unlabeled": [1, 2], "held_out": [3]}))

    def recorded(device: str) -> dict[str, Any] | None:
        ranks: Any = SimpleNamespace(device=torch.device(device), world_size=4)
        build.record_plan(Config(run_dir=str(tmp_path)), ranks, data, Console(is_first=True))
        path = tmp_path / "plan.json"
        return json.loads(path.read_text()) if path.exists() else None

    assert recorded("cpu") is None and calls == []
    assert recorded("cuda") == {"response_tokens": 8.0}
    assert (calls[0]["gpus"], calls[0]["gpu_gib"], calls[0]["questions"]) == (4, 80.0, 3)
    assert recorded("cuda") is None and "WARNING the report will have no plan" in capsys.readouterr().err
    (tmp_path / "plan.json").write_text("{}")
    assert recorded("cpu") is None
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: 1 / 0)
    (tmp_path / "plan.json").write_text("{}")
    assert recorded("cuda") is None and "WARNING the report will have no plan" in capsys.readouterr().err
