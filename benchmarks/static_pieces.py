"""What ``benchmarks.static`` times: this library's pieces and its peers'."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import modules, static_peers
from benchmarks.static import Piece
from benchmarks.workloads import Recipe, Workload, _images, _sequences, _train, _vectors

DAMPING = 0.5
OURS = "**proponent**"


class Bench:
    """A trained module, its data, and what pieces have in common."""

    def __init__(self, recipe: Recipe, parameters: Any = "all") -> None:
        self._parameters = parameters
        torch.manual_seed(0)
        self.title = recipe.title
        module = recipe.module()
        train, test = recipe.data(recipe.n, recipe.m)
        states = _train(module, train, recipe)
        self.workload = Workload(
            recipe.title, recipe.task, module.eval(), states, (1.0,), train, test
        )

    @cached_property
    def model(self) -> Any:
        import proponent as pp

        return pp.TorchModel(
            self.workload.module, loss="cross_entropy", parameters=self._parameters
        )

    def warm_up(self) -> None:
        """Load the libraries and run the module, so that a piece's memory is its own."""
        import proponent as pp

        head = tuple(part[:20] for part in self.workload.train)
        pp.GradientDot().fit(self.model, head).influence(head)

    # EK-FAC

    @cached_property
    def gradients(self) -> Any:
        from proponent.gradients.kfac import FisherGradients

        return FisherGradients(self.model, self.workload.train)

    @cached_property
    def basis(self) -> Any:
        from proponent.gradients.kfac import KroneckerFactors

        return KroneckerFactors.from_covariances(self.model, covariances(self))

    @cached_property
    def factors(self) -> Any:
        return self.basis.corrected(correction(self))

    @cached_property
    def fitted(self) -> Any:
        import proponent as pp

        return pp.InfluenceFunctions(self.factors).fit(self.model, self.workload.train)

    # Solvers

    def exact(self, curvature: str) -> Tensor:
        """Return influence scores by conjugate gradients to 1e-9, in float32's reach."""
        if curvature not in self._exact:
            from proponent.gradients.solvers.conjugate_gradients import ConjugateGradients

            solver = ConjugateGradients(tolerance=1e-6, max_iterations=1000)
            self._exact[curvature] = influence(self, solver, curvature)[0]
        return self._exact[curvature]

    @cached_property
    def _exact(self) -> dict[str, Tensor]:
        return {}


def covariances(bench: Bench) -> Any:
    from proponent.gradients.kfac import covariance_pass

    return covariance_pass(bench.gradients, *bench.gradients.layers())


def correction(bench: Bench) -> Any:
    from proponent.gradients.kfac import eigenvalue_pass

    return eigenvalue_pass(bench.gradients, bench.basis.blocks)


def whole_fit(bench: Bench) -> Any:
    import proponent as pp

    return pp.InfluenceFunctions("ekfac").fit(bench.model, bench.workload.train)


def ekfac_scores(bench: Bench) -> Any:
    return bench.fitted.influence(bench.workload.test)


def ekfac_low_rank(bench: Bench) -> Any:
    bench.fitted.query_rank = 16
    try:
        return bench.fitted.influence(bench.workload.test)
    finally:
        bench.fitted.query_rank = None


def ekfac_memorization(bench: Bench) -> Any:
    return bench.fitted.memorization()


def influence(bench: Bench, solver: Any, curvature: str) -> tuple[Tensor, dict[str, Any]]:
    import proponent as pp

    method = pp.InfluenceFunctions(solver, curvature=curvature, damping=DAMPING)
    answer = method.fit(bench.model, bench.workload.train).influence(bench.workload.test)
    return torch.as_tensor(answer.values.copy()), dict(answer.diagnostics)


def by_cg(curvature: str) -> Callable[[Bench], Any]:
    return lambda bench: influence(bench, "cg", curvature)


def by_arnoldi(curvature: str) -> Callable[[Bench], Any]:
    def work(bench: Bench) -> Any:
        from proponent.gradients.solvers.arnoldi import Arnoldi

        return influence(bench, Arnoldi(iterations=50, rank=20), curvature)

    return work


def trak(k: int) -> Callable[[Bench], Any]:
    def work(bench: Bench) -> Any:
        import proponent as pp

        method = pp.TRAK(projection_dim=k).fit(bench.model, bench.workload.train)
        return torch.as_tensor(method.influence(bench.workload.test).values.copy())

    return work


def projection(k: int) -> Callable[[Bench], Any]:
    """Project the gradients of the training set; the capture and the random numbers included."""

    def work(bench: Bench) -> Any:
        from proponent.data import Instances
        from proponent.gradients.capture import GradientCapture
        from proponent.gradients.khatri_rao import KhatriRaoProjection
        from proponent.gradients.layer_maps import layers_of

        train = Instances.of(bench.workload.train)
        capture = GradientCapture(bench.model, train)
        project = KhatriRaoProjection(layers_of(capture, train), k, 0, 2**29)
        rows = []
        with bench.model.evaluating():
            for start in range(0, len(train), capture.batch_size):
                where = slice(start, min(start + capture.batch_size, len(train)))
                batch = bench.model.prepare(train.batch(where))
                n = where.stop - where.start
                rows.append(project(capture(batch, train.ids[where]), n))
        return torch.cat(rows)

    return work


def retained(bench: Bench, projected: Tensor) -> str:
    """Say how inner products of projected gradients agree with the exact ones."""
    import proponent as pp

    train = bench.workload.train
    if "gram" not in vars(bench):
        influence = pp.GradientDot().fit(bench.model, train).influence(train)
        bench.gram = torch.as_tensor(influence.values.copy())
    apart = ~torch.eye(len(projected), dtype=torch.bool)
    pair = torch.stack([bench.gram[apart], (projected @ projected.T)[apart]])
    return f"inner products: correlation {torch.corrcoef(pair)[0, 1]:.3f}"


