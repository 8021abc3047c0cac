"""Products with a sparse matrix of compressed rows, for one context's rows at a time (`bocmdp_gym.affine`).

The rows are the entries of an array ``(C', S', A')`` in reading order, C', S' and A' being 1 where it broadcasts.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True)
def affine_values(base, indptr, indices, data, z, context, out):
    """out ``(S, A)`` = base + M z in one context; base ``(C', S', A')``, z ``(n,)``."""
    c_size, s_size, a_size = base.shape
    c = context if c_size > 1 else 0
    n_s, n_a = out.shape
    for s in range(n_s):
        own = s if s_size > 1 else 0
        for a in range(n_a):
            if a_size == 1 and a > 0:
                out[s, a] = out[s, 0]
                continue
            row = (c * s_size + own) * a_size + a
            total = base[c, own, a]
            for k in range(indptr[row], indptr[row + 1]):
                total += data[k] * z[indices[k]]
            out[s, a] = total
    return out


@njit(cache=True)
def affine_pull(base, indptr, indices, data, weight, context, out):
    """out ``(n,)`` += M^T weight, of weights ``(S, A)`` on one context's values."""
    c_size, s_size, a_size = base.shape
    c = context if c_size > 1 else 0
    n_s, n_a = weight.shape
    for s in range(n_s):
        own = s if s_size > 1 else 0
        for a in range(a_size if a_size > 1 else 1):
            row = (c * s_size + own) * a_size + a
            if indptr[row] == indptr[row + 1]:
                continue
            w = weight[s, a]
            if a_size == 1:
                for b in range(1, n_a):
                    w += weight[s, b]
            for k in range(indptr[row], indptr[row + 1]):
                out[indices[k]] += data[k] * w
    return out


@njit(cache=True)
def softmax(x, out):
    """Write the softmax of x ``(n,)`` into ``out``."""
    largest = x.max()
    total = 0.0
    for i in range(len(x)):
        out[i] = np.exp(x[i] - largest)
        total += out[i]
    for i in range(len(x)):
        out[i] /= total
    return out


@njit(cache=True)
def softmax_pull(z, w, out):
    """Write z (w - z . w) ``(n,)`` into ``out``: weights w on z = softmax(x), as weights on x."""
    mean = 0.0
    for i in range(len(z)):
        mean += z[i] * w[i]
    for i in range(len(z)):
        out[i] = z[i] * (w[i] - mean)
    return out
