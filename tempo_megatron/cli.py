"""The `tempo` command. Each subcommand is one call into a room of the package.

Rooms are imported inside the subcommands: `tempo --help` waits for none of them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from tempo_megatron.utils import user
from tempo_megatron.utils.command_line import SeveralValuesCommand, run_app

_TRAIN, _PREPARE, _RESULTS = "Train", "Look and prepare", "Results"
_SLURM = "Slurm"
_slurm_option = partial(typer.Option, rich_help_panel=_SLURM)
_HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    help="Test-time training of reasoning models by the TEMPO algorithm. A recipe is a YAML file; `tempo settings` "
    "lists its keys. `tempo COMMAND --help` explains a command. The environment variable TEMPO_LOG_LEVEL (INFO) sets "
    "the lowest level of log lines on standard error; results go to standard output.",
    add_completion=False,
    context_settings=_HELP_OPTIONS,
    rich_markup_mode="rich",
    no_args_is_help=True,
)
data_app = typer.Typer(help="Prepare question sources, and check them for contamination.", no_args_is_help=True)
app.add_typer(data_app, name="data", rich_help_panel=_PREPARE)

Recipe = Annotated[str, typer.Argument(help="YAML file of settings; `tempo settings` lists them.", metavar="RECIPE")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings that replace the recipe's, or YAML files of settings.", metavar="key=value"),
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `tempo` and returns its exit code.

    Exit codes: 0 success, 1 failure, 2 bad input or a run directory that another run uses (nothing was written), 69
    these nodes cannot train, 70 a rank hung, 75 the run was asked to stop and has saved. Ranks of torchrun exit with 0
    instead of 75, since torchrun knows only success and failure.
    """
    user.ensure_name_and_home()
    return run_app(app, "tempo", arguments)


@app.command(rich_help_panel=_TRAIN)
def train(context: typer.Context, recipe: Recipe, overrides: Overrides = None) -> int:
    """Train by a recipe, or resume the run that it started."""
    from tempo_megatron.training.command import train_recipe

    return train_recipe(recipe, overrides or [], context.obj)


@app.command(rich_help_panel=_TRAIN)
def replay(
    run: Annotated[Path, typer.Argument(help="Directory of a run with generation.keep_rollouts=true.", metavar="RUN")],
    overrides: Annotated[
        list[str], typer.Argument(help="run_dir=..., and the settings that shall differ.", metavar="key=value")
    ],
) -> int:
    """Train again on the rollouts that a run has kept, without a generator."""
    from tempo_megatron.training.command import replay_run

    return replay_run(run, overrides)


@app.command(rich_help_panel=_TRAIN)
def launch(
    recipe: Recipe,
    executor: Annotated[Literal["local", "slurm"], typer.Option(help="Run on this machine, or as jobs of a cluster.")],
    overrides: Overrides = None,
    nodes: Annotated[int, _slurm_option(help="Nodes that train. Other tasks take one.", metavar="N")] = 1,
    gpus_per_node: Annotated[
        int | None,
        _slurm_option(help="GPUs of a node.", metavar="N", show_default="parallel.processes_per_node of the recipe"),
    ] = None,
    gpu_memory: Annotated[
        float, _slurm_option(help="GB that a GPU is sold with. A recipe that cannot fit is refused.", metavar="GB")
    ] = 80.0,
    account: Annotated[str | None, _slurm_option(help="Account that is charged.")] = None,
    partition: Annotated[str | None, _slurm_option(help="Partition of the jobs.")] = None,
    time: Annotated[str, _slurm_option(help="Time limit of each job, as Slurm writes it.")] = "24:00:00",
    container: Annotated[
        str | None, _slurm_option(help="Image to run in, by pyxis.", metavar="IMAGE", show_default="this Python")
    ] = None,
    dry_run: Annotated[bool, _slurm_option("--dry-run", help="Print the sbatch scripts; submit nothing.")] = False,
) -> int:
    """Run a recipe as a NeMo-Run experiment: convert, train, export, evaluate, one after the other."""
    from tempo_megatron.grading.labels import problems_of_files
    from tempo_megatron.launch.command import LaunchOptions, launch_recipe
    from tempo_megatron.run_dir.layout import as_saved
    from tempo_megatron.validation.method import method_problems

    options = LaunchOptions(executor, nodes, gpus_per_node, gpu_memory, account, partition, time, container, dry_run)
    return launch_recipe(
        recipe,
        overrides or [],
        options,
        recipe_problems=lambda config: [*method_problems(config), *problems_of_files(config)],
        as_saved=as_saved,
    )


