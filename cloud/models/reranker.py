"""The upper half: the light transformer that runs on the device.

Target attention of every candidate over the feedback events, attention among the candidates, one output per task (after Gong
et al., CIKM 2022, section 4; EdgeRec, CIKM 2020). The pXTRs enter a second time as a residual: untrained, the model orders as
the cloud does. Two forms from one config: *split* takes the cloud's vectors, *self-contained* does without.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from cloud.models.layers import Attention, Embedding, attend, join_heads, mlp, split_heads
from device.contract import FeatureSpec, FloatFeature

__all__ = ["Normalise", "UpperConfig", "UpperHalf", "logit"]

EVENT_EXTRAS = 3 + 2
"""Inputs of an event beside its item and its feedback: shares of the item watched, and the gap."""
PXTR_MIN = 1e-4
"""pXTRs are clipped to this and to one minus this before a logit."""


@dataclass(frozen=True)
class UpperConfig:
    """Widths of the device model."""

    width: int = 64
    """Of a candidate, an event and the context."""
    category_width: int = 8
    """Embedding of a categorical feature."""
    heads: int = 4
    """Attention heads."""
    head_width: int = 16
    """Width of a head."""
    hidden: int = 64
    """The tower under the task heads."""
    dropout: float = 0.1
    """In the tower."""


def logit(p: Float[Tensor, "*b k"]) -> Float[Tensor, "*b k"]:
    """Log odds of probabilities, finite at 0 and 1."""
    p = p.clamp(PXTR_MIN, 1 - PXTR_MIN)
    return torch.log(p / (1 - p))


class Normalise(nn.Module):
    """Raw feature values to about zero mean and unit variance: logit for pXTRs, log1p for long ranges, then standardise.

    Standardising is affine and is folded into the linear layer that follows (`fold`), so the model only bends the curves.
    """

    WIDE = 30.0
    """A feature whose largest value is at least this is taken as a logarithm."""
    LOGIT = 6.9067548
    """Logits are clipped to plus and minus this: that of a pXTR of .001."""

    def __init__(self, features: tuple[FloatFeature, ...]) -> None:
        super().__init__()
        self.kinds: list[tuple[str, int]] = []  # (kind, columns), neighbours of a kind together
        for f in features:
            kind = "logit" if f.name.startswith("pxtr_") else "log" if f.max >= self.WIDE else "plain"
            if self.kinds and self.kinds[-1][0] == kind:
                self.kinds[-1] = (kind, self.kinds[-1][1] + 1)
            else:
                self.kinds.append((kind, 1))
        self.register_buffer("shift", torch.zeros(len(features)))
        self.register_buffer("scale", torch.ones(len(features)))
        self.shift: Tensor
        self.scale: Tensor

    def curves(self, x: Float[Tensor, "*b f"]) -> list[Float[Tensor, "*b _"]]:
        """The values before standardising: neighbouring columns, to be concatenated in this order."""
        parts = []
        # LiteRT's converter takes no split into one part
        columns = torch.split(x, [n for _, n in self.kinds], -1) if len(self.kinds) > 1 else (x,)
        for (kind, _), part in zip(self.kinds, columns, strict=True):
            if kind == "logit":
                part = logit(part).clamp(-self.LOGIT, self.LOGIT)
            elif kind == "log":
                part = torch.log(part + 1)
            parts.append(part)
        return parts

    def fit(self, x: Float[Tensor, "n f"]) -> None:
        """Take shift and scale from a sample of raw values."""
        y = torch.cat(self.curves(x), -1)
        self.shift.copy_(y.mean(0))
        self.scale.copy_(1 / y.std(0).clamp(min=1e-2))

    def fold(
        self, weight: Float[Tensor, "w i"], bias: Float[Tensor, " w"], first: int
    ) -> tuple[Float[Tensor, "w i"], Float[Tensor, " w"]]:
        """A linear layer for standardised values as one for `curves`, which are its inputs from `first` on."""
        own = weight[:, first : first + len(self.scale)] * self.scale
        return torch.cat([weight[:, :first], own, weight[:, first + len(self.scale) :]], 1), bias - own @ self.shift


class _Weights(NamedTuple):
    """The upper half's weights as `logits` uses them: derived from the parameters, merged to make few and large products."""

    candidate: Tensor
    candidate_bias: Tensor
    event: Tensor
    event_bias: Tensor
    context: Tensor
    context_bias: Tensor
    from_candidate: Tensor  # the queries of both attentions, then key and value of the list's
    from_candidate_bias: Tensor
    event_null: Tensor
    candidate_null: Tensor
    tower: Tensor  # what the tower's first layer takes of candidate and attentions
    tower_context: Tensor  # and of the context, which is one row a list


