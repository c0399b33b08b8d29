"""Starting points by variable projection: a grid over exponents, amplitudes in closed form.

Given its exponents a law is linear in its floor and amplitudes; those follow exactly from non-negative least squares on relative residuals
(Golub and Pereyra 1973). All products that any grid node needs are entries of one Gram matrix, so a thousand nodes
cost about as much as one.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from analysis.fits.coordinates import Array, Design
from analysis.fits.laws import Bowl, Power, Proportional
from analysis.fits.newton import solve
from analysis.fits.objective import Objective

GRID_POINTS = {1: 24, 2: 14, 3: 7, 4: 5, 5: 3}  # exponents per term, by the number of terms; 2 beyond
GRID_RANGE = (0.03, 3.0)
SMALL = 1e-4  # share of the loss that an absent term starts from, so that Newton can bring it back


def grid_starts(design: Design, objective: Objective, n_starts: int) -> Array:
    """The best `n_starts` grid nodes of each replicate as coordinates, (P, R, n_starts)."""
    nodes = _exponent_nodes(design)  # (terms, nodes, P_term) per term
    columns, choices = _basis(design, objective, nodes)
    inverse = np.exp(-objective.log_loss)  # relative residuals: weights over loss squared
    pulled, squared = objective.weights * inverse, objective.weights * inverse**2  # (R, n)
    products = (columns[:, None] * columns[None, :]).reshape(-1, columns.shape[1])
    gram = (products @ squared.T).reshape(len(columns), len(columns), -1)  # (m, m, R)
    right = columns @ pulled.T  # (m, R)
    amplitudes, explained = _non_negative(gram, right, choices)
    count = min(n_starts, explained.shape[0])
    order = np.argsort(-explained, axis=0, kind="stable")[:count]  # (count, R)
    return _coordinates(design, nodes, choices, amplitudes, order)


def _exponent_nodes(design: Design) -> list[Array]:
    """For each term, coordinates of its factors at each grid exponent, (grid, q - 1); other factors start without effect."""
    n_terms = len(design.law.terms)
    grid = np.geomspace(*GRID_RANGE, GRID_POINTS.get(n_terms, 2))
    nodes = []
    for term in design.law.terms:
        powers = [f for f in term.factors if isinstance(f, Power)]
        coordinates: list[Array] = []
        for factor in term.factors:
            if isinstance(factor, Proportional):
                continue
            if powers and factor is powers[0]:
                coordinates.append(np.clip(grid, powers[0].low, powers[0].high) * design.spread[factor.column])
            else:
                coordinates += [np.zeros(len(grid))] * (2 if isinstance(factor, Bowl) else 1)
        nodes.append(np.stack(coordinates, axis=1) if coordinates else np.zeros((1, 0)))
    return nodes


def _basis(design: Design, objective: Objective, nodes: list[Array]) -> tuple[Array, Array]:
    """All columns that some node uses, (m, n), and for each node the columns that it uses, (nodes, p)."""
    rows, used, first = [], [], int(design.law.has_floor)
    if design.law.has_floor:
        rows.append(np.ones((1, objective.log_loss.shape[1])))
    for block, values in zip(objective.basis.blocks, nodes, strict=True):
        predictor = values @ block.features[:, 1:].T
        rows.append(np.exp(predictor if block.offset is None else predictor + block.offset))
        used.append(np.arange(first, first + len(values)))
        first += len(values)
    choices = np.array(list(itertools.product(*used)))
    if design.law.has_floor:
        choices = np.concatenate([np.zeros((len(choices), 1), dtype=choices.dtype), choices], axis=1)
    return np.concatenate(rows), choices


def _non_negative(gram: Array, right: Array, choices: Array) -> tuple[Array, Array]:
    """Exact non-negative least squares at every node by trying each set of active amplitudes.

    Returns amplitudes (p, nodes, R) and the explained sum of squares (nodes, R). At most 2^p small systems, p being 2 to 7.
    """
    n_nodes, size = choices.shape
    n_replicates = right.shape[1]
    best = np.zeros((n_nodes, n_replicates))
    amplitudes = np.zeros((size, n_nodes, n_replicates))
    for active in itertools.chain.from_iterable(itertools.combinations(range(size), k) for k in range(1, size + 1)):
        picked = choices[:, list(active)]  # (nodes, k)
        matrix = gram[picked[:, :, None], picked[:, None, :]].transpose(1, 2, 0, 3).reshape(len(active), len(active), -1)
        target = right[picked].transpose(1, 0, 2).reshape(len(active), -1)
        ridge = 1e-13 * np.einsum("iir->ir", matrix)
        matrix = matrix + ridge[:, None] * np.eye(len(active))[:, :, None]
        found = solve(matrix, target).reshape(len(active), n_nodes, n_replicates)
        explained = np.einsum("knr,knr->nr", found, target.reshape(found.shape))
        improves = (found > 0).all(axis=0) & (explained > best)
        best = np.where(improves, explained, best)
        full = np.zeros_like(amplitudes)
        full[list(active)] = found
        amplitudes = np.where(improves, full, amplitudes)
    return amplitudes, best


def _coordinates(design: Design, nodes: list[Array], choices: Array, amplitudes: Array, order: NDArray[np.intp]) -> Array:
    count, n_replicates = order.shape
    replicate = np.arange(n_replicates)
    picked = amplitudes[:, order, replicate]  # (p, count, R)
    theta = np.empty((design.size, count, n_replicates))
    position, first = int(design.law.has_floor), int(design.law.has_floor)
    if design.law.has_floor:
        theta[0] = picked[0]
    for k, values in enumerate(nodes):
        theta[position] = np.log(np.maximum(picked[position_of_term(design, k)], SMALL))
        node = choices[order, position_of_term(design, k)] - first  # (count, R)
        width = values.shape[1]
        theta[position + 1 : position + 1 + width] = values[node].transpose(2, 0, 1)
        position += 1 + width
        first += len(values)
    return theta.transpose(0, 2, 1)


def position_of_term(design: Design, k: int) -> int:
    """Where term k stands among the linear amplitudes."""
    return k + int(design.law.has_floor)
