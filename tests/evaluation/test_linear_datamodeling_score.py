"""The linear datamodeling score on outputs whose answer is known."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from proponent.evaluation import linear_datamodeling_score, random_subsets
from proponent.evaluation.datamodeling import noise_ceiling
from proponent.exceptions import InvalidInputError, NonFiniteError
from proponent.influence import Influence


def additive_world(rng, n_test=6, n_train=40, m=60, noise=0.0):
    """Risks that fall by exactly the influence of every instance in the subset."""
    influence = rng.normal(size=(n_test, n_train))
    subsets = random_subsets(n_train, m, seed=1)
    risks = 5.0 - subsets @ influence.T
    return influence, subsets, risks + noise * rng.normal(size=risks.shape)


def test_exactly_additive_outputs_score_one(rng):
    influence, subsets, risks = additive_world(rng)
    assert float(linear_datamodeling_score(influence, subsets, risks=risks)) == pytest.approx(1.0)
    margins = linear_datamodeling_score(influence, subsets, margins=-np.exp(risks))
    assert margins.score.value == pytest.approx(1.0)


def test_sign_is_that_of_the_library(rng):
    """dattri negates its target; here positive influence has to lower the risk."""
    influence, subsets, risks = additive_world(rng)
    assert float(linear_datamodeling_score(-influence, subsets, risks=risks)) == pytest.approx(-1)
    assert float(linear_datamodeling_score(influence, subsets, margins=risks)) == pytest.approx(-1)


def test_equals_a_plain_loop_with_ties(rng):
    influence, subsets, risks = additive_world(rng, noise=4.0)
    influence, risks = np.round(influence), np.round(risks / 3)
    result = linear_datamodeling_score(influence, subsets, risks=risks)
    expected = []
    for test, row in enumerate(influence):
        sums = [sum(row[i] for i in np.flatnonzero(subset)) for subset in subsets]
        expected.append(spearmanr(sums, -risks[:, test]).statistic)
    np.testing.assert_allclose(result.per_test, expected, atol=1e-12)
    assert result.score.value == pytest.approx(np.mean(expected), abs=1e-12)


def test_position_lists_of_any_length_are_subsets(rng):
    influence, subsets, risks = additive_world(rng, noise=3.0)
    lists = [rng.permutation(np.flatnonzero(subset)).tolist() for subset in subsets]
    by_mask = linear_datamodeling_score(influence, subsets, risks=risks)
    assert linear_datamodeling_score(influence, lists, risks=risks).score == by_mask.score
    ragged = [[0], [1, 2], [0, 1, 2, 3]]
    sums = np.array([influence[:, s].sum(axis=1) for s in ragged])
    assert float(linear_datamodeling_score(influence, ragged, margins=sums)) == pytest.approx(1.0)


def test_scale_does_not_matter(rng):
    influence, subsets, risks = additive_world(rng, noise=3.0)
    expected = linear_datamodeling_score(influence, subsets, risks=risks).score
    tiny = linear_datamodeling_score(influence * 2.0**-500, subsets, risks=risks).score
    assert tiny == expected


def test_constant_rows_are_left_out_and_named(rng):
    influence, subsets, risks = additive_world(rng, noise=3.0)
    expected = linear_datamodeling_score(influence, subsets, risks=risks).per_test
    # Sums of 0.1 over equally many instances differ in their last bits, which must not rank them.
    influence[1] = 0.1
    risks[:, 4] = 0.7
    labelled = Influence(influence, test_ids=list("abcdef"))
    result = linear_datamodeling_score(labelled, subsets, risks=risks)
    assert list(result.undefined) == ["b", "e"]
    np.testing.assert_array_equal(np.isnan(result.per_test), [0, 1, 0, 0, 1, 0])
    assert result.score.value == pytest.approx(expected[[0, 2, 3, 5]].mean())
    assert "2 test instances (b, e)" in repr(result)
    with pytest.raises(InvalidInputError, match="No correlation is defined"):
        linear_datamodeling_score(np.zeros((6, 40)), subsets, risks=risks)


@pytest.mark.parametrize(("common", "private"), [(0.0, 2.0), (3.0, 1.0), (30.0, 0.0), (0.0, 1e6)])
def test_interval_is_as_wide_as_fresh_subsets_and_tests_scatter(rng, common, private):
    scores, widths = [], []
    for repeat in range(80):
        influence = rng.normal(size=(15, 30))
        subsets = random_subsets(30, 40, seed=repeat)
        noise = common * rng.normal(size=(40, 1)) + private * rng.normal(size=(40, 15))
        score = linear_datamodeling_score(
            influence, subsets, risks=noise - subsets @ influence.T
        ).score
        scores.append(score.value)
        widths.append((score.high - score.low) / (2 * 1.96))
    assert np.mean(widths) == pytest.approx(np.std(scores), rel=0.25)


def test_interval_near_one_holds_its_own_score(rng):
    """Repeated subsets are ties, so a percentile bootstrap misses the score itself here."""
    influence, subsets, risks = additive_world(rng, n_test=30, m=80, noise=0.4)
    score = linear_datamodeling_score(influence, subsets, risks=risks).score
    assert 0.98 < score.low < score.value < score.high < 1.0
    assert score.high - score.low < 0.01


def test_interval_with_the_fewest_subsets_and_one_test(rng):
    influence, subsets, risks = additive_world(rng, n_test=1, m=25, noise=4.0)
    single = linear_datamodeling_score(influence, subsets, risks=risks).score
    assert -1 < single.low < single.value < single.high < 1
    few = linear_datamodeling_score(np.eye(3), [[0], [1], [2]], risks=rng.normal(size=(3, 3)))
    assert few.per_test.shape == (3,)


def test_interval_of_random_scores_holds_zero(rng):
    _, subsets, risks = additive_world(rng, n_test=40, m=100)
    result = linear_datamodeling_score(rng.normal(size=(40, 40)), subsets, risks=risks)
    assert result.score.low < 0 < result.score.high
    assert abs(result.score.value) < 0.1


@pytest.mark.parametrize("n_repeats", [2, 3, 6])
def test_noise_ceiling_is_what_the_truth_scores(rng, n_repeats):
    truth = rng.normal(size=(400, 60))
    noise = np.linspace(0.3, 3.0, 60)
    outputs = truth[:, None] + noise * rng.normal(size=(400, n_repeats, 60))
    averaged = outputs.mean(axis=1)
    reached = [spearmanr(truth[:, t], averaged[:, t]).statistic for t in range(60)]
    assert noise_ceiling(outputs) == pytest.approx(np.mean(reached), abs=0.02)


def test_noise_ceiling_of_pure_noise_is_zero_and_of_none_is_one(rng):
    assert noise_ceiling(rng.normal(size=(200, 4, 400))) == pytest.approx(0.0, abs=0.05)
    certain = np.repeat(rng.normal(size=(50, 1, 3)), 5, axis=1)
    assert noise_ceiling(certain) == pytest.approx(1.0)


def test_repeated_trainings_are_averaged_and_give_the_ceiling(rng):
    influence, subsets, risks = additive_world(rng)
    repeated = risks[:, None] + 6.0 * rng.normal(size=(60, 4, 6))
    result = linear_datamodeling_score(influence, subsets, risks=repeated)
    averaged = linear_datamodeling_score(influence, subsets, risks=repeated.mean(axis=1))
    np.testing.assert_allclose(result.per_test, averaged.per_test)
    assert (result.n_subsets, result.n_repeats) == (60, 4)
    assert result.noise_ceiling == pytest.approx(noise_ceiling(repeated))
    assert averaged.noise_ceiling is None
    assert f"{result.noise_ceiling:.3f}" in repr(result)
    assert "not known" in repr(averaged)
    assert "<table>" in result._repr_html_()


def bad_cases():
    rng = np.random.default_rng(0)
    influence, subsets, risks = additive_world(rng)
    yield {"risks": None}, "either as risks="
    yield {"margins": risks}, "either as risks="
    yield {"subsets": subsets[:2], "risks": risks[:2]}, "2 subsets"
    yield {"risks": risks.T}, r"got \(6, 60\)"
    yield {"risks": risks[:, 0]}, "2-D or 3-D"
    yield {"subsets": subsets[:, :-1]}, "39 entries for 40"
    yield {"subsets": subsets.astype(int)}, "astype\\(bool\\)"
    yield {"subsets": [[0], [40], [1]], "risks": risks[:3]}, r"subsets\[1\].*40"
    yield {"subsets": [[0], [-1], [1]], "risks": risks[:3]}, r"subsets\[1\]"
    yield {"subsets": [[0], [], [1]], "risks": risks[:3]}, r"subsets\[1\].*at least one"
    yield {"subsets": []}, "subsets is empty"
    yield {"influence": influence[0]}, "2-D"
    yield {"influence": influence[:, :0]}, "empty"
    yield {"confidence": 95}, "confidence"


@pytest.mark.parametrize(("arguments", "message"), list(bad_cases()))
def test_unusable_arguments_are_refused(rng, arguments, message):
    influence, subsets, risks = additive_world(rng)
    usable = {"influence": influence, "subsets": subsets, "risks": risks}
    with pytest.raises(InvalidInputError, match=message):
        linear_datamodeling_score(**(usable | arguments))


def test_values_that_are_not_finite_are_named(rng):
    influence, subsets, risks = additive_world(rng)
    holed = influence.copy()
    holed[2, 7] = np.nan
    with pytest.raises(NonFiniteError, match="instance 7 "):
        linear_datamodeling_score(holed, subsets, risks=risks)
    risks[3, 5] = np.inf
    with pytest.raises(NonFiniteError, match="instance 5 "):
        linear_datamodeling_score(influence, subsets, risks=risks)
