"""Tasks that a worker process imports by name."""

import os
from pathlib import Path

import numpy as np
import torch
from joblib import register_parallel_backend
from joblib.parallel import ThreadingBackend
from threadpoolctl import threadpool_info


def threads(_):
    pools = {pool["num_threads"] for pool in threadpool_info()}
    return pools | {torch.get_num_threads()}


class Heavy:
    """A function with data, which says where it is unpacked."""

    def __init__(self, log):
        self.log = log
        self.data = np.arange(300_000.0)  # above joblib's limit for memory mapping

    def __setstate__(self, state):
        self.__dict__.update(state)
        with Path(self.log).open("a") as file:
            file.write(f"{os.getpid()}\n")

    def __call__(self, task):
        return float(self.data[task]), self.data.flags.writeable


class CountingBackend(ThreadingBackend):
    """A backend of the user's own: threads that are counted."""

    submitted = 0

    def submit(self, func, callback=None):
        CountingBackend.submitted += 1
        return super().submit(func, callback)


register_parallel_backend("counting", CountingBackend)