def representers(bench: Bench) -> Any:
    import proponent as pp

    method = pp.RepresenterPoint().fit(bench.model, bench.workload.train)
    return method.influence(bench.workload.test)


def certified(bench: Bench, influence: Any) -> str:
    bound = influence.diagnostics["decomposition_error_bound"]
    return f"decomposition error at most {bound:.0e}"


def one_forward_pass(bench: Bench) -> Any:
    with torch.no_grad():
        for inputs, _ in bench.workload.batches(len(bench.workload.train[0])):
            bench.workload.module(inputs)


def correlation(curvature: str) -> Callable[[Bench, Any], str]:
    """Say how the scores agree with the exact ones, and what residual was reported."""

    def near(bench: Bench, result: Any) -> str:
        scores, diagnostics = result if isinstance(result, tuple) else (result, {})
        exact = bench.exact(curvature)[:, : scores.shape[1]]
        found = torch.corrcoef(torch.stack([exact.flatten(), scores.flatten().to(exact)]))[0, 1]
        text = f"correlation {found:.4f}"
        if "largest_residual" in diagnostics:
            text += f", largest residual {diagnostics['largest_residual']:.1e}"
        return text

    return near


MLP = Recipe("EK-FAC: MLP 784-512-256-10", modules.mlp, _vectors, n=5000, m=50, steps=20)
GPT = Recipe(
    "EK-FAC: GPT (4 layers, d=128, length 64, vocabulary 1000)", modules.GPT, _sequences,
    n=500, m=10,
)  # fmt: skip
SMALL = Recipe(
    f"Influence functions: MLP 784-64-10, damping {DAMPING}",
    lambda: nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10)),
    _vectors, n=1000, m=20, steps=20,
)  # fmt: skip


PROJECTED = Recipe(
    "Projected gradients: MLP 784-512-256-10", modules.mlp, _vectors, n=750, m=50, steps=20
)
HEAD = Recipe(
    "Representer points: CNN (3 conv + fc, 32x32)", modules.cnn, _images, n=1000, m=20, steps=20
)


def _ekfac_pieces(bars: tuple[str, str, str]) -> list[Piece]:
    return [
        Piece(f"{OURS}: covariances", covariances, bars[0], prepare=lambda b: b.gradients),
        Piece(f"{OURS}: eigenvalue correction", correction, bars[1], prepare=lambda b: b.basis),
        Piece(f"{OURS}: scores", ekfac_scores, bars[2], prepare=lambda b: b.fitted),
        Piece(f"{OURS}: whole fit", whole_fit),
        Piece(f"{OURS}: scores, queries of rank 16", ekfac_low_rank, prepare=lambda b: b.fitted),
        Piece(f"{OURS}: memorization", ekfac_memorization, prepare=lambda b: b.fitted),
        Piece("kronfluence: covariances", static_peers.kronfluence_covariances, rounds=1),
        Piece(
            "kronfluence: eigenvalue correction", static_peers.kronfluence_correction, rounds=1,
            prepare=static_peers.kronfluence_eigenvectors,
        ),
        Piece(
            "kronfluence: scores", static_peers.kronfluence_scores, rounds=1,
            prepare=static_peers.kronfluence_factors,
        ),
    ]  # fmt: skip


BENCHES: dict[str, tuple[Callable[[], Bench], list[Piece]]] = {
    "ekfac-mlp": (lambda: Bench(MLP), _ekfac_pieces(("1.7", "2.1", "25, under 500 MB"))),
    # kronfluence takes linear layers alone, and its vocabulary head is left out as is usual.
    "ekfac-gpt": (
        lambda: Bench(GPT, ["blocks.*.attention.*", "blocks.*.mlp.*"]),
        _ekfac_pieces(("1.4", "1.7", "1.15")),
    ),
    "solvers": (
        lambda: Bench(SMALL),
        [
            Piece(
                f"{OURS}: CG, Hessian, residual 1e-6", by_cg("hessian"), "100",
                correlation("hessian"),
            ),
            Piece(f"{OURS}: CG, GGN, residual 1e-6", by_cg("ggn"), "100", correlation("ggn")),
            Piece(
                f"{OURS}: Arnoldi rank 20 of 50, Hessian", by_arnoldi("hessian"),
                "120 at .98", correlation("hessian"),
            ),
            Piece(
                f"{OURS}: Arnoldi rank 20 of 50, GGN", by_arnoldi("ggn"), "120 at .98",
                correlation("ggn"),
            ),
            Piece(
                "dattri: CG, 10 iterations", static_peers.dattri_cg, near=correlation("hessian"),
                rounds=1,
            ),
            Piece(
                "captum: Arnoldi rank 20 of 50", static_peers.captum_arnoldi,
                near=correlation("hessian"), rounds=1,
            ),
        ],
    ),
    "projection": (
        lambda: Bench(PROJECTED),
        [
            Piece(f"{OURS}: projection to 512", projection(512), "2", retained),
            Piece(f"{OURS}: projection to 2048", projection(2048), "3", retained),
            Piece(f"{OURS}: TRAK to 512, fit and scores", trak(512)),
            Piece(f"{OURS}: TRAK to 2048, fit and scores", trak(2048)),
            Piece("TRAK: to 512", static_peers.trak(512), rounds=1),
            Piece("TRAK: to 2048", static_peers.trak(2048), rounds=1),
        ],
    ),
    "representers": (
        lambda: Bench(HEAD),
        [
            Piece("one forward pass", one_forward_pass),
            Piece(f"{OURS}: fit and scores", representers, "a forward pass", certified),
        ],
    ),
}  # fmt: skip
