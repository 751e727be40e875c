"""References of ``ops.head``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_kernels.references.arithmetic import to_int8, wide


def pool_fc(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    pooled = wide(x).mean(dim=(2, 3)).to(x.dtype)
    return F.linear(wide(pooled), wide(w)) + b


def pool_fc_int8(x: Tensor, pool_scale: float, w: Tensor, scale: Tensor, b: Tensor) -> Tensor:
    total = x.sum(dim=(2, 3), dtype=torch.int64).to(torch.int32)
    pooled = to_int8(total.float() * torch.tensor(pool_scale, dtype=torch.float32, device=x.device), low=-128)
    sums = (pooled.double() @ w.double().T).round().to(torch.int32)
    return sums.float() * scale + b
