"""Simple network with real-time features (Gong et al., CIKM 2022, section 6.1): it pools the feedback, without attention."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pocketrank.cloud.models.peers.peer import Peer, PeerConfig
from pocketrank.device.contract import FeatureSpec

__all__ = ["SimpleDnn"]


class SimpleDnn(Peer):
    """Mean of the embedded events, and their number."""

    def __init__(self, config: PeerConfig, spec: FeatureSpec) -> None:
        super().__init__(config, spec, config.width + 1)
        self.event = nn.Linear(sum(self.widths(config, spec)), config.width)

    def read(
        self,
        candidates: Float[Tensor, "b n i"],
        events: Float[Tensor, "b t i"],
        feedback: Float[Tensor, "b t f"],
        mask: Float[Tensor, "b t"],
    ) -> Float[Tensor, "b n r"]:
        """Return the mean, and the logarithm of the number of events; they are the same for all candidates."""
        embedded = torch.relu(self.event(torch.cat([events, feedback], -1))) * mask[..., None]
        count = mask.sum(1, keepdim=True)
        pooled = torch.cat([embedded.sum(1) / count.clamp(min=1), torch.log1p(count) / 4], -1)
        return pooled[:, None].expand(-1, candidates.shape[1], -1)