@app.command(rich_help_panel=_PREPARE)
def settings(
    texts: Annotated[
        list[str] | None,
        typer.Argument(help="List only settings whose key or meaning contains each TEXT.", metavar="TEXT"),
    ] = None,
) -> int:
    """List the settings of a recipe, with their defaults and meanings."""
    from tempo_megatron.config.listing import print_settings

    return print_settings(texts or [])


@app.command(rich_help_panel=_PREPARE)
def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    nodes: Annotated[
        str, typer.Option(help="Nodes. Several numbers with commas give a table with a row for each.")
    ] = "1",
    gpus_per_node: Annotated[int, typer.Option(help="GPUs of a node.", metavar="N")] = 8,
    gpu_memory: Annotated[float, typer.Option(help="GB that a GPU is sold with.", metavar="GB")] = 80.0,
    host_memory: Annotated[float, typer.Option(help="GiB of host memory of a node.", metavar="GIB")] = 1536.0,
    model: Annotated[
        str | None, typer.Option(help="Shape of a published model.", metavar="NAME", show_default="model.hf_path")
    ] = None,
    response_tokens: Annotated[
        int | None, typer.Option(help="Mean length of a response.", metavar="N", show_default="half of the longest")
    ] = None,
    questions: Annotated[int, typer.Option(help="Questions of an evaluation.", metavar="N")] = 300,
    uniform_share: Annotated[
        float,
        typer.Option(
            help="Share of labeled prompts with uniform scores, for loop.drop_uniform_prompts.", metavar="SHARE"
        ),
    ] = 0.5,
    storage: Annotated[float, typer.Option(help="GB/s of the shared storage.", metavar="GB/S")] = 2.0,
) -> int:
    """Print memory of each phase, time and possible layouts of a recipe on a cluster. Exit code 2: it cannot fit."""
    from tempo_megatron.planning.command import PlanOptions, plan_recipe
    from tempo_megatron.run_dir.layout import as_saved
    from tempo_megatron.validation.method import method_problems

    options = PlanOptions(
        nodes, gpus_per_node, gpu_memory, host_memory, model, response_tokens, questions, uniform_share, storage
    )
    return plan_recipe(recipe, overrides or [], options, method_problems=method_problems, as_saved=as_saved)


@app.command(rich_help_panel=_PREPARE)
def doctor(
    context: typer.Context,
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="A recipe, further YAML files, and settings.", metavar="RECIPE.yaml|key=value"),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write all findings and facts as JSON.", metavar="FILE")] = None,
    nodes_file: Annotated[
        Path | None,
        typer.Option(help="Write the nodes that training can start on, a line each; no file: on none.", metavar="FILE"),
    ] = None,
    numerics: Annotated[
        bool, typer.Option("--numerics", help="Instead, say where generator and policy first differ; docs/numerics.md.")
    ] = False,
) -> int:
    """Check whether these nodes can train by a recipe; see docs/doctor.md."""
    if numerics:
        from tempo_megatron.training.command import compare_recipe_numerics

        return compare_recipe_numerics(settings or [], context.obj)
    from tempo_megatron.preflight.command import doctor as examine_nodes

    return examine_nodes(settings or [], json, nodes_file, context.obj)


@app.command("eval", cls=SeveralValuesCommand, rich_help_panel=_RESULTS)
def evaluate(
    context: typer.Context,
    model: Annotated[Path, typer.Option(help="Hugging Face model directory, such as runs/demo/hf.", metavar="DIR")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Any setting that `tempo settings` lists: data.chat_template=true.", metavar="key=value"),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="JSONL files of questions with answers; each is a benchmark.", metavar="FILE..."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Recipe whose settings apply and, without --data, whose unlabeled and held-out sets."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Directory of samples and results.", metavar="DIR", show_default="runs/eval/ and the model's path"
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(help="Responses to a question.", metavar="N", show_default="the benchmark's protocol, else 16"),
    ] = None,
    k: Annotated[
        list[int] | None,
        typer.Option(help="k of pass@k and cons@k.", metavar="K...", show_default="the benchmark's protocol, else 8"),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Sampling temperature.", metavar="T", show_default="1.0")
    ] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling mass.", metavar="P", show_default="1.0")] = None,
    max_response_tokens: Annotated[
        int | None,
        typer.Option(help="A response that reaches so many tokens is truncated and counts as wrong.", metavar="N"),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(help="Ranks to start here: one per GPU, or per CPU core.", metavar="N", show_default="1"),
    ] = None,
    tensor_parallel: Annotated[
        int | None, typer.Option(help="Ranks of one vLLM replica.", metavar="T", show_default="1, or the recipe's")
    ] = None,
    precision: Annotated[
        Literal["fp32", "bf16"] | None, typer.Option(help="Precision of the model; CPUs need fp32.")
    ] = None,
) -> int:
    """Evaluate a Hugging Face model on benchmarks. The same command again resumes."""
    from tempo_megatron.evaluation.command import evaluate_model
    from tempo_megatron.evaluation.protocol import ProtocolOverrides
    from tempo_megatron.evaluation.request import EvaluationRequest, option_overrides

    request = EvaluationRequest(
        model=model,
        data=tuple(data or ()),
        recipe=recipe,
        out=out,
        protocol=ProtocolOverrides(samples, tuple(k) if k else None, temperature, top_p),
        overrides=(
            *(overrides or ()),
            *option_overrides(precision, processes, tensor_parallel, max_response_tokens),
        ),
    )
    return evaluate_model(request, context.obj)


