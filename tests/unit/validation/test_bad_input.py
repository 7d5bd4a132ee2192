"""Bad input: one clear error, exit code 2 from `tempo train` started alone, nothing left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tempo_megatron import cli
from tempo_megatron.config import Config, Overlong, SourceConfig, load_config
from tempo_megatron.data.reading import DataError
from tempo_megatron.data.sources import read_rows, to_prompts
from tempo_megatron.run_dir.layout import create_run_directory
from tempo_megatron.validation.recipe import recipe_problems


def refused(recipe: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    """The message of a start that is refused, having checked the exit code and that no run directory was made."""
    assert cli.main(["train", str(recipe), *overrides]) == 2
    assert not (recipe.parent / "run").exists()
    return capsys.readouterr().err


def data_file(recipe: Path, *rows: object) -> Path:
    path = recipe.parent / "data.jsonl"
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loop.itertions=3", "did you mean 'iterations'"),
        ("loop.iterations=many", "loop.iterations"),
        ("parallel.tensor_model_parallel_size=3", "3 does not divide the model's 4 attention heads"),
        ("parallel.pipeline_model_parallel_size=5", "5 is more than the model's 4 layers"),
        ("parallel.virtual_pipeline_model_parallel_size=2", "needs pipeline_model_parallel_size above 1"),
        ("generation.tensor_parallel_size=4", "4 does not divide the model's 2 KV heads"),
        ("model.precision=bf16", "needs a GPU"),
        ("generation.precision=fp8", "generation.precision: fp8 needs a GPU"),
        ("generation.log_prob_alarm=0.5", "generation.log_prob_alarm: at least 1"),
        ("model.hf_path=/nowhere", "no config.json"),
        ("evaluation.k=5", "evaluation.k"),
        ("data.labeled=[{path: /nowhere.jsonl}]", "/nowhere.jsonl: no such data file"),
        ("data.labeled=[{task: no_such_task, size: 3}]", "no_such_task"),
    ],
)
def test_a_wrong_setting_is_named(
    override: str, message: str, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each of the mistakes that users make, on its own."""
    assert message in refused(recipe, capsys, override)


