"""Personalised reranking model (Pei et al., RecSys 2019, section 4): a transformer encoder over the list.

It reads the list without feedback; `pocketrank.cloud.models.peers.peer` defines the list. The personalised vector of the paper
is the last hidden layer of a click model that was trained before on the user's history. Here such a model is the full ranker,
and its pXTRs take the place of the vector.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from pocketrank.cloud.models.layers import Embedding
from pocketrank.cloud.models.peers.peer import Peer, PeerConfig, with_shown
from pocketrank.device.contract import FeatureSpec

__all__ = ["Prm"]


class Prm(Peer):
    """The candidate's place in the encoded list. Positions are counted back from the candidate."""

    def __init__(self, config: PeerConfig, spec: FeatureSpec) -> None:
        c = config
        super().__init__(config, spec, c.width)
        self.input = nn.Linear(self.widths(config, spec)[0], c.width)
        self.place = Embedding(spec.events_max + 1, c.width)
        block = nn.TransformerEncoderLayer(c.width, c.heads, 2 * c.width, c.dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(block, c.layers, enable_nested_tensor=False)

    def read(
        self,
        candidates: Float[Tensor, "b n i"],
        events: Float[Tensor, "b t i"],
        feedback: Float[Tensor, "b t f"],
        mask: Float[Tensor, "b t"],
    ) -> Float[Tensor, "b n r"]:
        """Return the encoded candidate. `feedback` is not used."""
        shown, real = with_shown(candidates, events, mask)
        # Distance of each place from the candidate, in real places.
        back = (real.flip(1).cumsum(1).flip(1) - 1).clamp(0, len(self.place.weight) - 1).long()
        encoded = self.encoder(self.input(shown) + self.place(back), src_key_padding_mask=real == 0)
        last: Tensor = encoded[:, -1]
        return last.view(*candidates.shape[:2], -1)
