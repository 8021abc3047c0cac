r"""Compiled kernels of the tabular core, one file per subject.

Everything here works on plain NumPy arrays of **one** context:

    succ  (S, A, K) int32    stored successors          prob  (S, A, K) float64   their probabilities
    r     (S, A)             reward                      g     (S, A)              continuation gamma (1 - q)
    pi    (S, A)             policy                      lam   float               entropy coefficient

The kernels hold no policy of their own (no defaults, no validation): callers check their input. Compiled code
is cached by file: after a change in one of these files, delete ``__pycache__`` folders of files whose kernels call it.
"""

#: For numba's ``fastmath``: reassociation lets inner loops vectorise; NaN and infinity keep their meaning (unlike ``True``).
LOOSE = {"reassoc", "contract", "nsz", "arcp"}
#: Multiplications and additions fuse, and sums keep their order: the same bits wherever a compiler inlines the code.
FUSED = {"contract"}
