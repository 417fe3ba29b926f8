"""Base class of the peers: published models to compare ours with, which differ in how they read the watched list.

A peer has the inputs of the device model (`pocketrank.device.contract.FeatureSpec`, self-contained form), and returns logits.
It has the same features: pXTRs, duration and category of candidates and of watched items, feedback, gaps and context. It ends
in the same heads, a multi-gate mixture with a tower per task, as Gong et al. (CIKM 2022, section 6.1) added them to EdgeRec,
and has the same residual of the pXTRs: untrained, it orders nearly as the cloud does. It is trained pointwise, with the log
loss of each
task: losses over lists need one label of relevance, and these logs have several.

The published list models rerank candidates that are shown together. A log of impressions holds only what was shown one after
the other; the items after a candidate were shown later, and would reveal its label. The list of a candidate is therefore what
was shown before it, in its order, and then the candidate. Its logits depend on no other candidate.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pocketrank.cloud.data.category_columns import table_columns
from pocketrank.cloud.models.layers import CategoryEmbeddings, MultiGate
from pocketrank.cloud.models.reranker import Normalise, logit
from pocketrank.device.contract import FeatureSpec

__all__ = ["Peer", "PeerConfig", "real_first", "with_shown"]


@dataclass(frozen=True)
class PeerConfig:
    """Widths of a peer; they are those of our model in the same benchmark if our model has them."""

    width: int = 64
    """Width of a candidate before the experts, and of transformer blocks."""
    category_width: int = 8
    """Width of the embedding of a categorical feature."""
    state: int = 32
    """Width of a recurrent network; the default is that of EdgeRec on the devices of Taobao."""
    layers: int = 2
    """Transformer blocks."""
    heads: int = 4
    """Heads of an attention."""
    experts: int = 4
    """Experts of the multi-gate mixture."""
    expert_width: int = 32
    """Width of an expert."""
    towers: tuple[int, ...] = (32,)
    """Widths of the hidden layers of each task's tower."""
    dropout: float = 0.1
    """Dropout between experts and towers, and in transformer blocks."""


class Peer(nn.Module, ABC):
    """Logits of every task. A subclass implements `read`, which returns `read_width` numbers for each candidate."""

    def __init__(self, config: PeerConfig, spec: FeatureSpec, read_width: int) -> None:
        super().__init__()
        c, self.config = config, config
        self.item_floats = Normalise(spec.candidate_floats)
        self.feedback_floats = Normalise(spec.feedback_floats)
        self.context_floats = Normalise(spec.context_floats)
        columns = spec.candidate_categories
        self.categories = CategoryEmbeddings([f.name for f in columns], [f.size for f in columns], c.category_width)
        names = [f.name for f in spec.candidate_floats]
        self.pxtr_at = [names.index(f"pxtr_{task}") for task in spec.tasks]
        item, _ = self.widths(config, spec)
        self.body = nn.Linear(item + len(spec.context_floats) + read_width, c.width)
        self.mixture = MultiGate(c.experts, c.expert_width, c.towers, len(spec.tasks))
        self.entry = nn.Linear(c.width, self.mixture.entry_width)
        self.residual = nn.Parameter(torch.ones(len(spec.tasks)))

    @staticmethod
    def widths(config: PeerConfig, spec: FeatureSpec) -> tuple[int, int]:
        """Return the width of an item, and of the feedback on it."""
        categories = len(table_columns([f.name for f in spec.candidate_categories]))
        item = len(spec.candidate_floats) + categories * config.category_width
        return item, len(spec.feedback_floats) + 2

    @abstractmethod
    def read(
        self,
        candidates: Float[Tensor, "b n i"],
        events: Float[Tensor, "b t i"],
        feedback: Float[Tensor, "b t f"],
        mask: Float[Tensor, "b t"],
    ) -> Float[Tensor, "b n r"]:
        """Return what the peer reads from the watched list for each candidate.

        Events are oldest first; `mask` is 1 for real events.
        """

    def forward(
        self,
        candidate_float: Float[Tensor, "b n fc"],
        candidate_category: Int[Tensor, "b n c"],
        candidate_mask: Float[Tensor, "b n"],
        event_float: Float[Tensor, "b t fc"],
        event_category: Int[Tensor, "b t c"],
        event_feedback: Float[Tensor, "b t fb"],
        event_gap: Float[Tensor, "b t 2"],
        event_mask: Float[Tensor, "b t"],
        context: Float[Tensor, "b fx"],
    ) -> Float[Tensor, "b n k"]:
        """Return the logits at the next place of the list. No candidate depends on another, so `candidate_mask` is not used."""
        candidates = self._items(candidate_float, candidate_category)
        events = self._items(event_float, event_category)
        feedback = torch.cat([self.feedback_floats(event_feedback), torch.log(event_gap + 1) * 0.3 - 1], -1)
        of_list = self.context_floats(context)[:, None].expand(-1, candidates.shape[1], -1)
        read = self.read(candidates, events, feedback, event_mask)
        x = torch.relu(self.body(torch.cat([candidates, of_list, read], -1)))  # b n width
        scores: Tensor = self.mixture(self.entry(x).flatten(0, 1), self.config.dropout)
        pxtr = logit(candidate_float[..., self.pxtr_at])
        return scores.view_as(pxtr) + self.residual * pxtr

    def _items(self, floats: Float[Tensor, "b m fc"], category: Int[Tensor, "b m c"]) -> Float[Tensor, "b m i"]:
        return torch.cat([self.item_floats(floats), *self.categories(category)], -1)


def real_first(
    mask: Float[Tensor, "b t"], *sequences: Float[Tensor, "b t _"]
) -> tuple[Float[Tensor, "b t"], list[Float[Tensor, "b t _"]]]:
    """Move the real entries of mask and sequences to the front, in their order.

    A recurrent network then reads the padding last.
    """
    order = torch.argsort(mask, dim=1, descending=True, stable=True)
    return mask.gather(1, order), [x.gather(1, order[..., None].expand_as(x)) for x in sequences]


def with_shown(
    candidates: Float[Tensor, "b n i"], events: Float[Tensor, "b t i"], mask: Float[Tensor, "b t"]
) -> tuple[Float[Tensor, "bn t1 i"], Float[Tensor, "bn t1"]]:
    """Return a list for each candidate, of what was shown before and then the candidate, and the mask of the list."""
    n = candidates.shape[1]
    shown = torch.cat([events.repeat_interleave(n, 0), candidates.flatten(0, 1)[:, None]], 1)
    return shown, nn.functional.pad(mask.repeat_interleave(n, 0), (0, 1), value=1.0)
