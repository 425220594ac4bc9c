"""What happens to a chunk between the products of the loss, elementwise: from dot products to losses and to g.

Symbols of the shape comments: C tokens of one chunk, V classes, D hidden size. With z of `heads.Form`, an additive
log prior b and the options of the loss,

    loss_i = logsumexp_j z_ij - (1 - e) z_iy - (e / V) sum_j z_ij + c (logsumexp_j z_ij)^2
    g_ij   = weight_i (a_i p_ij - e / V - (1 - e) [j = y]) dz_ij/du_ij,    a_i = 1 + 2 c logsumexp_j z_ij

where e is the label smoothing and c the coefficient of the z-loss. What is off costs no pass. Logits are in base 2:
exp2 is the cheaper exponential.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .harmonic_logits import RELATIVE_FLOOR, TINY
from .heads import LOG2_E

# Bytes of the rows that the element passes work on at a time: on the CPU small enough for its cache
BLOCK_BYTES = 2**19
CUDA_BLOCK_BYTES = 256 * 2**20


class Formula(NamedTuple):
    """How logits and loss come from the inner quantity: the head's form with its numbers, and the loss's options.

    quantity, curve, rate: of `heads.Form`; a learned rate is a tensor () or (1,). bias: (V,), log prior in base 2.
    """

    quantity: str
    curve: str
    rate: float | Tensor
    bias: Tensor | None = None
    label_smoothing: float = 0.0
    z_loss: float = 0.0

    @property
    def euclidean(self) -> bool:
        """u = (a term of x) + (a term of w) - 2 x.w, and not x.w."""
        return self.quantity != "dot"

    @property
    def slope(self) -> float | Tensor:
        """dz/du = slope / divisor. The divisor of each curve: log u, root t, linear 1, log_arcosh d sinh d."""
        return self.rate / {"log": 1.0, "root": 2 * LOG2_E, "linear": LOG2_E, "log_arcosh": 2.0}[self.curve]


class Needs(NamedTuple):
    """Whose gradients are asked for. What is not costs nothing."""

    x: bool = False
    w: bool = False
    bias: bool = False
    rate: bool = False


class LossAndGradients(NamedTuple):
    """Losses (N,) of every token, unweighted; gradients of their weighted sum, None if not asked for. x (N, D),
    w (V, D), bias (V,) and rate () of the formula."""

    losses: Tensor
    x: Tensor | None = None
    w: Tensor | None = None
    bias: Tensor | None = None
    rate: Tensor | None = None


def norm_terms(rows: Tensor, squared_norms: Tensor, formula: Formula, sign: int) -> Tensor:
    """What u has of one side alone, (rows,): its squared norms, or of a lifted side (`heads.lifted`) 2 (x_0 - 1)."""
    if formula.quantity != "lorentz":
        return squared_norms
    return rows[:, -1].to(squared_norms.dtype).mul(2 * sign)


def add_term_gradient(gradient: Tensor, rows: Tensor, sums: Tensor, formula: Formula, sign: int) -> None:
    """Add to the gradient of `rows` what comes through `norm_terms`, sums (rows,) being dL/d(terms)."""
    if formula.quantity == "lorentz":
        gradient[:, -1].add_(sums, alpha=2 * sign)
    else:
        gradient.addcmul_(rows, 2 * sums[:, None])


def _floor(u: Tensor, x2: Tensor, w2: Tensor, highest: Tensor, formula: Formula) -> tuple[Tensor, Tensor | None]:
    """Raise u (C, V) to its floor, in place. Returns the extreme of each row (C, 1) that has the largest t rate (of |s|
    for logarithms of dot products), and where the floor acted (None: nowhere). highest (C, 1): no distance's floor in
    the row exceeds it."""
    if formula.quantity == "dot":
        if formula.curve == "linear":
            return u.amax(1, keepdim=True), None
        floor = (x2[:, None] * w2).sqrt_().mul_(RELATIVE_FLOOR).add_(TINY)
        floored = u.abs() <= floor
        u.copy_(torch.where(floored, floor, u))
        return u.abs().amax(1, keepdim=True), floored
    smallest = u.amin(1, keepdim=True)
    # Usually no distance comes near its floor, and the minimum proves it. (Written so that a NaN takes the long way,
    # and stays a NaN. A GPU would have to stop for the answer.)
    if not u.is_cuda and (smallest > highest).all():
        return smallest, None
    floor = (x2[:, None] + w2).mul_(RELATIVE_FLOOR).add_(TINY)
    floored = u <= floor
    u.copy_(torch.where(floored, floor, u))
    return u.amin(1, keepdim=True), floored


def _arcosh(half: Tensor, sinh: Tensor) -> Tensor:
    """d of cosh d = 1 + half, with all digits of small ones, in place of `half`; sinh d into `sinh`."""
    torch.add(half, 2, out=sinh).mul_(half).sqrt_()
    return half.add_(sinh).log1p_()


def transform(u: Tensor, formula: Formula) -> Tensor:
    """t(u) of the form, elementwise; a new tensor, or u itself."""
    match formula.curve:
        case "log":
            return torch.log2(u.abs() if formula.quantity == "dot" else u)
        case "root":
            return torch.sqrt(u)
        case "log_arcosh":
            return _arcosh(u / 2, torch.empty_like(u)).log2_()
        case _:
            return u


def _transform_block(v: Tensor, buffer: Tensor, formula: Formula) -> tuple[Tensor, Tensor | None]:
    """t(u) and dz/du's divisor (None: 1) of u in v: one in v, the other in the buffer."""
    match formula.curve:
        case "log":
            return torch.log2(v.abs() if formula.quantity == "dot" else v, out=buffer), v
        case "root":
            t = torch.sqrt(v, out=buffer)
            return t, v.copy_(t)  # the divisor is needed after t is overwritten
        case "log_arcosh":
            d = _arcosh(v.mul_(0.5), buffer)
            divisor = buffer.mul_(d)
            return d.log2_(), divisor
        case _:
            return v, None


