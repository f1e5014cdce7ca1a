"""What a diagnosis says, of invented numbers."""

from dataclasses import replace

import numpy as np
import pytest

from proponent.evaluation.diagnosis import Diagnosis, Optimisation
from proponent.evaluation.gaps import GAPS, RESPONSES
from proponent.evaluation.remedies import remedies


def diagnosis(**changes) -> Diagnosis:
    """A diagnosis of invented numbers: 2 test instances, 4 training instances."""
    base = np.array([[1.0, -2.0, 3.0, 2.0], [0.5, 0.5, -1.0, -2.0]])
    settings = {
        "retrained": np.stack([base + 0.9, base + 1.1]),
        "warm": base + 0.2,
        "proximal": base + 0.1,
        "pbrf": base,
        "linear": 0.8 * base,
        "estimate": 0.7 * base,
        "retrained_drift": np.array([[0.9, 0.9], [1.1, 1.1]]),
        "warm_drift": np.full(2, 0.2),
        "proximal_drift": np.full(2, 0.1),
        "train_ids": np.array(["a", "b", "c", "d"]),
        "test_ids": np.array([10, 11]),
        "method": "SomeIF",
        "optimisations": tuple(
            Optimisation(name, None, 5, 1e-5, "converged") for name in ("warm", "proximal", "pbrf")
        ),
        "residual": 1e-11,
        "remedies": {gap: f"Mend the {gap}." for gap in GAPS},
        "resolution": 1e-16,
        "confidence": 0.95,
    }
    return Diagnosis(**{**settings, **changes})


def leave_out(found: Diagnosis, columns: list[int]) -> Diagnosis:
    """The diagnosis without some of its training instances."""
    kept = np.delete(np.arange(4), columns)
    return replace(
        found, train_ids=found.train_ids[kept], retrained=found.retrained[:, :, kept],
        **{name: found.responses[name][:, kept] for name in RESPONSES[1:]},
    )  # fmt: skip


def test_sizes_intervals_and_correlations() -> None:
    found = diagnosis()
    expected = dict(zip(GAPS, [0.8, 0.1, 0.1, 0.3, 0.15], strict=True))
    for gap, size in expected.items():
        assert found.sizes[gap].value == pytest.approx(size), gap
    # Means of four draws from the instances' own sizes, 0.075, 0.125, 0.2 and 0.2.
    size = found.sizes["solver"]
    draws = np.array(np.meshgrid(*4 * [[0.075, 0.125, 0.2, 0.2]])).reshape(4, -1).mean(0)
    low, high = np.quantile(draws, [0.025, 0.975])
    assert size.low == pytest.approx(low, abs=0.007) and size.high == pytest.approx(high)
    beyond = found.sizes_beyond_drift
    assert beyond["warm_start"].value == pytest.approx(0.0, abs=1e-12)
    assert beyond["solver"] == size
    assert found.correlations["cold"].value == pytest.approx(1.0)
    noisy = replace(found, warm=np.array([[1.0, 0.0, 3.0, 0.5], [0.5, -0.5, -1.0, 1.0]]))
    rows = zip(noisy.warm, noisy.estimate, strict=True)
    pearson = np.mean([np.corrcoef(*pair)[0, 1] for pair in rows])
    assert noisy.correlations["warm"].value == pytest.approx(pearson)
    assert noisy.correlations["warm"].low < pearson < noisy.correlations["warm"].high
    assert np.isnan(leave_out(found, [3]).correlations["warm"].value)  # three are too few


def test_noise_of_retraining_is_told_apart() -> None:
    found = diagnosis()
    # Seeds differ by 0.2: a standard deviation of 0.2 / sqrt(2), of the mean of two 0.1.
    assert found.retraining_noise == pytest.approx(0.1 * np.sqrt(2 / np.pi))
    assert found.retraining_noise_beyond_drift == pytest.approx(0.0, abs=1e-12)
    assert "mean of 2 seeds, whose noise alone would make a warm-start gap of 0.08" in str(found)
    single = diagnosis(retrained=found.retrained[:1], retrained_drift=found.retrained_drift[:1])
    assert np.isnan(single.retraining_noise) and "one seed" in str(single)


def test_cold_retraining_not_measured_is_said_and_never_zero() -> None:
    found = diagnosis(retrained=np.empty((0, 2, 4)), retrained_drift=np.empty((0, 2)))
    assert np.isnan(found.cold).all() and np.isnan(found.gaps["warm_start"]).all()
    assert np.isnan(found.sizes["warm_start"].value)
    assert np.isnan(found.correlations["cold"].value)
    assert found.largest == "linearisation"
    lines = str(found).splitlines()
    assert lines[2].split("  ")[0] == "cold retraining" and lines[2].count("not measured") == 3
    assert "the warm-start gap: not measured" in str(found)


