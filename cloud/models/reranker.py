"""Upper half of the device model: the reranker that runs on the device.

After Gong et al. (CIKM 2022, arXiv 2208.09577, section 4):

- target attention of each candidate over the watched list, and over the candidates that were chosen before it;
- the differences in pXTR, time and position between candidate and watched item, crossed with category and feedback;
- numbers in soft bins (AutoDis), a multi-gate mixture of experts (MMoE) and a tower per task.

The pXTRs enter a second time, as a residual: untrained, the model orders as the cloud does. One config has two forms: the
*split* form has the cloud's vectors among its inputs, the *self-contained* form has not.

The computation is divided by when its inputs are known, so that a device does each part once:

- `encode_candidates` when a page arrives, `encode_events` when an impression is over;
- `watch` when candidates are to be ranked: attention over the watched list, for all candidates at once;
- `choose` at each step of a list search: attention over the candidates chosen so far, experts and towers.

The published model computes a key and a value of each pair of candidate and watched item from the crossed features of the pair.
Here the queries have a part of their own for these features, of which there are few, and the attention averages the features
themselves. The functions are the same, without a key and a value for each pair.

Sizes in the comments: b lists, n candidates, t watched items, i chosen ones, k tasks; h heads of width w; x is the width of the
crossed features, e that of the first layer of the mixture.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pocketrank.cloud.models.layers import CategoryEmbeddings, MultiGate, SoftBins, join_heads, penalty, split_heads
from pocketrank.cloud.models.presets import UpperConfig
from pocketrank.device.contract import EFFECTIVE_VIEW_MS, LONG_VIEW_MS, FeatureSpec, FloatFeature

__all__ = ["Normalise", "UpperHalf", "logit"]

PXTR_MIN = 1e-4
"""pXTRs are clipped to this and to 1 minus this before their logit."""
CROSSES = 3
"""Crossings of a difference: the difference alone, times the category, times the feedback."""


def logit(p: Float[Tensor, "*b k"]) -> Float[Tensor, "*b k"]:
    """Return the log odds of probabilities, finite at 0 and 1."""
    p = p.clamp(PXTR_MIN, 1 - PXTR_MIN)
    return torch.log(p / (1 - p))


class Normalise(nn.Module):
    """Standardisation of raw feature values, after a logit of pXTRs and a log1p of features with a long range."""

    WIDE = 30.0
    """Features whose largest value is at least this have a long range."""
    LOGIT = 6.9067548
    """Largest absolute logit: that of a pXTR of .001."""

    def __init__(self, features: tuple[FloatFeature, ...]) -> None:
        super().__init__()
        self.kinds: list[tuple[str, int]] = []  # (kind, columns): neighbouring features of one kind together
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

    def forward(self, x: Float[Tensor, "*b f"]) -> Float[Tensor, "*b f"]:
        """Return standardised values."""
        return (self._curves(x) - self.shift) * self.scale

    def _curves(self, x: Float[Tensor, "*b f"]) -> Float[Tensor, "*b f"]:
        parts = []
        # The converter of LiteRT rejects a split into one part.
        columns = torch.split(x, [n for _, n in self.kinds], -1) if len(self.kinds) > 1 else (x,)
        for (kind, _), part in zip(self.kinds, columns, strict=True):
            if kind == "logit":
                part = logit(part).clamp(-self.LOGIT, self.LOGIT)
            elif kind == "log":
                part = torch.log(part + 1)
            parts.append(part)
        return torch.cat(parts, -1)

    def fit(self, x: Float[Tensor, "n f"]) -> None:
        """Set shift and scale by a sample of raw values."""
        y = self._curves(x)
        self.shift.copy_(y.mean(0))
        self.scale.copy_(1 / y.std(0).clamp(min=1e-2))


class UpperHalf(nn.Module):
    """Probabilities of every task for the candidates of a list; inputs as in `pocketrank.device.contract.FeatureSpec`."""

    def __init__(self, config: UpperConfig, spec: FeatureSpec, *, split: bool) -> None:
        super().__init__()
        c, tasks = config, len(spec.tasks)
        self.config, self.split, self.tasks = c, split, tasks
        vector = spec.vector_width if split else 0
        self.item_floats = Normalise(spec.candidate_floats)
        self.feedback_floats = Normalise(spec.feedback_floats)
        self.context_floats = Normalise(spec.context_floats)
        columns = spec.candidate_categories
        self.categories = CategoryEmbeddings([f.name for f in columns], [f.size for f in columns], c.category_width)
        names = [f.name for f in spec.candidate_floats]
        feedback = [f.name for f in spec.feedback_floats]
        self.watch_at, self.duration_at = feedback.index("watch_ms"), names.index("duration_ms")
        # Scales of the share watched and its largest value: of the whole item, of an effective view, of a long view.
        views_s = EFFECTIVE_VIEW_MS / 1000, LONG_VIEW_MS / 1000
        ranges = torch.tensor([[spec.candidate_floats[self.duration_at].max + 1, *views_s], [2.0, 1.0, 1.0]])
        self.register_buffer("share_of", ranges[0], persistent=False)
        self.register_buffer("share_max", ranges[1], persistent=False)
        self.share_of: Tensor
        self.share_max: Tensor
        self.pxtr_at = [names.index(f"pxtr_{task}") for task in spec.tasks]

        # Inputs: numbers, their soft bins (Guo et al., KDD 2021) and embedded categories.
        category = c.category_width * len(self.categories)
        item = len(names) * (1 + c.bins) + category
        # Feedback with a range of at most 1 has no bins: most of it are flags, to which bins add nothing.
        wide = [i for i, f in enumerate(spec.feedback_floats) if f.max - f.min > 1]
        self.register_buffer("wide", torch.tensor(wide), persistent=False)
        self.wide: Tensor
        feedback_width = len(feedback) + len(self.share_of) + (len(wide) + len(self.share_of)) * c.bins
        self.item_bins = SoftBins(len(names), c.bins) if c.bins else None
        self.feedback_bins = SoftBins(len(wide) + len(self.share_of), c.bins) if c.bins else None
        # The inputs of the split form alone are the last columns, so that `start_from` finds the others in the same columns.
        self.candidate = nn.Linear(item + 2 * vector, c.width)
        self.event = nn.Linear(item + feedback_width + vector, c.width)
        self.context = nn.Linear(len(spec.context_floats) + vector, c.width)

        # Projections of both attentions, each straight into the first layer of the mixture, which is a sum.
        inner = c.heads * c.head_width
        self.mixture = MultiGate(c.experts, c.expert_width, c.towers, tasks)
        entry = self.mixture.entry_width
        self.cross = c.cross_width * CROSSES if c.cross_width and c.pairs else 0
        self.from_candidate = nn.Linear(c.width, 4 * inner + c.heads * self.cross + entry)
        self.from_event = nn.Linear(c.width, 2 * inner)
        self.from_watched = nn.Linear(inner + c.heads * self.cross, entry, bias=False)
        self.from_chosen = nn.Linear(inner, entry, bias=False)
        self.from_context = nn.Linear(c.width, entry, bias=False)
        if c.cross_width:
            self.of_category = nn.Linear(category, c.cross_width)
            self.of_feedback = nn.Linear(feedback_width, c.cross_width)
            self.gap_bins = SoftBins(2, max(1, c.bins))
            self.of_gap = nn.Linear(2 * (1 + max(1, c.bins)), 2 * c.cross_width)
            self.from_gap = nn.Linear(2 * CROSSES * c.cross_width, 2 * inner, bias=False)
        else:
            self.from_gap = nn.Linear(2, 2 * inner, bias=False)
        if self.cross:
            self.pair_bins = SoftBins(tasks, max(1, c.bins))
            self.of_pair = nn.Linear(tasks * (1 + max(1, c.bins)), c.cross_width)
        # Null keys and their values, the distance embeddings of chosen candidates, and the weight of the cloud's scores.
        self.watched_null = nn.Parameter(torch.zeros(1, 1, 2 * inner))
        self.chosen_null = nn.Parameter(torch.zeros(1, 1, 2 * inner))
        self.distance = nn.Parameter(torch.zeros(1, c.chosen_max, 2 * inner))
        self.residual = nn.Parameter(torch.ones(tasks))
        self.parts = [inner, c.heads * self.cross, inner, 2 * inner, entry, tasks]
        """Columns of a candidate's state: query and crossed query to the watched list, query to the chosen candidates, key and
        value as a chosen candidate, part of the first layer, logits of the pXTRs.
        """
        # The scale of dot-product attention (Vaswani et al. 2017, equation 1) is part of the initial weights of the queries.
        with torch.no_grad():
            self.from_candidate.weight[: 2 * inner + c.heads * self.cross] /= math.sqrt(c.head_width)

    def start_from(self, other: UpperHalf) -> None:
        """Copy the weights of a trained self-contained form; those of the cloud's vectors start at zero."""
        mine = self.state_dict()
        for name, value in other.state_dict().items():
            if mine[name].shape == value.shape:
                mine[name].copy_(value)
            else:
                mine[name].zero_()[:, : value.shape[1]] = value

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
        """Return the probabilities at the next place of the list, with nothing chosen before it.

        They do not depend on the other candidates, and so not on `candidate_mask`.
        """
        candidates = self.encode_candidates(candidate_float, candidate_category, candidate_vector, user_vector)
        events = self.encode_events(event_float, event_category, event_feedback, event_vector)
        ready = self.watch(candidates, events, event_gap, event_mask, context, user_vector)
        return torch.sigmoid(self.choose(ready, candidates))

    def encode_candidates(
        self,
        candidate_float: Float[Tensor, "b n fc"],
        candidate_category: Int[Tensor, "b n c"],
        candidate_vector: Float[Tensor, "b n d"] | None = None,
        user_vector: Float[Tensor, "b d"] | None = None,
    ) -> Float[Tensor, "b n s"]:
        """Return the states of candidates, with the columns of `parts`: everything that depends on the page alone."""
        parts, pxtr = self._item(candidate_float, candidate_category)
        if self.split:
            assert candidate_vector is not None
            assert user_vector is not None
            parts += [candidate_vector, candidate_vector * user_vector[:, None]]
        # Linear layers have inputs of two axes: converters then fuse them with bias and ReLU.
        x = torch.relu(self.candidate(torch.cat(parts, -1).flatten(0, 1)))  # bn width
        return torch.cat([self.from_candidate(x).view(*pxtr.shape[:2], -1), pxtr], -1)

    def encode_events(
        self,
        event_float: Float[Tensor, "b t fc"],
        event_category: Int[Tensor, "b t c"],
        event_feedback: Float[Tensor, "b t fb"],
        event_vector: Float[Tensor, "b t d"] | None = None,
    ) -> Float[Tensor, "b t e"]:
        """Return the states of events: key and value in the watched list, factors of the crossings, logits of the pXTRs."""
        parts, pxtr = self._item(event_float, event_category)
        # The share watched, on the scales of `share_of` or of the whole item if that is shorter.
        watched = event_feedback[..., self.watch_at : self.watch_at + 1]
        duration = event_float[..., self.duration_at : self.duration_at + 1] + 0.5
        share = torch.minimum(watched / torch.minimum(duration, self.share_of), self.share_max)  # b t 3
        share = share * 2 - 1
        numbers = self.feedback_floats(event_feedback)  # b t fb
        feedback = [numbers, share]
        if self.feedback_bins is not None:
            feedback.append(self.feedback_bins(torch.cat([numbers.index_select(-1, self.wide), share], -1)))
        category = parts[-1]
        parts = parts + feedback
        if self.split:
            assert event_vector is not None
            parts.append(event_vector)
        x = torch.relu(self.event(torch.cat(parts, -1).flatten(0, 1)))  # bt width
        out = [self.from_event(x).view(*pxtr.shape[:2], -1)]
        if self.config.cross_width:
            out += [self.of_category(category), self.of_feedback(torch.cat(feedback, -1))]
        return torch.cat([*out, pxtr], -1)

    def watch(
        self,
        candidates: Float[Tensor, "b n s"],
        events: Float[Tensor, "b t e"],
        event_gap: Float[Tensor, "b t 2"],
        event_mask: Float[Tensor, "b t"],
        context: Float[Tensor, "b fx"],
        user_vector: Float[Tensor, "b d"] | None = None,
    ) -> Float[Tensor, "b n m"]:
        """Return the first layer of experts and gates, without the part of the chosen candidates."""
        c, b = self.config, len(context)
        query, cross_query, _, _, entry, pxtr = torch.split(candidates, self.parts, -1)
        key_value, *crossed, event_pxtr = torch.split(
            events, [2 * c.heads * c.head_width, *[c.cross_width] * 2 * bool(c.cross_width), self.tasks], -1
        )
        # Time since the impression and position gap, crossed with the watched item's category and feedback, as a part of its
        # key and value (section 4).
        gap = torch.log(event_gap + 1) * 0.3 - 1  # b t 2, about within -1 to 1
        if crossed:
            gap = self.of_gap(torch.cat([gap, self.gap_bins(gap)], -1))
            time, place = torch.split(gap, c.cross_width, -1)
            gap = torch.cat([self._cross(time, crossed), self._cross(place, crossed)], -1)  # b t 2x
        key_value = key_value + self.from_gap(gap)
        # Target attention over the watched list (section 4), the candidate being the query.
        key_value = torch.cat([self.watched_null.expand(b, -1, -1), key_value], 1)
        keys, values = torch.chunk(split_heads(key_value, 2 * c.heads), 2, 1)  # b h t+1 w each
        logits = split_heads(query, c.heads) @ keys.transpose(2, 3) + penalty(event_mask)  # b h n t+1
        if not self.cross:
            attended = join_heads(torch.softmax(logits, -1) @ values)  # b n hw
        else:
            # The pXTR differences, crossed, take part twice: in the logits, and averaged beside the values.
            difference = pxtr[:, :, None] - event_pxtr[:, None]  # b n t k
            difference = self.of_pair(torch.cat([difference, self.pair_bins(difference)], -1))
            pair = self._cross(difference, [x[:, None] for x in crossed])  # b n t x
            cross_logits = split_heads(cross_query, c.heads).transpose(1, 2) @ pair.transpose(2, 3)  # b n h t
            share = torch.softmax(logits + nn.functional.pad(cross_logits.transpose(1, 2), (1, 0)), -1)
            of_pairs = share[..., 1:].transpose(1, 2) @ pair  # b n h x
            attended = torch.cat([join_heads(share @ values), of_pairs.flatten(2)], -1)  # b n hw+hx
        ctx = [self.context_floats(context)]
        if self.split:
            assert user_vector is not None
            ctx.append(user_vector)
        of_list = self.from_context(torch.relu(self.context(torch.cat(ctx, -1))))[:, None]  # b 1 e
        ready: Tensor = entry + self.from_watched(attended) + of_list  # b n e
        return ready

    def choose(
        self,
        ready: Float[Tensor, "#b n m"],
        candidates: Float[Tensor, "#b n s"],
        chosen: Float[Tensor, "b i s"] | None = None,
        chosen_mask: Float[Tensor, "b i"] | None = None,
    ) -> Float[Tensor, "b n k"]:
        """Return the logits of each candidate as the next of the list after the chosen ones.

        `chosen` are states of candidates, the last chosen one last. Several lists of one page may be continued at once; the
        page's batch is then 1.
        """
        b, n, c = (candidates if chosen is None else chosen).shape[0], candidates.shape[1], self.config
        query, pxtr = (torch.split(candidates, self.parts, -1)[i] for i in (2, 5))
        if chosen is None:  # the null key is the only key
            attended = self.chosen_null[..., c.heads * c.head_width :]
        else:
            # Target attention over the ordered candidates (section 4). Their order enters by an embedding of the distance from
            # the place that is to be filled.
            assert chosen_mask is not None
            i = chosen.shape[1]
            distance = self.distance[:, max(0, c.chosen_max - i) :]
            if i > c.chosen_max:
                distance = torch.cat([distance[:, :1].expand(-1, i - c.chosen_max, -1), distance], 1)
            key_value = torch.split(chosen, self.parts, -1)[3] + distance
            key_value = torch.cat([self.chosen_null.expand(b, -1, -1), key_value], 1)
            keys, values = torch.chunk(split_heads(key_value, 2 * c.heads), 2, 1)
            share = torch.softmax(split_heads(query, c.heads) @ keys.transpose(2, 3) + penalty(chosen_mask), -1)
            attended = join_heads(share @ values)  # b n hw
        entry = ready + self.from_chosen(attended)  # b n e
        # MMoE and the towers (Ma et al., KDD 2018, section 4.2), on top of the cloud's logits.
        delta: Tensor = self.mixture(entry.flatten(0, 1), c.dropout)
        return delta.view(b, n, -1) + self.residual * pxtr

    def _item(
        self, floats: Float[Tensor, "b m fc"], category: Int[Tensor, "b m c"]
    ) -> tuple[list[Float[Tensor, "b m _"]], Float[Tensor, "b m k"]]:
        """Return the parts of items' rows, the embedded categories last, and the logits of their pXTRs."""
        numbers = self.item_floats(floats)
        parts = [numbers] if self.item_bins is None else [numbers, self.item_bins(numbers)]
        embedded = self.categories(category)
        pxtr = logit(floats[..., self.pxtr_at[0] : self.pxtr_at[-1] + 1])
        return [*parts, torch.cat(embedded, -1) if len(embedded) > 1 else embedded[0]], pxtr

    @staticmethod
    def _cross(x: Float[Tensor, "*b d"], crossed: list[Tensor]) -> Float[Tensor, "*b x"]:
        return torch.cat([x, *[x * y for y in crossed]], -1)
