"""Jobs, each a process of its own, on the workers of a Dask cluster.

A job is a dict. A program of this folder that is called with --job does one and prints what it found, as JSON. Its own
process is why it draws the same random numbers whatever runs beside it. A task is a list of jobs for one worker.
"""

import argparse
import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import cloudpickle
import distributed
import psutil

from support import cli
from support.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
THREADS = ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS")  # of TensorFlow, and of PyTorch
# Ctrl-C reaches every process of a terminal; it is for the one that can say how to go on.
IGNORE_CTRL_C = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"


def parse_args(parser, argv):
    """Add the flags of a program that has jobs, parse its command line, and make its output directory; returns args.

    The flags: where the jobs are done, and the hidden one of a job's own process.
    """
    parser.add_argument("--workers", type=cli.number(int, 1), default=1, help="tasks at a time here (default: 1)")
    parser.add_argument("--threads", type=cli.number(int, 1), help="of a job (default: the cores by the workers)")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster, such as tcp://127.0.0.1:8786")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.output_dir = args.output_dir.resolve()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    return args


def answer(job, do_job):
    """In the process of a job, which is JSON: print the rows that do_job(job, threads) returns."""
    threading.Thread(target=end_with, args=[os.getppid()], daemon=True).start()
    print(json.dumps(do_job(json.loads(job), int(os.environ[THREADS[0]]))))


def end_with(process):
    """End this process when another one is gone, the worker that started it."""
    while psutil.pid_exists(process):
        time.sleep(1)
    os._exit(1)


def do_task(module, task, threads, folder):
    """Do the jobs of a task, on a worker; returns their rows. module: of the program. folder: of its output."""
    rows, environment = [], {**os.environ, **dict.fromkeys(THREADS, str(threads))}
    for job in task:
        command = [sys.executable, "-m", module, "--job", json.dumps(job), "--output-dir", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
        if done.returncode:
            why = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
            raise RuntimeError(f"{why}, in {json.dumps(job)}")
        rows += json.loads(done.stdout.splitlines()[-1])
    return rows


def end_jobs(folder):
    """On a worker, end the jobs of the program that writes to a folder."""
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it has ended by itself
            if process.cmdline()[-1] == str(folder):
                process.kill()


def connect(scheduler, workers):
    """Return a Dask client: of the cluster at an address, or of a local one with `workers` workers."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    # A worker need not find this project: what it is to call is sent by value, if it comes as a lambda, which Dask
    # leaves to cloudpickle.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    # Of a local one. A worker does one task at a time; any port is right, for another study may be running.
    local = {"n_workers": workers, "threads_per_worker": 1, "memory_limit": 0, "dashboard_address": "127.0.0.1:0"}
    local |= {"silence_logs": logging.CRITICAL, "preload": IGNORE_CTRL_C}
    try:
        return distributed.Client(scheduler, timeout=5) if scheduler else distributed.Client(**local)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"no Dask scheduler answers at {scheduler} ({error})") from None


def do_tasks(module, tasks, args, record):
    """Do tasks, with the flags of a program, and call record() with the rows of each as it ends.

    On Ctrl-C nothing of them goes on. Raises InputError at the end when tasks failed.
    """
    threads, failed = args.threads or max(1, (os.cpu_count() or 1) // args.workers), 0
    with connect(args.scheduler, args.workers) as client:
        # The keys are Dask's own, of which no two are alike: another study may have jobs like these at the same time.
        futures = {
            client.submit(lambda task: do_task(module, task, threads, args.output_dir), task, pure=False)
            for task in tasks
        }
        try:
            for number, future in enumerate(distributed.as_completed(futures), start=1):
                if future.exception():  # whatever it is, the other tasks go on
                    failed += 1
                    print(f"failed: {' '.join(str(future.exception()).split())[:400]}")
                else:
                    record(future.result())
                print(f"{number} of {len(tasks)} tasks done", flush=True)
        except BaseException:
            client.cancel([*futures], force=True)
            client.run(lambda: end_jobs(args.output_dir))
            raise
    if failed:
        raise InputError(f"{failed} of {len(tasks)} tasks failed, the others are recorded")
