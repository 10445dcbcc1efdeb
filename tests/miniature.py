"""The study of the second task with few images and few steps: `python -m tests.miniature`, and the flags of runs.py."""

if __name__ in ("__main__", "__mp_main__"):
    import support.quiet  # noqa: F401 - first: it loads Keras without TensorFlow's greeting

import math

from experiments.second_task import runs
from support import cli


def in_miniature(task):
    """A task's runs with few images and few steps."""
    images = {runs.ALL_IMAGES: 640, 1000: 64, 100: 20}[task[0]["images"]]
    steps, *at = (math.ceil(step / 5000) for step in (task[0]["steps"], *task[0]["measured_at"]))
    less = {"images": images, "steps": steps, "measured_at": sorted(set(at)), "share_of_data": (640, 200)}
    return [{**run, **less, "held_out": min(run["held_out"], 100)} for run in task]


def plan():
    """Two seeds of each part."""
    return [in_miniature(task) for task in runs.plan() if task[0]["seed"] % 16 < 2]


if __name__ == "__main__":
    cli.start(lambda: runs.main(planned=plan()))
