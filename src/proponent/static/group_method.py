"""What the methods share that estimate the parameters without a group of training instances.

Each estimates ``Delta_U = theta_{-U} - theta`` for a group U, and from it to first order the
change of every test risk, ``I(U, z_te) = g_te^T Delta_U``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from proponent import _method_checks as checks
from proponent._results.select import group_positions
from proponent.exceptions import InvalidInputError, MethodCapabilityError
from proponent.gradients.curvature import Curvature
from proponent.gradients.inverse import Inverse, SolvedSet
from proponent.gradients.kfac.factors import KroneckerFactors
from proponent.gradients.path import TestSet, batches
from proponent.gradients.products import VectorQuery
from proponent.gradients.solvers.choose import Automatic
from proponent.influence import Influence
from proponent.progress import progress
from proponent.static.chosen_inverse import Request
from proponent.static.curvature_method import CurvatureMethod

GROUPS_AT_ONCE = 256
LARGE = 0.3  # share of the training set from which expanding around the full model is poor


@dataclass(frozen=True)
class Group:
    """Training instances that are removed together.

    Attributes
    ----------
    name : int or str
        What the user calls it.
    positions : integer array
        Its members, each once.
    """

    name: Any
    positions: NDArray[np.intp]

    def __len__(self) -> int:
        """Return ``|U|``."""
        return len(self.positions)


class GroupMethod(CurvatureMethod):
    """Base of the methods that estimate the parameters without a group.

    An estimate that is not additive scores a single instance as a group of one.

    Parameters
    ----------
    solver, curvature, damping, weight_decay, loo_convention, seed
        As in :class:`~proponent.static.influence_functions.InfluenceFunctions`.
    parameters, batch_size, products, memory, dtype, progress
        As in :class:`GradientMethod`.
    """

    @abstractmethod
    def _changes(self, groups: Sequence[Group], inverse: Inverse) -> Tensor:
        """Return ``theta_{-U} - theta`` of some groups, (k, p)."""

    # What a user asks

    @override
    def group_influence(
        self, groups: Mapping[Any, Any] | Any, test: Any = None, *, ids: Any = None
    ) -> Influence:
        """Return the influence of groups of training instances on every test instance.

        Parameters
        ----------
        groups : mapping of names to train ids, or array-like of shape (n_train,)
            As :meth:`Influence.group` takes them.
        test, ids
            As in :meth:`influence`.

        Returns
        -------
        Influence
            Scores ``(n_test, n_groups)``: estimates of the risk without the group, less the risk.
            The names of the groups are its train ids.

        Raises
        ------
        InvalidInputError
            If a group is empty, has unknown ids, or is the whole training set.
        SolveError
            If what remains without a group has no positive definite curvature.
        NonFiniteError
            If a gradient is not finite.
        """
        chosen = self._groups(groups)
        instances = self._tests(test, ids)
        query = self._query(instances)
        if self._is_additive() and len(instances) < len(chosen):  # fewer solves
            scores = self._scores(query, self._rows(None))
            sums = [scores[:, group.positions].sum(1, dtype=np.float64) for group in chosen]
            values: NDArray[np.floating[Any]] = np.stack(sums, 1)
        else:
            values = self._products_with_changes(query, chosen)
        names = np.array([group.name for group in chosen])
        checks.check_finite(values, names, instances.ids, self.card.name, unscored=False)
        values.setflags(write=False)
        return Influence(
            values,
            train_ids=names,
            test_ids=instances.ids,
            method=self.card.name,
            settings=self._settings(),
            diagnostics=self._group_diagnostics(query, chosen),
            additive=self._is_additive(),
        )

    def group_parameter_changes(
        self, groups: Mapping[Any, Any] | Any
    ) -> dict[str, NDArray[np.floating[Any]]]:
        """Return the change of the parameters that groups make, eq. (6).

        Parameters
        ----------
        groups : mapping of names to train ids, or array-like of shape (n_train,)
            As :meth:`Influence.group` takes them.

        Returns
        -------
        dict
            For each chosen parameter ``theta - theta_{-U}``, ``(n_groups, *shape)``.

        Raises
        ------
        InvalidInputError, SolveError, NonFiniteError
            As for :meth:`group_influence`.
        """
        chosen, inverse = self._groups(groups), self._chosen.fresh()
        changes = torch.cat([self._changes(block, inverse) for block in self._in_blocks(chosen)])
        parts = self._space.unflatten(-changes)
        return {name: part.cpu().numpy() for name, part in parts.items()}

    @override
    def parameter_changes(self, instances: Any = None) -> dict[str, NDArray[np.floating[Any]]]:
        if not self._is_additive():
            raise self._first_order_alone("parameter_changes")
        return super().parameter_changes(instances)

    @override
    def cooks_distance(self) -> Influence:
        if not self._is_additive():
            raise self._first_order_alone("cooks_distance")
        return super().cooks_distance()

    def _first_order_alone(self, what: str) -> MethodCapabilityError:
        return MethodCapabilityError(
            f"{self!r} has no {what}, which is of first order: use InfluenceFunctions, or "
            f"group_parameter_changes(groups) for what this estimate says."
        )

    # Scores of single instances

    @override
    def _request(self) -> Request:
        request = super()._request()
        if self._is_additive():
            return request
        if request.solver in ("ekfac", "kfac") or isinstance(request.solver, KroneckerFactors):
            raise InvalidInputError(
                f"solver={self.solver!r}: {self!r} multiplies with the curvature of the groups, "
                f"which Kronecker factors do not tell; use 'auto', 'explicit' or 'cg'."
            )
        if request.solver == "auto":
            return replace(request, solver=Automatic(memory=self.memory))
        return request

    @override
    def _scores(self, query: TestSet, rows: range) -> NDArray[np.floating[Any]]:
        if self._is_additive():
            return super()._scores(query, rows)
        return self._products_with_changes(cast(SolvedSet, query), self._singles(rows))

    @override
    def _self_scores(self, rows: range) -> NDArray[np.floating[Any]]:
        if self._is_additive():
            return super()._self_scores(rows)
        inverse, found = self._chosen.fresh(), []
        for block in self._in_blocks(self._singles(rows)):
            changes, gradients = self._changes(block, inverse), self._gradient_sums(block)
            found.append((changes * gradients).sum(1).cpu())
        self._noticed = inverse.diagnostics()
        return torch.cat(found).numpy()

    def _singles(self, rows: range) -> list[Group]:
        return [Group(self.train_.ids[row], np.array([row])) for row in rows]

    # Groups

    def _groups(self, groups: Any) -> list[Group]:
        """Read what the user gave."""
        self._rows(None)
        names, members = group_positions(groups, self.train_.ids)
        return [Group(*pair) for pair in zip(names.tolist(), members, strict=True)]

    def _in_blocks(self, groups: Sequence[Group]) -> list[Sequence[Group]]:
        """Cut groups into blocks whose gradients and changes fit the memory."""
        whole = [group for group in groups if len(group) == len(self.train_)]
        if whole and not self._is_additive():
            raise InvalidInputError(
                f"groups: {whole[0].name!r} is the whole training set, and nothing remains "
                f"without it; give groups that leave instances to train on."
            )
        size = min(GROUPS_AT_ONCE, self._solved_at_once)
        return [groups[start : start + size] for start in range(0, len(groups), size)]

    def _products_with_changes(
        self, query: SolvedSet, groups: Sequence[Group]
    ) -> NDArray[np.floating[Any]]:
        """Return ``g_te^T Delta_U`` of groups, (n_test, k), or of their sum over the tests."""
        cut, columns = batches(len(query.instances), self._batch_size), []
        blocks = self._in_blocks(groups)
        with progress(blocks, description=self.card.name, enabled=self.progress) as bar:
            for block in bar:
                changes = self._held(self._changes(block, query.inverse))
                moved = VectorQuery(changes, self._products)
                with self.model_.evaluating():
                    captured = self._captured(query.instances, cut)
                    met = torch.cat([moved.meet(forms, len(part))[0] for part, forms in captured])
                columns.append(met.sum(0, keepdim=True) if query.joint else met)
        return torch.cat(columns, 1).cpu().numpy()

    def _gradient_sums(self, groups: Sequence[Group]) -> Tensor:
        """Return the sum of the risks' gradients over each group, (k, p)."""
        members = np.unique(np.concatenate([group.positions for group in groups]))
        point = replace(self._points(self.train_)[0], members=members)
        total = self._space.gradients({}, len(groups))
        with self.model_.evaluating():
            cut = point.batches(range(len(self.train_)), self._batch_size)
            for batch, forms in self._captured(self.train_, cut):
                inside = np.stack([np.isin(batch.positions, group.positions) for group in groups])
                weights = torch.as_tensor(inside, device=total.device).to(self._capture.dtype)
                if forms:
                    sums = {name: form.weighted_sum(weights) for name, form in forms.items()}
                    total += self._space.flatten(sums)
                if not torch.isfinite(total.sum()):
                    self._refuse_gradients(forms, batch, point)
        return total

    def _shares(self, groups: Sequence[Group]) -> Tensor:
        """Return ``|U| / n`` of each group, (k, 1)."""
        sizes = torch.tensor([len(group) for group in groups])[:, None]
        return sizes.to(self._decayed) / len(self.train_)

    def _mean_gradients(self, groups: Sequence[Group]) -> Tensor:
        """Return ``(1/n) sum_U g_i`` of each group, (k, p).

        Where the mean is renormalised, each risk carries its share of the weight decay.
        """
        means = self._gradient_sums(groups) / len(self.train_)
        if self.loo_convention == "renormalised":
            means += self._shares(groups) * self._decayed
        return means

    @property
    def _operator(self) -> Curvature:
        """C, without weight decay and damping."""
        operator = self._chosen.operator
        assert operator is not None  # Kronecker factors are refused at first
        return operator

    @property
    def _damping(self) -> float:
        assert isinstance(self.damping_, float)  # one a layer is for Kronecker factors
        return self.damping_

    @override
    def _diagnostics(self, query: TestSet | None) -> dict[str, Any]:
        noticed = super()._diagnostics(query)
        if self.solver == "auto" and not self._is_additive():
            noticed["why_solver"] = noticed["reason"]
        return noticed

    def _group_diagnostics(self, query: SolvedSet, groups: Sequence[Group]) -> dict[str, Any]:
        noticed = self._diagnostics(query)
        n = len(self.train_)
        noticed["group_sizes"] = [len(group) for group in groups]
        large = [str(group.name) for group in groups if len(group) > LARGE * n]
        if large:
            listed = ", ".join(large[:10]) + (", ..." if len(large) > 10 else "")
            noticed["warnings"] = [
                *noticed["warnings"],
                f"groups {listed} are more than {LARGE:.0%} of the training set: an expansion "
                f"around the full model is poor there; train without them to be sure.",
            ]
        return noticed