def _affine(offset: Tensor, t: Tensor, rate: float | Tensor, out: Tensor) -> Tensor:
    """offset + rate t. A rate that is a tensor lies on a GPU, which the host does not wait for."""
    if isinstance(rate, Tensor):
        return torch.addcmul(offset, t, rate, out=out)
    return torch.add(offset, t, alpha=rate, out=out)


class Sides(NamedTuple):
    """What the elementwise passes know of the rows of x (C,) and w (V,): squared norms and terms (`norm_terms`)."""

    x2: Tensor
    w2: Tensor
    x_term: Tensor
    w_term: Tensor


class Asked(NamedTuple):
    """What the passes form beside g. rate: its gradient, as one number a row. bias (V,): its gradient, and column_sums
    (V,): sums of row_factor times the rounded g, of euclidean formulas; added to in place where they are not None."""

    rate: bool = False
    bias: Tensor | None = None
    column_sums: Tensor | None = None


class Elements(NamedTuple):
    """What comes out.

    losses (C,). g (C, V), with row_factor g = row_weight dL/du: kept apart because x costs less to multiply by it than
    g. row_sums (C,): sums of the rounded g, for euclidean formulas. rates (C,): row_weight dL/drate, if asked for.
    """

    losses: Tensor
    g: Tensor | None = None
    row_factor: Tensor | None = None
    row_sums: Tensor | None = None
    rates: Tensor | None = None


