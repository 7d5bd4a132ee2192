"""The public sources by name: where each is, its role in the paper, and how its rows become questions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tempo_megatron.data.prepare import files, general, mathematics, offline
from tempo_megatron.data.prepare.files import HubDataset, SourceRows
from tempo_megatron.data.prepare.question import PreparedQuestion
from tempo_megatron.data.reading import Problem

_BBH_TASKS = (
    "boolean_expressions",
    "causal_judgement",
    "date_understanding",
    "disambiguation_qa",
    "dyck_languages",
    "formal_fallacies",
    "geometric_shapes",
    "hyperbaton",
    "logical_deduction_five_objects",
    "logical_deduction_seven_objects",
    "logical_deduction_three_objects",
    "movie_recommendation",
    "multistep_arithmetic_two",
    "navigate",
    "object_counting",
    "penguins_in_a_table",
    "reasoning_about_colored_objects",
    "ruin_names",
    "salient_translation_error_detection",
    "snarks",
    "sports_understanding",
    "temporal_sequences",
    "tracking_shuffled_objects_five_objects",
    "tracking_shuffled_objects_seven_objects",
    "tracking_shuffled_objects_three_objects",
    "web_of_lies",
    "word_sorting",
)


@dataclass(frozen=True)
class CatalogSource:
    """One public source."""

    description: str
    role: str
    """The source's role in the paper; "-" where the paper does not name it."""
    grader: str
    question: Callable[[dict[str, Any], str], PreparedQuestion]
    """Makes a question of a row and the name of the row's part."""
    hub: HubDataset | None = None
    pattern: str = "*"
    """The names of the files to read where `--from` is a directory."""
    unanswered: str = ""
    """What to do where a copy of the source has no answers."""

    def rows(self, path: Path | None, problems: list[Problem]) -> SourceRows:
        """Return the rows of the path, or of the hub without a path. Adds what cannot be read to `problems`."""
        if path is None:
            assert self.hub
            return self.hub.read()
        return (
            offline.read_task_mix(path)
            if path.suffix in (".yaml", ".yml")
            else files.read_files(path, self.pattern, problems)
        )


SOURCES = {
    "dapo-math-17k": CatalogSource(
        "competition problems with integer answers; each is in the hub's file about a hundred times",
        "maths, labeled",
        "math",
        mathematics.dapo,
        HubDataset("BytedTsinghua-SIA/DAPO-Math-17k", "train"),
    ),
    "aime-2024": CatalogSource(
        "30 problems of the American Invitational Mathematics Examination",
        "maths, unlabeled",
        "math",
        mathematics.competition("AIME-2024"),
        HubDataset("HuggingFaceH4/aime_2024", "train"),
    ),
    "aime-2025": CatalogSource(
        "30 problems, I and II",
        "maths, unlabeled",
        "math",
        mathematics.competition("AIME-2025"),
        HubDataset("opencompass/AIME2025", "test", ("AIME2025-I", "AIME2025-II")),
    ),
    "beyond-aime": CatalogSource(
        "100 problems of AIME's form, harder",
        "maths, unlabeled",
        "math",
        mathematics.competition("BeyondAIME"),
        HubDataset("ByteDance-Seed/BeyondAIME", "test"),
    ),
    "aime-2026": CatalogSource(
        "30 problems, I and II",
        "maths, held out",
        "math",
        mathematics.competition("AIME-2026"),
        HubDataset("MathArena/aime_2026", "train"),
    ),
    "olymmath": CatalogSource(
        "200 olympiad problems in English, half of them hard",
        "maths, held out",
        "math",
        mathematics.olymmath,
        HubDataset("RUC-AIBOX/OlymMATH", "test", ("en-easy", "en-hard")),
    ),
    "dolci-rl-zero-general": CatalogSource(
        "12.8K general requests with reference answers",
        "general, labeled",
        "judge",
        general.dolci,
        HubDataset("allenai/Dolci-RL-Zero-General-7B", "train"),
    ),
    "big-bench-hard": CatalogSource(
        "27 tasks of reasoning and language",
        "general, unlabeled",
        "free, choice",
        general.big_bench_hard,
        HubDataset("lukaemon/bbh", "test", _BBH_TASKS),
    ),
    "agieval": CatalogSource(
        "admission and qualification exams, the English subsets",
        "general, unlabeled",
        "choice, math",
        general.agieval,
        HubDataset("hails/agieval-{part}", "test", general.AGIEVAL_SUBSETS),
    ),
    "zebralogic": CatalogSource(
        "1000 logic grid puzzles",
        "general, unlabeled",
        "zebra",
        general.zebralogic,
        HubDataset("WildEval/ZebraLogic", "test", ("grid_mode",)),
        unanswered="allenai/ZebraLogicBench has its solutions blanked; they are in WildEval/ZebraLogic and, for those "
        "who were given access, in allenai/ZebraLogicBench-private",
    ),
    "gpqa-diamond": CatalogSource(
        "198 graduate questions in the sciences; gated",
        "general, held out",
        "choice",
        general.gpqa,
        HubDataset("Idavidrein/gpqa", "train", ("gpqa_diamond",)),
        pattern="*diamond*",
    ),
    "bigbench": CatalogSource(
        "JSON tasks of BIG-bench (task.json, or a directory of them), from its repository or package",
        "-",
        "free, choice",
        offline.bigbench,
        pattern="task.json",
    ),
    "reasoning-gym": CatalogSource(
        "a mix of reasoning-gym tasks, generated from a YAML list of {task, size, seed, options}",
        "-",
        "reasoning_gym:TASK",
        offline.reasoning_gym,
        pattern="*.yaml",
    ),
}
