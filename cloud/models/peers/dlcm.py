"""Deep listwise context model (Ai et al., SIGIR 2018, section 4): a recurrent network encodes the list, a local product scores.

It reads the list without feedback. The paper reads the ranked list from its end, so that the best items come last and have the
greatest weight; here the candidate is last (`pocketrank.cloud.models.peers.peer`).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pocketrank.cloud.models.peers.peer import Peer, PeerConfig, real_first
from pocketrank.device.contract import FeatureSpec

__all__ = ["Dlcm"]


class Dlcm(Peer):
    """Products of the candidate's output of the recurrent network with the final state of the list (equation 6)."""

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
        """Return the products and the state. `feedback` is not used."""
        b, n, _ = candidates.shape
        mask, (events,) = real_first(mask, events)
        states = nn.functional.pad(self.encode(events)[0], (0, 0, 1, 0))  # b t+1 w; the first state is zero
        length = mask.sum(1).long()
        # The state before the candidate is that after the last real event.
        before = states[torch.arange(b), length].repeat_interleave(n, 0)[None]  # 1 bn w
        state = self.encode(candidates.flatten(0, 1)[:, None], before)[0][:, 0]  # bn w
        # Equation 6: the output o of the candidate, mapped by tanh(W o + b) to a matrix, times the final state of the list. The
        # candidate is the last of the list, so that both are its state.
        local = torch.tanh(self.local(state)).view(b * n, -1, state.shape[1])  # bn w w
        products = (local @ state[..., None])[..., 0]  # bn w
        return torch.cat([products, state], -1).view(b, n, -1)
