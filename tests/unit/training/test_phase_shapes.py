"""Shapes in the signatures of phases are stated, and checked while tests run."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError

from tempo_megatron.training import phases
from tempo_megatron.training.phases.advantages import AdvantageBatch
from tempo_megatron.training.phases.critic_metrics import value_evidence, value_metrics

FILES = sorted(Path(phases.__file__).parent.glob("*.py"))


@pytest.mark.parametrize(
    "mask", [torch.ones(3, 4, dtype=torch.bool), torch.ones(2, 5, dtype=torch.bool), torch.ones(2, 4)]
)
def test_a_mask_of_another_shape_or_dtype_is_an_error(mask: torch.Tensor) -> None:
    """Without the check, figures of other rows or of all positions would be logged."""
    with pytest.raises(TypeCheckError):
        value_metrics(torch.zeros(2, 4), mask, [], [])


def test_values_of_whole_rows_are_no_last_values() -> None:
    with pytest.raises(TypeCheckError):
        value_evidence(torch.zeros(2, 4), [], 0.0)


def test_columns_of_a_step_have_the_same_rows() -> None:
    parts: dict[str, Any] = dict.fromkeys(field.name for field in fields(AdvantageBatch))
    parts |= {
        "first_epoch": [torch.arange(2)],
        "generator_difference": torch.zeros(5),
        "stale_difference": torch.zeros(1),
    }
    parts |= {"rewards": torch.zeros(2), "advantages": torch.zeros(2, 4), "entropy": torch.zeros(2, 4)}
    parts["learning_rows"] = torch.ones(2).bool()
    AdvantageBatch(**parts)
    for name, column in {"rewards": torch.zeros(3), "entropy": torch.zeros(2, 5)}.items():
        with pytest.raises(TypeCheckError):
            AdvantageBatch(**parts | {name: column})


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_signature_has_a_tensor_without_shape(file: Path) -> None:
    """`Float[Tensor, "rows"]` states a shape. A bare `Tensor` in a signature or field would not be checked."""
    bare = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            hints = [node.returns, *(argument.annotation for argument in arguments)]
        elif isinstance(node, ast.ClassDef):
            hints = [item.annotation for item in node.body if isinstance(item, ast.AnnAssign)]
        else:
            continue
        bare += [ast.unparse(hint) for hint in hints if hint and _has_bare_tensor(hint)]
    assert not bare


def _has_bare_tensor(hint: ast.expr) -> bool:
    if isinstance(hint, ast.Subscript) and isinstance(hint.slice, ast.Tuple):
        first, *others = hint.slice.elts
        if isinstance(first, ast.Name) and first.id == "Tensor" and isinstance(others[0], ast.Constant):
            return False
    if isinstance(hint, ast.Name) and hint.id == "Tensor":
        return True
    return any(_has_bare_tensor(child) for child in ast.iter_child_nodes(hint) if isinstance(child, ast.expr))
