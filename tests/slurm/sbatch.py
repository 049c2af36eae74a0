"""A stand-in for sbatch that runs what it is given at once: array tasks one after another, then what depends on them.

Its first array task is sent SIGTERM as soon as something was committed, as Slurm does before a time limit, and runs
again when it has put itself back into the queue. Everything is noted in the file CALLS.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def note(text):
    with open(os.environ["CALLS"], "a") as file:
        file.write(text + "\n")


def run(task, script, terminate):
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_JOB_ID": "7", "SLURM_JOB_ID": "8"}
    process = subprocess.Popen(["bash", script], env=environment, start_new_session=True, stdout=sys.stderr)
    while terminate and process.poll() is None:
        if list(Path(os.environ["DPS_OUTPUT"]).glob("seed-*/shard-*/segment-*.h5")):
            process.send_signal(signal.SIGTERM)  # to the batch script alone: --signal=B
            break
        time.sleep(0.02)
    code = process.wait()
    note(f"task {task}: exit code {code}")
    return code


def main():
    options = [word for word in sys.argv[1:] if word.startswith("--")]
    values = dict(option.removeprefix("--").split("=", 1) for option in options if "=" in option)
    note("sbatch " + " ".join(sorted(options)))
    if "--wrap" in sys.argv:
        subprocess.run(["sh", "-c", sys.argv[sys.argv.index("--wrap") + 1]], check=True, stdout=sys.stderr)
        print("9;cluster")
        return
    first, last = map(int, values["array"].split("-"))
    for task in range(first, last + 1):
        code = run(task, sys.argv[-1], terminate=task == first)
        if code == 143:  # it asked scontrol for another turn
            code = run(task, sys.argv[-1], terminate=False)
        if code:
            sys.exit(code)
    print("7;cluster")


main()
