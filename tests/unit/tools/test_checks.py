"""`make lint` refuses vague names, long modules and long classes, and nothing else."""

from __future__ import annotations

from pathlib import Path

import check_names
import check_sizes
import pytest


@pytest.mark.parametrize(
    "source",
    [
        "found = 1",
        "for at in range(3): pass",
        "_made: int = 1",
        "first, (given, last) = 1, (2, 3)",
        "self.done = True",
        "def drawn(): pass",
        "class asked: pass",
        "def f(*mine): pass",
        "sorted(x, key=lambda theirs: theirs)",
        "try: pass\nexcept ValueError as found: pass",
        "match x:\n    case [made, *_]: pass",
        "import torch as given",
        "if (found := f()): pass",
        "with f() as done: pass",
    ],
)
def test_a_vague_name_is_refused_wherever_it_is_bound(source: str) -> None:
    assert len(check_names.vague_names(source)) == 1


@pytest.mark.parametrize(
    "source", ["checkpoint = found_files", "x.found()", "f(given=1)", "'found'  # made", "import at", "print(done)"]
)
def test_other_names_and_mere_uses_pass(source: str) -> None:
    assert check_names.vague_names(source) == []


def test_files_and_lines_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "good.py").write_text("loss = 1\n")
    (tmp_path / "bad.py").write_text("\nmade = 1\n")
    assert check_names.main([str(tmp_path / "good.py")]) == 0
    assert check_names.main([str(tmp_path)]) == 1
    assert f"{tmp_path / 'bad.py'}:2: `made`" in capsys.readouterr().out


def test_long_modules_and_classes_are_refused() -> None:
    method = "    def method_{}(self): pass\n"
    fifteen = "class Model:\n" + "".join(method.format(number) for number in range(15))
    assert check_sizes.size_problems(fifteen + "    def _private(self): pass\n" + "\n" * 300) == []
    assert "16 public methods" in check_sizes.size_problems(fifteen + method.format(15))[0]
    assert "201 lines" in check_sizes.size_problems("class Model:\n" + "    layers = 1\n" * 200)[0]
    assert "351 lines" in check_sizes.size_problems("loss = 1\n" * 351)[0]
