"""The exact results of one call of attention, and how far rounding may move each element.

Derivation.  One head; c = scale, f = the dropout factor (1 without), u the unit roundoff of sums
and elementwise steps, w that of stored values, A the matrix of absolute values of A:

    S = c Q K^T    P = exp(S - L)    O = (P f) V    L = log sum exp S
    dP = f (dO V^T)    delta = rowsum(dO O) - dL    dS = P (dP - delta)
    dV = (P f)^T dO    dQ = c dS K    dK = c dS^T Q

Each step errs by a known share of known terms; to first order the errors of the steps add up.
Where the sign of an error is the same for many terms (an exponential, a constant such as
log2 e), absolute values are added. Where each term is rounded by itself, the errors are
independent with zero mean, uniform within half a step, and a sum of them stays below
lambda / sqrt(3) times the root of their squares (`concentration`: Hoeffding, with the variance
proxy a^2 / 3 of a uniform error). `sums(n)` is the error of a sum of n terms.

1. A score errs by sums(D + 2) of c |Q| |K|^T; an exponent by 4 u (|S| + max |S|) more
   (subtraction, conversion to base 2, its constant); exp by its own error. Each time that a larger
   maximum makes an online softmax rescale, another exponential errs, 2 + log2 M times at most (the
   maxima of a random sequence grow ln M times); their exponents add up to 2 max |S|, whose
   rounding is another 4 u max |S|. Together e_ij, a relative error of P_ij. What is below the
   smallest normal number of sums may be lost as a whole: that number over P_ij more.
2. L errs by sum_j P e, by sums(M) of the sum and by 4 u (|L| + max |S|) for the logarithm and its
   conversion; it is returned in fp32.
3. O errs by (P f e) |V| + |O| sum_j P e (numerator and normaliser), by sums(M) of (P f) |V| and of
   |O|, and by its own rounding. P is rounded to the dtype of V before the product: each term
   P f V by w, independently; numbers below the dtype's smallest lose up to a quantum.
4. delta inherits these: sum_j P e |dP - dO O|, the errors of the sums of O times |dO|; the
   rounding of P as w P f dP, that of O as w dO O, and what underflows in O; and its own sum.
5. The backward pass computes P again from L, kept in the precision of sums, whose error moves a
   whole row alike: dS L_error. dP errs by sums(D + 1) of |dO| |V|^T. delta's error moves P times
   a row alike. dS and P f are rounded to the inputs' dtype before the last products
   (independent), which err by sums(M) or sums(N) of the products of absolute values.
6. A gradient in 16 bits may be added up in that dtype over blocks of the other side (torch's CPU
   kernels do, in up to 8 steps to N = 2048 and of 256 rows beyond): w of each partial sum. Query
   heads that share a key head may each round their share of dK and dV.

7. Where one tile goes on from what another left (`Arithmetic.passes_on`), that was rounded, too:
   another w of what it adds to O, which is (P f) |V| at most, and a quantum. Gradients have 6.

Where attention is written out in torch operations in 16 bits, S, P, dP and dS are rounded to w
each time they are stored (`Arithmetic.stores_scores`). For fp64 the reference is no more precise
than what is tested: there the bounds are doubled.
"""

from __future__ import annotations

import dataclasses
import math

import torch

from sparsebert.masks import AttentionMask
from sparsebert.reference import reference_attention
from sparsebert.testing.arithmetic import Arithmetic, concentration, unit_roundoff
from sparsebert.testing.outcome import Expected

_STEPS = 8
_BLOCK = 256


