"""Which runs tools/reproduce.py trains: pieces of studies, their settings, and what it refuses before it trains."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import reproduce
import yaml
from comparison.runs import differing_settings
from comparison.studies import REFERENCE, STUDIES, Study
from make_miniature import RECIPES

from tempo_megatron.config import load_config, to_yaml


@pytest.mark.parametrize("recipes", [RECIPES, RECIPES / "large"], ids=["small", "large"])
def test_studies_share_runs_and_their_settings_load(tmp_path: Path, recipes: Path) -> None:
    """One name with two settings would take another study's run for its own. A wrong key would fail after hours."""
    by_name: dict[str, tuple[str, ...]] = {}
    loaded = set()
    for study in STUDIES.values():
        assert REFERENCE in study.runs
        starts, runs = reproduce.pieces_of(tmp_path, [study], [0], ["loop.iterations=60"], [], recipes)
        for piece in {*starts, *runs} - loaded:
            loaded.add(piece)
            config = load_config(piece.recipe, piece.overrides)
            paths = [source.path for source in config.data.sources()]
            assert not any("{" in path for path in (*paths, config.critic.checkpoint))
            sets = yaml.safe_load((recipes / "questions.yaml").read_text())
            assert {Path(path).stem for path in paths} <= sets.keys()
        for name, settings in study.runs.items():
            assert by_name.setdefault(name, settings) == settings
    assert len({*by_name.values()}) == len(by_name)


def test_runs_continue_from_the_end_of_their_seeds_start(tmp_path: Path) -> None:
    methods = STUDIES["methods"].runs
    study = Study("Which?", {name: methods[name] for name in ("tempo", "ppo")})
    starts, runs = reproduce.pieces_of(tmp_path, [study], [3, 4], ["loop.iterations=7"], ["loop.iterations=9"])
    assert [piece.directory.name for piece in starts] == ["start-3", "start-4"]
    assert len(runs) == 2 * 2
    for piece in runs:
        name, seed = piece.directory.name.rsplit("-", 1)
        config = load_config(piece.recipe, piece.overrides)
        end = str(tmp_path / f"start-{seed}" / "checkpoints" / "iteration-000007")
        assert (config.seed, config.policy.checkpoint, config.critic.checkpoint) == (int(seed), end, end)
        assert (config.loop.iterations, config.method) == (9, name)


@pytest.mark.parametrize("recipes", [RECIPES, RECIPES / "large"], ids=["small", "large"])
def test_ppo_goes_on_at_the_learning_rate_of_the_start(tmp_path: Path, recipes: Path) -> None:
    """The sizes have different rates, and a start may have another one than its recipe's."""
    for override in ([], ["policy.optimizer.learning_rate=7.0e-5"]):
        (start,), runs = reproduce.pieces_of(tmp_path, [STUDIES["methods"]], [0], override, [], recipes)
        rate = load_config(start.recipe, start.overrides).policy.optimizer.learning_rate
        rates = {
            piece.directory.name: load_config(piece.recipe, piece.overrides).policy.optimizer.learning_rate
            for piece in runs
        }
        assert rates["ppo-0"] == rates["grpo-0"] == rate
        assert rates["tempo-0"] == load_config(recipes / "loop.yaml").policy.optimizer.learning_rate


def test_exact_numerics_are_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The small size's heads have 32 channels. The starts would be trained before the run itself says so.

    The corrected command can have the same directory. Runs that have ended are tabulated on any machine.
    """
    monkeypatch.setattr(reproduce, "train_all", lambda *_: pytest.fail("something was trained"))
    monkeypatch.setattr("sys.argv", ["reproduce.py", str(tmp_path / "study"), "--study", "numerics", "--seeds", "0"])
    assert reproduce.main() == reproduce.REFUSED
    needed = "exact-0: numerics: exact needs heads of 128 channels, the model has 32"
    assert any(line.startswith(needed) for line in capsys.readouterr().err.splitlines())
    assert not (tmp_path / "study").exists()
    _, runs = reproduce.pieces_of(tmp_path / "study", [STUDIES["numerics"]], [0], [], [])
    assert reproduce.unsupported(runs, RECIPES)
    (exact,) = [piece for piece in runs if piece.directory.name == "exact-0"]
    exact.directory.mkdir(parents=True)
    (exact.directory / "summary.json").write_text("{}")
    assert reproduce.unsupported(runs, RECIPES) == []


def test_a_directory_of_another_size_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The large size's recipes would train the small model on the small size's questions."""
    monkeypatch.setattr(reproduce, "train_all", lambda *_: pytest.fail("something was trained"))
    questions = tmp_path / "study" / "questions"
    questions.mkdir(parents=True)
    for name in ("questions.yaml", "model.yaml"):
        (questions / name).write_text((RECIPES / name).read_text())
    arguments = ["reproduce.py", str(tmp_path / "study"), "--resume", "--recipes", str(RECIPES / "large")]
    monkeypatch.setattr("sys.argv", arguments)
    assert reproduce.main() == reproduce.REFUSED
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"{questions} is of another size: its questions.yaml differs")
    assert second.startswith(f"{questions} is of another size: its model.yaml differs")
    assert len(list(questions.iterdir())) == 2


def test_a_run_with_other_settings_is_not_taken_for_the_studys(tmp_path: Path) -> None:
    """A study's recipe changes with time. Its finished runs would be reported under the new settings."""
    study = Study("Which?", {"tempo": ("method=tempo",)})
    before, after = ("policy.kl_coefficient=0.05", "loop.iterations=9"), ("policy.kl_coefficient=0.2",)

    def differences(*loop: str) -> list[str]:
        _, (piece,) = reproduce.pieces_of(tmp_path, [study], [0], [], loop)
        return differing_settings(piece)

    assert differences(*before) == []
    _, (piece,) = reproduce.pieces_of(tmp_path, [study], [0], [], before)
    piece.directory.mkdir()
    config = load_config(piece.recipe, (f"run_dir={piece.directory}", *piece.overrides))
    (piece.directory / "config.yaml").write_text(to_yaml(config))
    (piece.directory / "summary.json").write_text("{}")
    assert differences(*before) == []
    setting, _, iterations = differences(*after)
    assert setting.endswith("policy.kl_coefficient was 0.05, is 0.2")
    assert iterations == f"run_dir {piece.directory} has ended after 9 iterations, not 200"
    (piece.directory / "summary.json").unlink()
    assert differences(before[0]) == []


def test_studies_side_by_side_train_a_shared_run_once(tmp_path: Path) -> None:
    _, runs = reproduce.pieces_of(tmp_path, [STUDIES["averages"], STUDIES["targets"]], [0], [], [])
    assert [piece.directory.name for piece in runs] == ["tempo-0", "constant-0", "minus_one_one-0"]


def test_an_unknown_study_is_refused_by_name() -> None:
    assert reproduce.study_names("methods,anchors") == ["methods", "anchors"]
    with pytest.raises(argparse.ArgumentTypeError, match="no study is called method; there are methods, intervals"):
        reproduce.study_names("method,anchors")
