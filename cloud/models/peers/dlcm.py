"""Deep listwise context model (Ai et al., SIGIR 2018, section 4): a recurrent network encodes the list, a local product scores.

It knows the list and no feedback. The paper reads the ranked list from its end, so that the best come last and weigh most; here
the candidate comes last (`pocketrank.cloud.models.peers.peer`).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pocketrank.cloud.models.peers.peer import Peer, PeerConfig, real_first
from pocketrank.device.contract import FeatureSpec

__all__ = ["Dlcm"]


class Dlcm(Peer):
    """The candidate's output of the network, multiplied with the list's final state in several ways (equation 6)."""

    def __init__(self, config: PeerConfig, spec: FeatureSpec) -> None:
        width = config.state
        super().__init__(config, spec, 2 * width)
        self.encode = nn.GRU(self.widths(config, spec)[0], width, batch_first=True)
        self.local = nn.Linear(width, width * width)

    def read(
        self,
        candidates: Float[Tensor, "b n i"],
        events: Float[Tensor, "b t i"],
        feedback: Float[Tensor, "b t f"],
        mask: Float[Tensor, "b t"],
    ) -> Float[Tensor, "b n r"]:
        """The products and the state. `feedback` is not looked at."""
        b, n, _ = candidates.shape
        mask, (events,) = real_first(mask, events)
        states = nn.functional.pad(self.encode(events)[0], (0, 0, 1, 0))  # b t+1 w, from zeros on
        length = mask.sum(1).long()
        before = states[torch.arange(b), length].repeat_interleave(n, 0)[None]  # 1 bn w
        state = self.encode(candidates.flatten(0, 1)[:, None], before)[0][:, 0]  # bn w
        local = torch.tanh(self.local(state)).view(b * n, -1, state.shape[1])
        products = (local @ state[..., None])[..., 0]
        return torch.cat([products, state], -1).view(b, n, -1)
