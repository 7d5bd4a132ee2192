"""Grades responses: a response goes in, 0 or 1 comes out. `docs/grading.md` has the rules.

A response flows through these modules, in this order:

1. `rollout_grader.py` decodes rollouts and makes a task of each. `judge.py` takes those whose grader is `judge` and
   asks a judge model, through the proxy that `proxy.py` finds.
2. `pool.py` gives the other tasks to worker processes and enforces the time limit. `worker.py` is their program.
   `errors.py` has the error that ends grading.
3. `graders.py` maps the grader's name to its functions, and clusters equivalent answers.
4. `thinking.py` removes the response's thinking.
5. One grader extracts the final answer and compares it with the label:

   - `choice.py`: the letter of an option. `option_letters.py` reads letters from a statement.
   - `free.py`: a short text. `answer_normalization.py` writes it in one form.
   - `zebra.py`: a grid of JSON.
   - `mathematics.py`: a mathematical value. `math_prose.py` finds it in prose. `math_values/` parses values and
     compares them.

The graders share these modules:

- `boxes.py`: the boxes that end a response.
- `answer_statements.py`: what follows "the answer is" and the like.
- `ascii_text.py`: characters in ASCII.
- `label_text.py`: labels that must be a text or a number.

`labels.py` grades each label against itself before a run starts, in the same workers.

A grader is a rule that a row of data names, such as `math`. A `RolloutGrader` grades rollouts, each by its prompt's
grader. A scorer is the function by which a reasoning-gym task grades.
"""

from tempo_megatron.grading.rollout_grader import RolloutGrader

__all__ = ["RolloutGrader"]
