"""Peers of the static methods, each used as its documentation says; imported when called."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.workloads import criterion

DAMPING = 0.5


def _analyzer(bench: Any) -> Any:
    """Return kronfluence's analyzer of a copy of the module, which it wraps and freezes."""
    if "analyzer" not in vars(bench):
        from kronfluence.analyzer import Analyzer, prepare_model
        from kronfluence.task import Task

        class Classification(Task):
            def compute_train_loss(self, batch: Any, model: Any, sample: bool = False) -> Tensor:
                inputs, targets = batch
                logits = model(inputs)
                if sample:
                    with torch.no_grad():
                        rows = torch.softmax(logits.detach().flatten(0, -2), -1)
                        targets = torch.multinomial(rows, 1).view(targets.shape)
                return criterion(logits, targets).sum()

            def get_influence_tracked_modules(self) -> list[str] | None:
                tracked = [
                    name
                    for name, layer in bench.workload.module.named_modules()
                    if isinstance(layer, nn.Linear) and f"{name}.weight" in bench.model.selected
                ]
                return tracked

            def compute_measurement(self, batch: Any, model: Any) -> Tensor:
                return self.compute_train_loss(batch, model)

        task = Classification()
        module = prepare_model(bench.workload.fresh().module, task)
        bench.analyzer = Analyzer(
            "kronfluence", module, task, cpu=True, disable_tqdm=True, output_dir="kronfluence"
        )
    return bench.analyzer


def kronfluence_covariances(bench: Any) -> None:
    _analyzer(bench).fit_covariance_matrices(
        "factors",
        TensorDataset(*bench.workload.train),
        per_device_batch_size=100,
        overwrite_output_dir=True,
    )


def kronfluence_eigenvectors(bench: Any) -> None:
    kronfluence_covariances(bench)
    _analyzer(bench).perform_eigendecomposition("factors", overwrite_output_dir=True)


def kronfluence_correction(bench: Any) -> None:
    _analyzer(bench).fit_lambda_matrices(
        "factors",
        TensorDataset(*bench.workload.train),
        per_device_batch_size=100,
        overwrite_output_dir=True,
    )
    bench.corrected = True


def kronfluence_factors(bench: Any) -> None:
    if "corrected" not in vars(bench):
        kronfluence_eigenvectors(bench)
        kronfluence_correction(bench)


def kronfluence_scores(bench: Any) -> None:
    _analyzer(bench).compute_pairwise_scores(
        "scores",
        "factors",
        TensorDataset(*bench.workload.test),
        TensorDataset(*bench.workload.train),
        per_device_query_batch_size=len(bench.workload.test[0]),
        per_device_train_batch_size=100,
        overwrite_output_dir=True,
    )


def dattri_cg(bench: Any) -> Tensor:
    """Score by dattri's conjugate gradients, all instances in one batch: otherwise it is wrong."""
    from dattri.algorithm.influence_function import IFAttributorCG
    from dattri.task import AttributionTask

    module = bench.workload.module

    def loss(parameters: Any, data: Any) -> Tensor:
        inputs, targets = data
        return functional.cross_entropy(functional_call(module, parameters, (inputs,)), targets)

    attributor = IFAttributorCG(
        AttributionTask(loss, module, [module.state_dict()]), max_iter=10, regularization=DAMPING
    )
    train = DataLoader(TensorDataset(*bench.workload.train), len(bench.workload.train[0]))
    attributor.cache(train)
    return attributor.attribute(train, DataLoader(TensorDataset(*bench.workload.test), 20)).T


class _SummedLoss(nn.Module):
    reduction = "sum"

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(output, target, reduction="sum")


def captum_arnoldi(bench: Any) -> Tensor:
    """Score by captum's Arnoldi influence functions; its Hessian is a sum over the instances."""
    from captum.influence._core.arnoldi_influence_function import ArnoldiInfluenceFunction

    n = len(bench.workload.train[0])
    arnoldi = ArnoldiInfluenceFunction(
        bench.workload.fresh().module,
        DataLoader(TensorDataset(*bench.workload.train), 250),
        checkpoint=None,
        checkpoints_load_func=lambda module, checkpoint: 1.0,
        loss_fn=_SummedLoss(),
        sample_wise_grads_per_batch=True,
        arnoldi_dim=50,
        projection_dim=20,
        hessian_reg=DAMPING * n,
    )
    return arnoldi.influence(DataLoader(TensorDataset(*bench.workload.test), 20)).detach()


def trak(k: int) -> Any:
    """Return a run of TRAK: project the training set, then score the test set."""

    def work(bench: Any) -> Tensor:
        from trak import TRAKer

        train, test = bench.workload.train, bench.workload.test
        with tempfile.TemporaryDirectory() as folder:
            traker = TRAKer(
                bench.workload.fresh().module,
                task="image_classification",
                train_set_size=len(train[0]),
                save_dir=folder,
                device="cpu",
                proj_dim=k,
                use_half_precision=False,
                logging_level="ERROR",
            )
            traker.load_checkpoint(bench.workload.module.state_dict(), model_id=0)
            for batch in DataLoader(TensorDataset(*train), 250):
                traker.featurize(list(batch), num_samples=len(batch[0]))
            traker.finalize_features()
            traker.start_scoring_checkpoint(
                "scores", bench.workload.module.state_dict(), 0, num_targets=len(test[0])
            )
            for batch in DataLoader(TensorDataset(*test), 250):
                traker.score(list(batch), num_samples=len(batch[0]))
            return torch.as_tensor(traker.finalize_scores("scores").T.copy())

    return work
