"""One workload in a process of its own: ``python -m benchmarks.worker JSON``, JSON on stdout."""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Carry out a request of ``benchmarks.__main__``, which has set the thread counts."""
    import torch

    torch.set_num_threads(1)
    # Peers warn on every batch; what matters of it stands in the table.
    warnings.simplefilter("ignore")
    from benchmarks import measure
    from benchmarks.ours import record
    from benchmarks.workloads import RECIPES, build

    with tempfile.TemporaryDirectory() as directory:
        workload = build(request["workload"], quick=request["quick"])
        if "proponent" in request["names"] and workload.task != "gradient_dot":
            # Where proponent is missing, its row says so.
            with suppress(ImportError, AttributeError):
                workload = record(workload, Path(directory) / "run")
        title = RECIPES[request["workload"]].title
        if request["what"] == "time":
            found = measure.measure_time(
                workload, request["names"], rounds=request["rounds"], limit=request["limit"]
            )
            return {
                "title": title,
                "n": len(workload.train[0]),
                "m": len(workload.test[0]),
                **found,
            }
        name = request["names"][0]
        return {"megabytes": measure.measure_memory(workload, name, request["n"])}


if __name__ == "__main__":
    json.dump(main(json.loads(sys.argv[1])), sys.stdout)
