"""The follower's optimum, F and dF/dx of one small dense context in 60 digits, independent of the library (mpmath)."""

from __future__ import annotations

from typing import Any

import mpmath as mp
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
DIGITS = 60


def reference(r: Array, g: Array, P: Array, lam: float, mu: Array, rbar: Array, dr: Array) -> tuple[Array, float, float] | None:
    """Policy ``(S, A)``, F and the derivative of F along ``dr``; None where Newton's method did not settle.

    Args:
        r, g, rbar, dr: ``(S, A)``; the leader's continuation is g too.
        P: ``(S, A, S)``.
        lam: lambda.
        mu: ``(S,)``.
    """
    with mp.workdps(DIGITS):
        S, A = r.shape
        R, G, B, D = (_exact(part) for part in (r, g, rbar, dr))
        rows = [[[(t, mp.mpf(float(P[s, a, t]))) for t in range(S) if P[s, a, t]] for a in range(A)] for s in range(S)]
        L = mp.mpf(float(lam))

        def ahead(s: int, a: int, v: Any) -> Any:
            return G[s][a] * mp.fsum(p * v[t] for t, p in rows[s][a])

        def backup(v: Any) -> tuple[Any, Any]:
            pi, new = [], mp.matrix(S, 1)
            for s in range(S):
                q = [R[s][a] + ahead(s, a, v) for a in range(A)]
                top = max(q)
                weights = [mp.exp((x - top) / L) for x in q]
                total = mp.fsum(weights)
                pi.append([w / total for w in weights])
                new[s] = top + L * mp.log(total)
            return pi, new

        def system(pi: Any) -> Any:
            M = mp.eye(S)
            for s in range(S):
                for a in range(A):
                    for t, p in rows[s][a]:
                        M[s, t] -= pi[s][a] * G[s][a] * p
            return M

        v = mp.matrix(S, 1)
        for _ in range(400):
            pi, new = backup(v)
            step = mp.lu_solve(system(pi), new - v)
            v = v + step
            if max(abs(x) for x in step) < L * mp.mpf(10) ** (-DIGITS // 2):
                break
        else:
            return None
        pi, _ = backup(v)
        M = system(pi)
        value = mp.lu_solve(M, mp.matrix([mp.fsum(pi[s][a] * B[s][a] for a in range(A)) for s in range(S)]))
        dv = mp.lu_solve(M, mp.matrix([mp.fsum(pi[s][a] * D[s][a] for a in range(A)) for s in range(S)]))
        change = mp.matrix(S, 1)
        for s in range(S):
            for a in range(A):
                dpi = pi[s][a] * (D[s][a] + ahead(s, a, dv) - dv[s]) / L
                change[s] += dpi * (B[s][a] + ahead(s, a, value))
        dvalue = mp.lu_solve(M, change)
        start = [mp.mpf(float(m)) for m in mu]
        F = mp.fsum(m * value[s] for s, m in enumerate(start))
        dF = mp.fsum(m * dvalue[s] for s, m in enumerate(start))
        return np.array([[float(p) for p in row] for row in pi]), float(F), float(dF)


def _exact(part: Array) -> list[list[Any]]:
    return [[mp.mpf(float(x)) for x in row] for row in part]
