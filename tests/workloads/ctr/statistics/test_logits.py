"""Against published fits and statsmodels 0.15."""

import numpy as np
import pytest

from serve_app.workloads.ctr.statistics.logits import fit_logits, moment_variance

# Bliss (1935), beetles killed by carbon disulphide; Dobson & Barnett, "An introduction to generalized linear models".
DOSE = np.array([1.6907, 1.7242, 1.7552, 1.7842, 1.8113, 1.8369, 1.8610, 1.8839])
BEETLES = np.array([59.0, 60, 62, 56, 63, 59, 62, 60])
KILLED = np.array([6.0, 13, 18, 28, 52, 53, 61, 60])
# Colditz et al. (1994), BCG vaccine: cases and others, vaccinated and not; metafor's dat.bcg.
CASES = np.array([4.0, 6, 3, 62, 33, 180, 8, 505, 29, 17, 186, 5, 27])
OTHERS = np.array([119.0, 300, 228, 13536, 5036, 1361, 2537, 87886, 7470, 1699, 50448, 2493, 16886])
CONTROL_CASES = np.array([11.0, 29, 11, 248, 47, 372, 10, 499, 45, 65, 141, 3, 29])
CONTROL_OTHERS = np.array([128.0, 274, 209, 12619, 5761, 1079, 619, 87892, 7232, 1600, 27197, 2338, 17825])


def test_without_ad_error_it_is_the_logistic_regression_of_the_textbook() -> None:
    fit = fit_logits(np.stack([np.ones(8), DOSE], axis=1), KILLED, BEETLES, np.zeros(8), ad_error=0.0)
    assert fit is not None
    assert fit.coefficients == pytest.approx([-60.717, 34.270], abs=1e-3)
    assert np.sqrt(np.diag(fit.covariance)) == pytest.approx([5.181, 2.912], abs=1e-3)


def test_with_an_offset_it_is_statsmodels_glm() -> None:
    x, impressions, clicks = np.array([[-1.2, -0.5, 0.1, 0.8], [4000, 12000, 800, 30000], [40, 200, 21, 1500]])
    fit = fit_logits(np.ones((4, 1)), clicks, impressions, x, ad_error=0.0)
    assert fit is not None
    assert fit.coefficients[0] == pytest.approx(-3.71874371)
    assert fit.covariance[0, 0] ** 0.5 == pytest.approx(0.02440499)


def test_the_variance_between_trials_is_paule_and_mandels() -> None:
    risk, control = CASES / (CASES + OTHERS), CONTROL_CASES / (CONTROL_CASES + CONTROL_OTHERS)
    variances = (1 - risk) / CASES + (1 - control) / CONTROL_CASES
    # statsmodels combine_effects(method_re="iterated"): 0.3180685; metafor rma(method="PM"): 0.3181.
    found = moment_variance(np.log(risk / control), variances, np.ones((13, 1)))
    assert found == pytest.approx(0.3180685, abs=1e-6)


@pytest.mark.parametrize(
    ("clicks", "scores"), [((0, 0, 0), (-1, 0, 1)), ((9, 9, 9), (-1, 0, 1)), ((1, 2, 3), (1, 1, 1))]
)
def test_ads_that_determine_nothing_give_no_fit(clicks: tuple[float, ...], scores: tuple[float, ...]) -> None:
    design = np.stack([np.ones(3), np.array(scores, dtype=float)], axis=1)
    assert fit_logits(design, np.array(clicks, dtype=float), np.full(3, 9.0), np.zeros(3)) is None


def test_an_ad_without_clicks_is_no_obstacle() -> None:
    fit = fit_logits(np.ones((4, 1)), np.array([0.0, 3, 2, 5]), np.full(4, 200.0), np.zeros(4))
    assert fit is not None
    assert np.isfinite(fit.coefficients).all()