def expected_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: AttentionMask | torch.Tensor,
    *,
    scale: float | None = None,
    key_mask: torch.Tensor | None = None,
    keep_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    grad_o: torch.Tensor | None = None,
    grad_lse: torch.Tensor | None = None,
    arithmetic: Arithmetic | None = None,
) -> Expected:
    """What attention must give for these inputs, as `reference_attention` finds it in fp64.

    Shapes and dtypes:
        q, k, v, mask, key_mask, keep_mask: as for `reference_attention`, in the dtype that is
            tested: what rounding them did is no error.
        grad_o: [B, H, N, D]; adds dq, dk and dv. grad_lse: [B, H, N], the gradient of the LSE.
        arithmetic: of the implementation, by default what `Arithmetic.of(q)` says.

    A correct implementation breaks one of the bounds with a chance of 1e-9. Takes memory for some
    fifteen fp64 matrices [H / H_kv, N, M]. Raises what `reference_attention` raises.

    >>> import torch, sparsebert as sb
    >>> from sparsebert.testing import expected_attention
    >>> q, k, v = torch.randn(3, 1, 2, 64, 16)
    >>> mask = sb.patterns.sliding_window(64, window=4)
    >>> o = sb.sparse_attention(q, k, v, mask)
    >>> [outcome.passed for outcome in expected_attention(q, k, v, mask).outcomes({"o": o})]
    [True]
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    exact = _exact(q, k, v, mask, scale, key_mask, keep_mask, dropout_p, grad_o, grad_lse)
    arithmetic = Arithmetic.of(q) if arithmetic is None else arithmetic
    certainty = concentration(sum(x.numel() for x in exact.values()))
    (batch, heads), kv_heads = q.shape[:2], k.shape[1]
    group = heads // max(1, kv_heads)
    allowed = _allowed(mask, heads, key_mask)  # [B or 1, H, N, M]
    bound = {name: torch.zeros_like(x) for name, x in exact.items()}
    for b in range(batch):
        for h in range(kv_heads):
            queries = slice(h * group, (h + 1) * group)
            part = _Head(
                q[b, queries].double(),
                k[b, h].double(),
                v[b, h].double(),
                allowed[b if len(allowed) > 1 else 0, queries].to(q.device),
                None if keep_mask is None else keep_mask[b, queries] / (1.0 - dropout_p),
                scale,
                None if grad_o is None else grad_o[b, queries].double(),
                None if grad_lse is None else grad_lse[b, queries].double(),
                arithmetic,
                certainty,
            )
            for name, found in part.bounds().items():
                where = queries if name in ("o", "lse", "dq") else h
                bound[name][b, where] = found
    if q.dtype == torch.float64:
        bound = {name: 2.0 * x for name, x in bound.items()}
    return Expected(exact, bound)


def _exact(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: AttentionMask | torch.Tensor,
    scale: float,
    key_mask: torch.Tensor | None,
    keep_mask: torch.Tensor | None,
    dropout_p: float,
    grad_o: torch.Tensor | None,
    grad_lse: torch.Tensor | None,
) -> dict[str, torch.Tensor]:
    with torch.enable_grad():
        inputs = [x.detach().double().requires_grad_(grad_o is not None) for x in (q, k, v)]
        o, lse = reference_attention(
            inputs[0], inputs[1], inputs[2], mask, scale=scale, key_mask=key_mask,
            keep_mask=keep_mask, dropout_p=dropout_p, return_lse=True,
        )  # fmt: skip
        exact = {"o": o.detach(), "lse": lse.detach()}
        if grad_o is not None:
            results, upstream = [o], [grad_o.double()]
            if grad_lse is not None:
                results, upstream = [o, lse], [grad_o.double(), grad_lse.double()]
            gradients = torch.autograd.grad(results, inputs, upstream)
            exact |= dict(zip(("dq", "dk", "dv"), gradients, strict=True))
    return exact


def _allowed(
    mask: AttentionMask | torch.Tensor, heads: int, key_mask: torch.Tensor | None
) -> torch.Tensor:
    """Mask and key mask together: bool [B or 1, H, N, M]."""
    allowed = mask.dense() if isinstance(mask, AttentionMask) else mask
    allowed = allowed.reshape(1, -1, *allowed.shape[-2:])
    allowed = allowed.expand(1, heads, *allowed.shape[-2:])
    return allowed if key_mask is None else allowed.to(key_mask.device) & key_mask[:, None, None]


@dataclasses.dataclass(frozen=True)
class _Head:
    """One key head and the G query heads that share it, all in fp64.

    q, grad_o: [G, N, D]; k, v: [M, D]; allowed, factor: [G, N, M]; grad_lse: [G, N].
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    allowed: torch.Tensor
    factor: torch.Tensor | None
    scale: float
    grad_o: torch.Tensor | None
    grad_lse: torch.Tensor | None
    arithmetic: Arithmetic
    certainty: float

    def bounds(self) -> dict[str, torch.Tensor]:
        """The largest errors of o, lse and, with a gradient, dq, dk (of the group) and dv."""
        a, c = self.arithmetic, abs(self.scale)
        u, w = a.summed, a.stored
        alive = self.allowed.any(-1, keepdim=True)
        q = self.q.masked_fill(~alive, 0.0)
        used = self.allowed.any(-2).any(0)[:, None]
        k, v = self.k.masked_fill(~used, 0.0), self.v.masked_fill(~used, 0.0)
        kv_len, dim = k.shape
        rescales = 2.0 + math.log2(kv_len)
        operand = w * self.certainty / math.sqrt(3.0) if a.rounds_operands else 0.0
        lost = a.quantum * self.certainty / math.sqrt(3.0) if a.rounds_operands else 0.0
        if a.stores_scores:  # P, then P f
            operand *= math.sqrt(2.0)

        # 1. scores and probabilities
        s = self.scale * (q @ k.mT)
        reached = s.masked_fill(~self.allowed, -math.inf)
        lse = reached.logsumexp(-1, keepdim=True).masked_fill(~alive, 0.0)
        p = (reached - lse).exp()
        s = s.masked_fill(~self.allowed, 0.0)
        score_error = self._products(dim + 2) * c * (q.abs() @ k.abs().mT)
        if a.stores_scores:
            score_error += 2.0 * w * s.abs()
        peak_s = s.abs().amax(-1, keepdim=True)
        e = score_error + 4.0 * u * s.abs() + 8.0 * u * peak_s + a.exp + rescales * a.rescale
        # The reciprocal of a smaller P, by which torch divides a number, would be infinite.
        vanishing = a.smallest / p.clamp_min(torch.finfo(torch.float64).smallest_normal)
        e += vanishing

        # 2. the LSE
        row_e = (p * e).sum(-1, keepdim=True)
        lse_error = row_e + self._sums(kv_len + 2) + 4.0 * u * (lse.abs() + peak_s)
        lse_kept = lse_error + u * lse.abs()  # for the backward pass
        lse_stored = lse_error + unit_roundoff(torch.float32) * lse.abs()

        # 3. the output
        pf = p if self.factor is None else p * self.factor
        o = pf @ v
        sums = self._products(kv_len + 4) * (pf @ v.abs())
        sums += (self._sums(kv_len + 2) + 4.0 * u) * o.abs()
        o_error = (pf * e) @ v.abs() + o.abs() * row_e + sums
        of_p = operand**2 * (pf.square() @ v.square())
        peak = p.amax(-1, keepdim=True)
        of_p += (lost * peak).square() * (self.allowed.double() @ v.square())
        roundings = [w * o.abs(), w * (pf @ v.abs())] if a.passes_on else [w * o.abs()]
        o_error += of_p.sqrt() + sum(each + a.quantum * alive.double() for each in roundings)
        found = {"o": o_error, "lse": (lse_stored * alive).squeeze(-1)}
        if self.grad_o is None:
            return found

        # 4. delta
        g = self.grad_o.masked_fill(~alive, 0.0)
        dp, dp_sizes = g @ v.mT, g.abs() @ v.abs().mT
        if self.factor is not None:
            dp, dp_sizes = dp * self.factor, dp_sizes * self.factor
        sizes = (g * o).abs().sum(-1, keepdim=True)
        without_lse = (g * o).sum(-1, keepdim=True)
        delta = without_lse
        delta_error = (p * e * (dp - without_lse).abs()).sum(-1, keepdim=True)
        delta_error += (g.abs() * sums).sum(-1, keepdim=True) + self._products(dim + 1) * sizes
        if self.grad_lse is not None:
            upstream = self.grad_lse[..., None] * alive
            delta, delta_error = delta - upstream, delta_error + 2.0 * u * upstream.abs()
        spread = operand**2 * (p * dp).square().sum(-1, keepdim=True)
        spread += (lost * peak).square() * (dp.square() * self.allowed).sum(-1, keepdim=True)
        of_o = sum(each.square() + a.quantum**2 for each in roundings)
        spread += self.certainty**2 / 3.0 * (g.square() * of_o).sum(-1, keepdim=True)

        # 5. gradients of the scores, and what they are multiplied with
        ds = p * (dp - delta)
        again = score_error + 4.0 * u * (s.abs() + lse.abs()) + a.exp + vanishing
        ds_error = again * (dp - delta).abs() + self._products(dim + 1) * dp_sizes
        ds_error += 4.0 * u * (dp.abs() + delta.abs())
        if a.stores_scores:
            ds_error += 2.0 * w * (dp.abs() + delta.abs())
        ds_error *= p
        of_row = ds_error + lse_kept * ds.abs() + p * delta_error  # all of a row's, by absolute

        group, q_len = ds.shape[:2]
        dq = self.scale * (ds @ k)
        dq_error = ds_error @ k.abs() + self._products(kv_len + 4) * (ds.abs() @ k.abs())
        dq_error += lse_kept * (ds @ k).abs() + (delta_error + spread.sqrt()) * (p @ k).abs()
        squares = operand**2 * (ds.square() @ k.square())
        squares += lost**2 * (self.allowed.double() @ k.square())
        squares += self._partial_sums(ds.mT, k.expand(group, -1, -1))
        found["dq"] = c * (dq_error + squares.sqrt()) + self._stored(dq, alive)

        dk = self.scale * (ds.mT @ q)
        dk_error = of_row.mT @ q.abs() + self._products(q_len + 4) * (ds.abs().mT @ q.abs())
        squares = operand**2 * (ds.square().mT @ q.square())
        squares += lost**2 * (self.allowed.double().mT @ q.square())
        squares += (p.square() * spread).mT @ q.square()
        squares += self._partial_sums(ds, q)
        found["dk"] = (c * (dk_error + squares.sqrt()) + self._stored(dk, used)).sum(0)

        dv = pf.mT @ g
        dv_error = (pf * (again + lse_kept)).mT @ g.abs()
        dv_error += self._products(q_len + 4) * (pf.mT @ g.abs())
        squares = operand**2 * (pf.square().mT @ g.square())
        squares += lost**2 * (self.allowed.double().mT @ g.square())
        squares += self._partial_sums(pf, g)
        found["dv"] = (dv_error + squares.sqrt() + self._stored(dv, used)).sum(0)
        return found

    def _sums(self, terms: int) -> float:
        return self.arithmetic.sums(terms, self.certainty)

    def _products(self, terms: int) -> float:
        return self.arithmetic.sums(terms, self.certainty, products=True)

    def _stored(self, x: torch.Tensor, reached: torch.Tensor) -> torch.Tensor:
        """A few elementwise steps and rounding the result, which is 0 where not `reached`."""
        a = self.arithmetic
        return (4.0 * a.summed + a.stored) * x.abs() + a.quantum * reached.double()

    def _partial_sums(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor | float:
        """What adding up left^T right in 16 bits, by blocks of rows, may add: squares of it.

        left: [G, N, M]; right: [G, N, D].
        """
        if not self.arithmetic.rounds_operands:
            return 0.0
        rows = left.shape[1]
        steps = max(min(_STEPS, rows), math.ceil(rows / _BLOCK))
        ends = [rows * (step + 1) // steps for step in range(steps)]
        total = squares = torch.zeros((), dtype=torch.float64, device=left.device)
        for start, end in zip([0, *ends], ends, strict=False):
            total = total + left[:, start:end].mT @ right[:, start:end]
            squares = squares + total.square()
        return self.arithmetic.stored**2 * self.certainty**2 / 3.0 * squares
