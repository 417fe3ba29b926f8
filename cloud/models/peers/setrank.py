"""SetRank (Pang et al., SIGIR 2020, section 3): self-attention blocks over the list as a set.

It reads the list without feedback; `pocketrank.cloud.models.peers.peer` defines the list. The ordinal embedding of the paper is
optional; without it the order of what was shown does not matter. Its induced blocks are for longer lists than these.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor, nn

from pocketrank.cloud.models.peers.peer import Peer, PeerConfig, with_shown
from pocketrank.device.contract import FeatureSpec

__all__ = ["SetRank"]


class SetRank(Peer):
    """The candidate's element of the encoded set."""

    def __init__(self, config: PeerConfig, spec: FeatureSpec) -> None:
        super().__init__(config, spec, config.width)
        self.input = nn.Linear(self.widths(config, spec)[0], config.width)
        self.blocks = nn.ModuleList([_Block(config) for _ in range(config.layers)])

    def read(
        self,
        candidates: Float[Tensor, "b n i"],
        events: Float[Tensor, "b t i"],
        feedback: Float[Tensor, "b t f"],
        mask: Float[Tensor, "b t"],
    ) -> Float[Tensor, "b n r"]:
        """Return the encoded candidate. `feedback` is not used."""
        shown, real = with_shown(candidates, events, mask)
        x: Tensor = self.input(shown)
        for block in self.blocks:
            x = block(x, real == 0)
        return x[:, -1].view(*candidates.shape[:2], -1)


class _Block(nn.Module):
    """Multi-head self-attention block (equation 7): attention and a feed-forward layer, each with residual and layer norm."""

    def __init__(self, config: PeerConfig) -> None:
        super().__init__()
        c = config
        self.attention = nn.MultiheadAttention(c.width, c.heads, c.dropout, batch_first=True)
        self.feed = nn.Sequential(nn.Linear(c.width, c.width), nn.ReLU(), nn.Linear(c.width, c.width))
        self.norms = nn.ModuleList([nn.LayerNorm(c.width), nn.LayerNorm(c.width)])

    def forward(self, x: Float[Tensor, "b t w"], padding: Bool[Tensor, "b t"]) -> Float[Tensor, "b t w"]:
        x = self.norms[0](x + self.attention(x, x, x, key_padding_mask=padding, need_weights=False)[0])
        out: Tensor = self.norms[1](x + self.feed(x))
        return out