def element_pass(
    u: Tensor,
    sides: Sides,
    labels: Tensor,
    row_weight: Tensor,
    formula: Formula,
    gradient_dtype: torch.dtype | None,
    asked: Asked = Asked(),
) -> Elements:
    """Everything between the products of one chunk.

    Args:
        u: (C, V), overwritten: x.w.
        labels, row_weight: (C,).
        gradient_dtype: dtype that g is rounded to; None: losses only.
    """
    n_rows, n_classes = u.shape
    x2, w2, x_term, w_term = sides
    rate, bias, smoothing, z_loss = formula.rate, formula.bias, formula.label_smoothing, formula.z_loss
    # As many rows at a time as stay in the processor's cache; a GPU wants few, large launches
    block_bytes = CUDA_BLOCK_BYTES if u.is_cuda else BLOCK_BYTES
    block = max(1, min(n_rows, block_bytes // (n_classes * u.itemsize)))
    buffer = u.new_empty(block, n_classes)
    e_buffer = u.new_empty(block, n_classes) if asked.rate else None  # t is kept, and e has its own place
    mean_bias = 0.0 if bias is None else bias.mean()
    # Columns (C, 1): what needs one number a row is done once for the chunk, before the blocks or after them
    labels, weight = labels[:, None], formula.slope * row_weight[:, None]
    highest_floor = (RELATIVE_FLOOR * (x2 + w2.max()) + TINY)[:, None]
    tops, z_labels, e_labels, others, total, mean_z, row_factor = (u.new_empty(n_rows, 1) for _ in range(7))
    row_sums, rates = (u.new_empty(n_rows) for _ in range(2))
    g = u if gradient_dtype in (None, u.dtype) else u.new_empty(u.shape, dtype=gradient_dtype)
    for start in range(0, n_rows, block):
        rows = slice(start, min(start + block, n_rows))
        v, y = u[rows], labels[rows]  # (block, V), (block, 1)
        if formula.euclidean:
            torch.add(w_term, v, alpha=-2, out=v).add_(x_term[rows, None])
        extreme, floored = _floor(v, x2[rows], w2, highest_floor[rows], formula)
        t, divisor = _transform_block(v, buffer[: len(v)], formula)
        t_label = t.gather(1, y)
        z_labels[rows] = rate * t_label  # base 2, as `tops`
        if smoothing:
            mean_z[rows] = rate * t.mean(1, keepdim=True) + mean_bias
        e = t if e_buffer is None else e_buffer[: len(v)]
        if bias is None:
            top = rate * transform(extreme, formula)  # largest logit
            _affine(-top, t, rate, out=e).exp2_()
        else:
            z_labels[rows] += bias[y]
            top = _affine(bias, t, rate, out=e).amax(1, keepdim=True)
            e.sub_(top).exp2_()
        tops[rows] = top
        # The label is kept out of the sum: 1 - p_y = others / total and loss = log1p(others / e_y) stay exact as p_y
        # nears 1
        e_label = e.gather(1, y)
        rest = torch.sum(e.scatter_(1, y, 0), 1, keepdim=True, out=others[rows])
        total[rows] = rest + e_label
        e_labels[rows] = e_label
        if gradient_dtype is None:
            continue
        torch.div(weight[rows], total[rows], out=row_factor[rows])
        q_label = -rest  # total dL/dz of the label; of the others it is e
        if smoothing:
            q_label = q_label + (smoothing - smoothing / n_classes) * total[rows]
        if z_loss:
            log_total = total[rows].log() + top / LOG2_E
            q_label = q_label + 2 * z_loss * log_total * e_label
            e.mul_(1 + 2 * z_loss * log_total)
        if smoothing:
            e.sub_(smoothing / n_classes * total[rows])
        if asked.rate or asked.bias is not None:
            share = row_weight[rows, None] / (total[rows] * LOG2_E)  # of q in base 2
            if smoothing:
                e.scatter_(1, y, 0)
            if asked.rate:
                products = t.mul_(e).sum(1, keepdim=True) + q_label * t_label  # t is not needed again
                rates[rows] = (share * products).squeeze(1)
            if asked.bias is not None:
                e.scatter_(1, y, q_label)
                asked.bias.add_(torch.mv(e.mT, share.squeeze(1)))
        if divisor is None:
            e = e if e is v else v.copy_(e)
            e.scatter_(1, y, q_label)
        else:
            g_label = q_label / divisor.gather(1, y)
            torch.div(e, divisor, out=v).scatter_(1, y, g_label)
            if floored is not None:
                v.masked_fill_(floored, 0)
        if g is not u:
            g[rows] = v
            v = g[rows].to(u.dtype)
        if formula.euclidean:
            torch.sum(v, 1, out=row_sums[rows])
            if asked.column_sums is not None:
                asked.column_sums.addmv_(v.mT, row_factor[rows, 0])
    log_total = total.log() + tops / LOG2_E
    # e_label may have underflowed
    losses = torch.where(e_labels > 0.5, torch.log1p(others / e_labels), log_total - z_labels / LOG2_E)
    if smoothing:
        losses += (smoothing / LOG2_E) * (z_labels - mean_z)
    if z_loss:
        losses += z_loss * log_total.square()
    losses, row_factor = losses.squeeze(1), row_factor.squeeze(1)
    if gradient_dtype is None:
        return Elements(losses)
    return Elements(losses, g, row_factor, row_sums, rates)
