"""The end of a demo's first rank, again and again: a tiny run trains, and each end is a fork of it.

usage: PYTHONMALLOC=debug python -X faulthandler ends.py RECIPE ENDS SECONDS    (commit 15034ff, recipe of one rank)
"""

import faulthandler
import gc
import os
import sys
import threading
import time
import traceback

import torch

from tempo_megatron.config import load_config
from tempo_megatron.loop import conclude, iterate, start
from tempo_megatron.run import Run
from tempo_megatron.supervision.interruption import listening
from tempo_megatron.training import run as run_module


def trained(recipe: str) -> Run:
    config = load_config(recipe)
    with listening():
        run = Run(config, watched=True)
        start(run)
        for iteration in range(1, config.loop.iterations + 1):
            run.begin(iteration)
            metrics = iterate(run)
            run.sync()
            run.course.reached(metrics)
            conclude(run, metrics)
    run.course.saver.wait()
    return run


def looks() -> None:
    """A thread that wakes often, as the watchdog's do; a fork has none of those."""
    while True:
        time.sleep(0.05)
        sys._current_frames()


def end(run: Run) -> None:
    """Export, plots and summary as `Run.finish` had them, then a collection of garbage."""
    faulthandler.enable()
    number = run._occupancy._seen.number
    threading.Thread(target=run._occupancy._touch, args=[number], daemon=True).start()
    threading.Thread(target=looks, daemon=True).start()
    run._leave = run_module.topology.shutdown = lambda: None
    run.finish()
    gc.collect()
    assert (run.directory / "summary.json").is_file() and (run.directory / "plots" / "critic.png").is_file()


def main(recipe: str, ends: str, seconds: str) -> None:
    faulthandler.enable()
    place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    os.environ.update(place, MASTER_ADDR="localhost", MASTER_PORT="29617")
    torch.set_num_threads(1)
    begun, run, codes = time.monotonic(), trained(recipe), []
    modules, threads = len(sys.modules), threading.active_count()
    print(f"ready after {time.monotonic() - begun:.0f} s, {modules} modules, {threads} threads", flush=True)
    while len(codes) < int(ends) and time.monotonic() - begun < float(seconds):
        for path in (run.directory / "summary.json", run.directory / "plots" / "critic.png"):
            path.unlink(missing_ok=True)
        at = time.monotonic()
        child = os.fork()
        if child == 0:
            try:
                end(run)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        taken, load_ = time.monotonic() - at, os.getloadavg()[0]
        print(f"end {len(codes)}: exit {codes[-1]}, {taken:.1f} s, load {load_:.1f}", flush=True)
    print(f"ends {len(codes)}, exits {sorted(set(codes))}, {time.monotonic() - begun:.0f} s", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
