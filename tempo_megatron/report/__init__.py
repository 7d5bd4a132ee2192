"""`tempo report`: one HTML file that shows what a run does, without network or server.

- `reading.py` returns what a run directory holds, whether or not the run has ended.
- `outcome.py` compares the first and the last evaluation, with intervals over questions.
- `alarms.py` says in plain words what went wrong, or may have.
- `measures.py` lists the metrics that are drawn, `figures.py` makes panels of them (`panels.py`).
- `timing.py` says where time and memory go, `facts.py` what ran.
- `questions.py` returns the rows of the questions table and their samples.
- `page.py` fills the templates; `png.py` draws the same panels as pictures.
- `watch.py` rewrites the page while a run goes on.
- `command.py` is the command, and the process that a finished run starts.

Nothing here reads the answer of a question, unless `--show-answers` asks for it. The page says "right" or "wrong", as
the run's samples do.
"""
