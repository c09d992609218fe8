"""Batches without settings: jobs wait for a free stream, and batches grow under load.

    job.py       the job that travels from the API to the device and back
    costs.py     what a batch costs, measured; which batch size pays
    patience.py  how long clients wait, learned
    backlog.py   the policy: who is admitted, what runs next; no threads, the time is passed in
    queue.py     the threads around it, one per stream
    deferred.py  a queue whose device is loaded when the first job comes
    stream.py    what runs batches, and the cost that it learns
    attempts.py  a batch on a device that may fail
    runner.py    jobs to an engine and rows back

The package knows deadlines and costs, but neither image formats nor torch.
"""

from app.batching.backlog import Backlog, Outlook
from app.batching.costs import CostCurve
from app.batching.deferred import DeferredQueue
from app.batching.job import Completion, Image, Job, Wait, fail, settle
from app.batching.queue import BatchQueue, Prepare, Put, Queue
from app.batching.runner import Runner

__all__ = [
    "Backlog",
    "BatchQueue",
    "Completion",
    "CostCurve",
    "DeferredQueue",
    "Image",
    "Job",
    "Outlook",
    "Prepare",
    "Put",
    "Queue",
    "Runner",
    "Wait",
    "fail",
    "settle",
]
