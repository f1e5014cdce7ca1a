"""Models whose leave-one-out has a closed form: nothing is trained again."""

from __future__ import annotations

from proponent.retraining.closed_forms.build import closed_form_of
from proponent.retraining.closed_forms.closed_form import ClosedForm

__all__ = ["ClosedForm", "closed_form_of"]