@app.command(rich_help_panel=_RESULTS)
def export(
    run: Annotated[Path, typer.Argument(help="Directory of a run that has a checkpoint.", metavar="RUN")],
) -> int:
    """Write a run's best or last checkpoint as RUN/hf, as the end of the run does."""
    from tempo_megatron.training.command import export_checkpoint

    return export_checkpoint(run)


@app.command(rich_help_panel=_RESULTS)
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories; several are compared.", metavar="RUN...")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The HTML file to write.", metavar="FILE", show_default="RUN/report.html; of several runs report.html"
        ),
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(help="Write each panel as a PNG into this directory too.", metavar="DIR")
    ] = None,
    show_answers: Annotated[
        bool,
        typer.Option("--show-answers", help="Show hidden answers, from the run's data, in report-with-answers.html."),
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Rewrite the file while the run goes on; the page reloads itself.")
    ] = False,
) -> int:
    """Write an HTML file that shows what a run does, or several runs side by side; see docs/report.md."""
    from tempo_megatron.report.command import ReportOptions, report_runs

    return report_runs(runs, ReportOptions(out, figures, show_answers, watch))


@data_app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="Name of a source; `tempo data list` prints them.", metavar="NAME")],
    path: Annotated[
        Path | None,
        typer.Option(
            "--from", help="File or directory in the source's own schema.", metavar="PATH", show_default="the hub"
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Directory to write to.", metavar="DIR")] = Path("data"),
    limit: Annotated[
        int | None, typer.Option(help="Keep at most so many questions, the first ones.", metavar="N")
    ] = None,
    keep_unanswered: Annotated[
        bool,
        typer.Option("--keep-unanswered", help="Keep questions without an answer; data.unlabeled needs none."),
    ] = False,
    drop_useless: Annotated[
        bool,
        typer.Option(
            "--drop-useless", help="Drop answers that no response can get right; without this they are an error."
        ),
    ] = False,
) -> int:
    """Write a source as DIR/NAME.jsonl, from its files or from the hub."""
    from tempo_megatron.data.prepare.command import write_source
    from tempo_megatron.grading import labels

    return write_source(
        name, path, out, limit=limit, keep_unanswered=keep_unanswered, drop_useless=drop_useless, checks=labels
    )


@data_app.command("list")
def list_() -> int:
    """List the sources: hub address, role in the paper, grader."""
    from tempo_megatron.data.prepare.command import print_sources

    return print_sources()


@data_app.command(cls=SeveralValuesCommand)
def check(
    labeled: Annotated[list[Path], typer.Option(help="Labeled questions, normalized JSONL.", metavar="FILE...")],
    unlabeled: Annotated[list[Path] | None, typer.Option(help="Unlabeled questions.", metavar="FILE...")] = None,
    held_out: Annotated[list[Path] | None, typer.Option(help="Held-out questions.", metavar="FILE...")] = None,
    out: Annotated[Path | None, typer.Option(help="Write counts and all pairs as JSON.", metavar="FILE")] = None,
    clean: Annotated[
        Path | None, typer.Option(help="Write the labeled files without those questions.", metavar="DIR")
    ] = None,
) -> int:
    """Find labeled questions that are also evaluated."""
    from tempo_megatron.data.prepare.command import check_contamination
    from tempo_megatron.grading import labels

    return check_contamination(labeled, unlabeled or [], held_out or [], out=out, clean=clean, checks=labels)


if __name__ == "__main__":
    sys.exit(main())
