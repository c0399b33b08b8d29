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
from analysis.fits.newton import solve
from analysis.fits.objective import Objective

GRID_POINTS = {1: 24, 2: 14, 3: 7, 4: 5, 5: 3}  # exponents per term, by the number of terms; 2 beyond
GRID_RANGE = (0.03, 3.0)
SMALL = 1e-4  # share of the loss that an absent term starts from, so that Newton can bring it back


def grid_starts(design: Design, objective: Objective, n_starts: int) -> Array:
    """The best `n_starts` grid nodes of each replicate as coordinates, (P, R, n_starts)."""
    nodes = _exponent_nodes(design)
    columns, choices = _columns(objective, nodes)
    inverse = np.exp(-objective.log_loss)  # relative residuals: weights over loss squared
    pulled, squared = objective.weights * inverse, objective.weights * inverse**2  # (R, n)
    products = (columns[:, None] * columns[None, :]).reshape(-1, columns.shape[1])
    gram = (products @ squared.T).reshape(len(columns), len(columns), -1)  # (m, m, R)
    right = columns @ pulled.T  # (m, R)
    amplitudes, explained = _non_negative(gram, right, choices)
    order = np.argsort(-explained, axis=0, kind="stable")[:n_starts]  # (count, R)
    picked = amplitudes[:, order, np.arange(order.shape[1])]  # (p, count, R)
    theta, first = np.empty((design.size, *order.shape)), 0
    for k, (block, values) in enumerate(zip(objective.basis.blocks, nodes, strict=True)):
        is_floor = k == 0 and design.law.has_floor
        theta[block.start] = picked[k] if is_floor else np.log(np.maximum(picked[k], SMALL))
        theta[block.start + 1 : block.stop] = values[choices[order, k] - first].transpose(2, 0, 1)
        first += len(values)
    return theta.transpose(0, 2, 1)


def _exponent_nodes(design: Design) -> list[Array]:
    """For floor and terms, coordinates of factors at each node, (nodes, q - 1): a grid of the first exponent, others without effect."""
    law = design.law
    grid = np.geomspace(*GRID_RANGE, GRID_POINTS.get(len(law.terms), 2))
    nodes = [np.zeros((1, 0))] if law.has_floor else []
    for term in law.terms:
        first, *others = term.powers
        values = np.clip(grid, first.low, first.high) * design.units[first.exponent]
        nodes.append(np.stack([values, *np.zeros((len(others), len(grid)))], axis=1))
    return nodes


def _columns(objective: Objective, nodes: list[Array]) -> tuple[Array, NDArray[np.intp]]:
    """All columns that some node uses, (m, n), and for each combination of nodes the columns that it uses, (combinations, p)."""
    rows, used, first = [], [], 0
    for block, values in zip(objective.basis.blocks, nodes, strict=True):
        predictor = values @ block.features[:, 1:].T
        rows.append(np.exp(predictor if block.offset is None else predictor + block.offset))
        used.append(np.arange(first, first + len(values)))
        first += len(values)
    return np.concatenate(rows), np.array(list(itertools.product(*used)))


def _non_negative(gram: Array, right: Array, choices: NDArray[np.intp]) -> tuple[Array, Array]:
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