def test_the_other_apex_is_refused(
    recipe: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package index's project of that name is not NVIDIA's; megatron-core would try to use it."""
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert "apex: the package installed under this name is not NVIDIA's" in refused(recipe, capsys)
    (tmp_path / "apex" / "multi_tensor_apply").mkdir()
    assert "apex:" not in "\n".join(recipe_problems(load_config(recipe)))


def test_all_problems_are_listed_at_once(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A start lists what is wrong with layout, data and numbers together."""
    message = refused(
        recipe, capsys, "parallel.tensor_model_parallel_size=3", "policy.mini_batches=0", "data.unlabeled=[]"
    )
    assert all(part in message for part in ("attention heads", "policy.mini_batches", "data.unlabeled: required"))


def test_an_unknown_setting_hides_nothing_else(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Checks go on without it, since a run's first start should not be one mistake after the other."""
    message = refused(recipe, capsys, "policy.clip_hgih=0.1", "seed=abc", "policy.mini_batches=0", "method=tempp")
    assert all(part in message for part in ("policy.clip_hgih: unknown", "seed:", "is no method"))
    message = refused(recipe, capsys, "policy.clip_hgih=0.1", "policy.mini_batches=0", "evaluation.k=5")
    assert message.index("clip_hgih: unknown") < message.index("policy.mini_batches: at least 1, got 0")
    assert message.index("policy.mini_batches") < message.index("left out:") < message.index("evaluation.k: 5")


def test_a_missing_model_hides_no_missing_data(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a tokenizer, and without a word of a hub that nobody asked for."""
    message = refused(recipe, capsys, "model.hf_path=/nowhere", "data.labeled=[{path: /none.jsonl}]")
    assert "/nowhere" in message and "/none.jsonl: no such data file" in message
    assert "huggingface.co" not in message


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "the data file is empty"),
        ([{"prompt": "a", "answer": "b"}, {"answer": "b"}], "line 2: a row needs `prompt`"),
        ([{"prompt": "a", "answer": "b"}, {"prompt": "c"}], "line 2: a labeled row needs `answer`"),
        (["{broken\n"], "line 1: not JSON"),
        ([{"prompt": "a", "answer": "b"}, {"prompt": "c", "answer": "d", "grader": "maths"}], "line 2: unknown grader"),
        ([{"prompt": "a", "answer": "b", "grader": "judge"}], "data.jsonl, line 1 names the judge"),
        ([{"prompt": "a", "answer": "b", "grader": 3}], "line 1: `grader` is a name"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(
    rows: list[object], message: str, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Data files are read before anything starts."""
    path = data_file(recipe, *rows)
    text = refused(recipe, capsys, f"data.labeled=[{{path: {path}}}]")
    assert str(path) in text and message in text


def test_a_run_directory_of_another_recipe_is_refused(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Resuming must not mix two experiments; what changes no result may change. It is said what to do."""
    create_run_directory(load_config(recipe))
    before = (recipe.parent / "run" / "config.yaml").read_text()
    assert cli.main(["train", str(recipe), "policy.clip_range_high=0.3", "seed=5"]) == 2
    message = capsys.readouterr().err
    assert "policy.clip_range_high was 0.15, is 0.3" in message and "seed was 0, is 5" in message
    assert message.count("set these back") == 1 and "name another run_dir" in message
    assert (recipe.parent / "run" / "config.yaml").read_text() == before
    assert recipe_problems(load_config(recipe, ["loop.iterations=9", "checkpoint.every=3"])) == []


def test_a_run_resumes_under_a_version_that_has_more_settings(recipe: Path) -> None:
    """What was no setting yet had its default, which a run that goes on must keep."""
    create_run_directory(load_config(recipe))
    path = recipe.parent / "run" / "config.yaml"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "dual_clip" not in line))
    assert len(path.read_text().splitlines()) == len(lines) - 1
    assert recipe_problems(load_config(recipe)) == []
    assert "policy.dual_clip was 0.0, is 2.0" in recipe_problems(load_config(recipe, ["policy.dual_clip=2.0"]))[0]


def test_a_run_resumes_with_less_memory_another_judge_and_a_model_that_was_moved(
    recipe: Path, demo_model: Path, tmp_path: Path
) -> None:
    """On fewer nodes a run may have to recompute more, and a judge's job lands where it lands. The model's directory is
    compared by its path until there is a checkpoint, which holds the weights; then by the model that it describes."""
    create_run_directory(load_config(recipe))
    assert (
        recipe_problems(load_config(recipe, ["model.recompute=full", "grading.judge_url=http://other:8000/v1"])) == []
    )
    moved = f"model.hf_path={shutil.copytree(demo_model, tmp_path / 'moved')}"
    assert [
        line for line in recipe_problems(load_config(recipe, [moved])) if f"model.hf_path was {demo_model}, is" in line
    ]

    beside = shutil.copytree(demo_model, tmp_path / "run" / "checkpoints" / "iteration-000002" / "huggingface")
    assert recipe_problems(load_config(recipe, [moved])) == []
    described = json.loads((beside / "config.json").read_text())
    (beside / "config.json").write_text(json.dumps(described | {"rope_theta": 5e5, "rope_parameters": None}))
    (line,) = recipe_problems(load_config(recipe, [moved]))
    assert "moved is another model than that of run_dir" in line and "attention differ" in line


def test_overlong_prompts_are_dropped_and_counted_or_an_error(demo_model: Path, recipe: Path) -> None:
    """`data.overlong`."""
    path = data_file(recipe, {"prompt": "abc"}, {"prompt": "abcdefghij"})
    rows = read_rows([SourceConfig(path=str(path))], labeled=False)
    config = Config().data
    config.max_prompt_tokens = 5
    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    prompt_set = to_prompts(rows, config, tokenizer, {})
    assert (len(prompt_set.prompts), prompt_set.overlong) == (1, 1)
    config.overlong = Overlong.error
    with pytest.raises(DataError, match="10 tokens"):
        to_prompts(rows, config, tokenizer, {})


def test_answers_of_unlabeled_rows_are_split_off_when_read(demo_model: Path, recipe: Path) -> None:
    """The label firewall: prompts, their ids and order are the same whatever the answers are."""
    tokenizer = AutoTokenizer.from_pretrained(demo_model)

    def read(*answers: str) -> tuple[object, dict]:
        path = data_file(recipe, *({"prompt": p, "answer": a} for p, a in zip("abc", answers, strict=True)))
        kept: dict = {}
        rows = read_rows([SourceConfig(path=str(path))], labeled=False)
        return to_prompts(rows, Config().data, tokenizer, kept).prompts, kept

    prompts, kept = read("1", "2", "3")
    permuted, others = read("3", "1", "2")
    assert prompts == permuted
    assert all(prompt.answer is None for prompt in prompts)  # type: ignore[attr-defined]
    assert kept != others and kept.keys() == others.keys()
