"""EdgeRec's reranker (Gong et al., CIKM 2020, arXiv 2005.08416, section 3.3), with multi-gate heads as CIKM 2022 compared it.

The paper has two kinds of behaviour, exposures and visits of an item's page; here there is one, an impression of a full-screen
feed. The candidate network of the paper reads the ranked list; the list here has one place, so that the network does one step
from a zero state for each candidate.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pocketrank.cloud.models.layers import MASKED
from pocketrank.cloud.models.peers.peer import Peer, PeerConfig, real_first
from pocketrank.device.contract import FeatureSpec

__all__ = ["EdgeRec"]


class EdgeRec(Peer):
    """Recurrent networks over items and over behaviour, and attention of the candidate with the items as keys."""

    def __init__(self, config: PeerConfig, spec: FeatureSpec) -> None:
        width = config.state
        super().__init__(config, spec, 3 * width)
        item, feedback = self.widths(config, spec)
        self.items = nn.GRU(item, width, batch_first=True)
        self.behaviour = nn.GRU(feedback, width, batch_first=True)
        self.candidates = nn.GRU(item, width, batch_first=True)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.energy = nn.Linear(width, 1, bias=False)

    def read(
        self,
        candidates: Float[Tensor, "b n i"],
        events: Float[Tensor, "b t i"],
        feedback: Float[Tensor, "b t f"],
        mask: Float[Tensor, "b t"],
    ) -> Float[Tensor, "b n r"]:
        """Return the candidate's state, and the attended pairs of item and behaviour, which are zero without an event."""
        mask, (events, feedback) = real_first(mask, events, feedback)
        items, behaviour = self.items(events)[0], self.behaviour(feedback)[0]  # b t w
        local = self.candidates(candidates.flatten(0, 1)[:, None])[0].view(*candidates.shape[:2], -1)  # b n w
        # Additive attention: v tanh(W query + U key) (Bahdanau et al., ICLR 2015, A.1.2)
        energy = self.energy(torch.tanh(self.query(local)[:, :, None] + self.key(items)[:, None]))[..., 0]  # b n t
        mask = mask[:, None]
        share = torch.softmax(energy + (1 - mask) * MASKED, -1) * mask  # b n t
        return torch.cat([local, share @ torch.cat([items, behaviour], -1)], -1)
