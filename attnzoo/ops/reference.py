"""The operators in plain PyTorch: the fallback on every device, and the authority in float64."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Multi-scale deformable attention (Zhu et al., Deformable DETR, arXiv:2010.04159, equation 3).

    - `value`: (B, S, M, D), the levels concatenated, S = Σ h·w
    - `spatial_shapes`: (h, w) per level
    - `sampling_locations`: (B, Q, M, L, P, 2), x then y, [0, 1] over the map, pixel centres at (i + ½) / size
    - `attention_weights`: (B, Q, M, L, P)

    Bilinear samples, zero outside the map; a point with a NaN or infinite coordinate lies outside. Returns
    (B, Q, M·D).
    """
    batch, _, heads, head_dim = value.shape
    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    # One size of map beyond the border nothing is sampled, so NaN and huge numbers can be moved there.
    grid = 2 * sampling_locations.nan_to_num(nan=-1.0).clamp(-1.0, 2.0) - 1
    maps = value.split([h * w for h, w in spatial_shapes], dim=1)
    output = value.new_zeros(batch * heads, head_dim, queries)
    for level, (h, w) in enumerate(spatial_shapes):
        level_map = maps[level].permute(0, 2, 3, 1).reshape(batch * heads, head_dim, h, w)
        level_grid = grid[:, :, :, level].transpose(1, 2).reshape(batch * heads, queries, points, 2)
        weights = attention_weights[:, :, :, level].transpose(1, 2).reshape(batch * heads, 1, queries, points)
        samples = F.grid_sample(level_map, level_grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        output = output + (samples * weights).sum(-1)
    return output.reshape(batch, heads * head_dim, queries).transpose(1, 2).contiguous()