class UpperHalf(nn.Module):
    """Probabilities of every task for the candidates of a list; inputs as in `device.contract.FeatureSpec`."""

    def __init__(self, config: UpperConfig, spec: FeatureSpec, *, split: bool) -> None:
        super().__init__()
        c, tasks = config, len(spec.tasks)
        self.split, self.tasks = split, tasks
        self.vector_width = spec.vector_width if split else 0
        self.item_floats = Normalise(spec.candidate_floats)
        self.feedback_floats = Normalise(spec.feedback_floats)
        self.context_floats = Normalise(spec.context_floats)
        self.categories = nn.ModuleList([Embedding(f.size, c.category_width) for f in spec.candidate_categories])
        vector = self.vector_width
        item = len(spec.candidate_floats) + c.category_width * len(spec.candidate_categories) + vector
        names = [f.name for f in spec.candidate_floats]
        feedback = [f.name for f in spec.feedback_floats]
        self.watch, self.duration = feedback.index("watch_ms"), names.index("duration_ms")
        ranges = torch.tensor([[spec.candidate_floats[self.duration].max + 1, 7.0, 18.0], [2.0, 1.0, 1.0]])
        self.register_buffer("share_of", ranges[0], persistent=False)
        self.register_buffer("share_max", ranges[1], persistent=False)
        self.share_of: Tensor
        self.share_max: Tensor
        self.pxtr = [names.index(f"pxtr_{task}") for task in spec.tasks]
        self.candidate = nn.Linear(item + vector, c.width)
        self.event = nn.Linear(item + len(feedback) + EVENT_EXTRAS, c.width)
        self.feedback_attention = Attention(c.width, c.width, c.heads, c.head_width)
        self.list_attention = Attention(c.width, c.width, c.heads, c.head_width)
        inner = c.heads * c.head_width
        self.context = nn.Linear(len(spec.context_floats) + vector, c.width)
        self.tower = mlp([c.width + 2 * inner + c.width, c.hidden, c.hidden], c.dropout)
        self.heads = nn.Linear(c.hidden, tasks)
        with torch.no_grad():
            self.heads.weight.mul_(0.1)
        self.residual = nn.Parameter(torch.ones(tasks))

    def start_from(self, other: UpperHalf) -> None:
        """Take over what a trained self-contained form knows; the weights of the cloud's vectors start at zero."""
        mine, theirs = self.state_dict(), other.state_dict()
        for name, value in theirs.items():
            if mine[name].shape == value.shape:
                mine[name].copy_(value)
        with torch.no_grad():
            vector = self.vector_width
            item = other.candidate.in_features
            self.candidate.weight.zero_()[:, :item] = other.candidate.weight
            rest = other.event.in_features - item
            self.event.weight.zero_()[:, :item] = other.event.weight[:, :item]
            self.event.weight[:, item + vector : item + vector + rest] = other.event.weight[:, item:]
            self.context.weight.zero_()[:, : other.context.in_features] = other.context.weight

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
        candidate_vector: Float[Tensor, "b n d"] | None = None,
        event_vector: Float[Tensor, "b t d"] | None = None,
        user_vector: Float[Tensor, "b d"] | None = None,
    ) -> Float[Tensor, "b n k"]:
        """Probabilities."""
        return torch.sigmoid(
            self.logits(
                candidate_float,
                candidate_category,
                candidate_mask,
                event_float,
                event_category,
                event_feedback,
                event_gap,
                event_mask,
                context,
                candidate_vector,
                event_vector,
                user_vector,
            )
        )

    def logits(
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
        candidate_vector: Float[Tensor, "b n d"] | None = None,
        event_vector: Float[Tensor, "b t d"] | None = None,
        user_vector: Float[Tensor, "b d"] | None = None,
    ) -> Float[Tensor, "b n k"]:
        """The same before the sigmoid, for training."""
        b, n, t = len(context), candidate_float.shape[1], event_float.shape[1]
        w = self._frozen() or self._weights()
        parts = self._item(candidate_float, candidate_category, candidate_vector)
        ctx = self.context_floats.curves(context)
        if self.split:
            assert candidate_vector is not None
            assert user_vector is not None
            parts.append(candidate_vector * user_vector[:, None])
            ctx.append(user_vector)
        # Linear layers run on two axes: converters then fuse them with bias and ReLU.
        candidate = torch.relu(linear(torch.cat(parts, -1).flatten(0, 1), w.candidate, w.candidate_bias))  # bn w

        # how much of the item was watched, on three scales: of the whole, of 7 s (effective view) and of 18 s (long view)
        watched = event_feedback[..., self.watch : self.watch + 1]
        duration = event_float[..., self.duration : self.duration + 1] + 0.5
        share = torch.minimum(watched / torch.minimum(duration, self.share_of), self.share_max)  # b t 3
        parts = [*self._item(event_float, event_category, event_vector), *self.feedback_floats.curves(event_feedback)]
        parts += [share, torch.log(event_gap + 1) * 0.3]
        event = torch.relu(linear(torch.cat(parts, -1).flatten(0, 1), w.event, w.event_bias))  # bt w

        heads = self.feedback_attention.heads
        of_event = self.feedback_attention.key_value(event).view(b, t, -1)
        of_event = torch.cat([w.event_null.expand(b, -1, -1, -1), split_heads(of_event, 2 * heads)], 2)  # b 2h t+1 hw
        of_candidate = split_heads(linear(candidate, w.from_candidate, w.from_candidate_bias).view(b, n, -1), 4 * heads)
        query, list_query, of_list = torch.split(of_candidate, [heads, heads, 2 * heads], 1)
        of_list = torch.cat([w.candidate_null.expand(b, -1, -1, -1), of_list], 2)  # b 2h n+1 hw
        attended = [attend(query, of_event, event_mask), attend(list_query, of_list, candidate_mask)]  # b h n hw each

        x = torch.cat([candidate, join_heads(torch.cat(attended, 1)).flatten(0, 1)], -1)  # bn w+2hw
        shared = torch.relu(linear(torch.cat(ctx, -1), w.context, w.context_bias))
        shared = linear(shared, w.tower_context, self._entry.bias)[:, None]  # b 1 hidden
        x = (linear(x, w.tower).view(b, n, -1) + shared).flatten(0, 1)
        delta: Tensor = self.heads(torch.relu(self.tower[1:](x))).view(b, n, -1)
        pxtr = candidate_float[..., self.pxtr[0] : self.pxtr[-1] + 1]
        return delta + self.residual * logit(pxtr)

    @property
    def _entry(self) -> nn.Linear:
        first = self.tower[0]
        assert isinstance(first, nn.Linear)
        return first

    def freeze(self) -> UpperHalf:
        """Compute the derived weights once and for all, for export; the model must not be trained afterwards."""
        with torch.no_grad():
            for name, value in self._weights()._asdict().items():
                self.register_buffer(f"frozen_{name}", value.clone(), persistent=False)
        return self

    def _frozen(self) -> _Weights | None:
        if not hasattr(self, "frozen_tower"):
            return None
        return _Weights(*[getattr(self, f"frozen_{name}") for name in _Weights._fields])

    def _weights(self) -> _Weights:
        feedback, of_list = self.feedback_attention, self.list_attention
        item = self.event.in_features - len(self.feedback_floats.scale) - EVENT_EXTRAS
        event, event_bias = self.item_floats.fold(self.event.weight, self.event.bias, 0)
        event, event_bias = self.feedback_floats.fold(event, event_bias, item)
        candidate, candidate_bias = self.item_floats.fold(self.candidate.weight, self.candidate.bias, 0)
        context, context_bias = self.context_floats.fold(self.context.weight, self.context.bias, 0)
        query, query_bias = feedback.scaled_query()
        list_query, list_query_bias = of_list.scaled_query()
        entry = self._entry
        cut = entry.in_features - self.context.out_features
        return _Weights(
            candidate=candidate,
            candidate_bias=candidate_bias,
            event=event,
            event_bias=event_bias,
            context=context,
            context_bias=context_bias,
            from_candidate=torch.cat([query, list_query, of_list.key_value.weight]),
            from_candidate_bias=torch.cat([query_bias, list_query_bias, of_list.key_value.bias]),
            event_null=feedback.null_key_value(),
            candidate_null=of_list.null_key_value(),
            tower=entry.weight[:, :cut],
            tower_context=entry.weight[:, cut:],
        )

    def _item(
        self, floats: Float[Tensor, "b m fc"], category: Int[Tensor, "b m c"], vector: Float[Tensor, "b m d"] | None
    ) -> list[Float[Tensor, "b m _"]]:
        parts = self.item_floats.curves(floats)
        # a view where there is one category: converters make a copy of an index
        codes = [category.flatten(1)] if len(self.categories) == 1 else category.unbind(-1)
        parts += [table(code) for table, code in zip(self.categories, codes, strict=True)]
        if self.split:
            assert vector is not None
            parts.append(vector)
        return parts