def test_advice() -> None:
    assert diagnosis().advice == (
        "The largest gap is warm start: 0.8, where the linear response is 1.2; most of it is there "
        "although nothing is left out. Mend the warm_start. Beyond this drift the largest gap is "
        "linearisation: 0.3. Mend the linearisation."
    )
    still = diagnosis(retrained_drift=np.zeros((2, 2)))
    assert still.advice == (
        "The largest gap is warm start: 0.8, where the linear response is 1.2. Mend the warm_start."
    )
    noisy = diagnosis(retrained=np.stack([diagnosis().warm - 2, diagnosis().warm + 3]))
    assert "the noise between the seeds alone could make most of it" in noisy.advice
    base = diagnosis().pbrf
    same = dict.fromkeys(("warm", "proximal", "pbrf", "linear", "estimate"), base)
    none = {"warm_drift": np.zeros(2), "proximal_drift": np.zeros(2)}
    small = diagnosis(**{**same, **none, "estimate": 0.99 * base, "retrained": base[None]})
    assert small.largest == "solver"
    assert small.advice.endswith("No gap that was measured needs a remedy.")


def test_what_the_optimiser_left_undone_is_said() -> None:
    runs = (
        Optimisation("warm", "a", 500, 0.3, "iterations"),
        Optimisation("warm", None, 80, 0.1, "stalled"),
        Optimisation("proximal", "a", 9, 1e-5, "converged"),
        Optimisation("pbrf", "a", 4, 2e-5, "converged"),
    )
    text = str(diagnosis(optimisations=runs, resolution=0.5))
    assert (
        "warm retraining 0.3 (2 of 2 ended early, iterations or stalled: without a, nothing)"
        in text
    )
    assert "proximal retraining 1e-05, PBRF 2e-05; residual of the linear response: 1e-11" in text
    assert "rounded to about 0.5" in text and "dtype='float64'" in text
    assert "rounded" not in str(diagnosis())


def test_data_frames_and_html() -> None:
    found = diagnosis()
    frame = found.to_dataframe()
    assert list(frame.columns) == [*RESPONSES, *(f"{gap}_gap" for gap in GAPS)]
    row = frame.loc[(11, "c")]
    assert row["pbrf"] == -1.0 and row["solver_gap"] == pytest.approx(-0.1)
    table = found.table()
    assert table.loc["warm_start", "size"] == pytest.approx(0.8)
    assert table.loc["solver", "size_high"] == found.sizes["solver"].high
    assert table.loc["warm_start", "beyond_drift"] == pytest.approx(0.0, abs=1e-12)
    html = found._repr_html_()
    assert "<td>non-convergence</td>" in html and "Mend the warm_start." in html


def test_one_instance_has_no_interval() -> None:
    one = leave_out(diagnosis(), [1, 2, 3])
    assert np.isnan(one.sizes["solver"].low) and one.sizes["solver"].value == pytest.approx(0.075)
    assert np.isnan(one.correlations["pbrf"].value) and "undefined" in str(one)


def test_responses_that_do_not_exist_are_not_measured() -> None:
    found = diagnosis()
    pbrf = found.pbrf.copy()
    pbrf[:, 1] = np.nan
    runs = (
        *found.optimisations,
        Optimisation("pbrf", "b", 12, 1e9, "unbounded"),
    )
    found = replace(found, pbrf=pbrf, optimisations=runs)
    assert found.sizes["linearisation"].value == pytest.approx(0.2 * (1.5 + 4 + 4) / 6)
    assert "PBRF does not exist without b: its objective falls without end" in str(found)
    assert "PBRF 1e-05;" in str(found)  # of those that exist


def test_remedies_follow_what_the_estimate_noticed() -> None:
    noticed = {
        "solver": "LiSSA", "curvature": "Gauss-Newton matrix", "damping": {"0": 0.1, "2": 0.02},
        "relative_objective_gradient": 0.3, "largest_residual": 0.2,
    }  # fmt: skip

    def of(gap: str, **changes) -> str:
        return remedies("SomeIF", 100, noticed | changes)[gap]

    assert set(remedies("SomeIF", 100, noticed)) == set(GAPS)
    assert "(0.02 to 0.1, by layer)" in of("proximity")
    assert "(0.5)" in of("proximity", damping=0.5)
    assert "Train on" in of("non_convergence") and "0.3 of an instance" in of("non_convergence")
    # A hundredth of an instance's gradient is what leaving one of 100 out adds.
    assert "Train on" in of("non_convergence", relative_objective_gradient=0.011)
    stationary = of("non_convergence", relative_objective_gradient=0.009)
    assert "Train on" not in stationary and "curvature='hessian'" in stationary
    assert "(LiSSA) stops short" in of("solver")
    assert "what SomeIF adds" in of("solver", largest_residual=1e-7)
    assert "make up for the non-convergence gap" in of("solver", curvature="Hessian")
    assert "(ekfac)" in of("solver", curvature="ekfac")
