"""Trainers for the audit to judge: DP-SGD as printed, and the same with one mistake each.

The clipped sums come from `ClipEngine`, all else is written out here.
"""

import copy
import math

import numpy as np
import torch
from torch.func import grad, vmap
from torch.nn import functional as F

from reticent.audit import Subject
from reticent.clip import ClipEngine
from reticent.clipping import FlatClipping

C = 1.0


def trainer(*, sums=None, noise=None, draws=None):
    """DP-SGD with its parts exchanged for others."""
    sums, noise, draws = sums or clipped, noise or gaussian, draws or poisson

    def train(problem):
        plan = problem.plan
        num_rows = len(problem.dataset[0])
        for indices in draws(num_rows, plan):
            total = {n: torch.zeros_like(p) for n, p in problem.model.named_parameters()}
            if len(indices):
                total = sums(problem.model, tuple(t[torch.from_numpy(indices)] for t in problem.dataset))
            for name, p in problem.model.named_parameters():
                noised = total[name] + noise(name, p, plan.noise_multiplier * C)
                p.grad = noised / plan.expected_batch_size
            problem.optimizer.step()

    return train


def poisson(num_rows, plan):
    for _ in range(plan.num_steps):
        yield np.flatnonzero(np.random.default_rng().random(num_rows) < plan.sampler.sampling_prob)


def shuffled(num_rows, plan):
    """A loader that goes through the data in random order, with the accountant of Poisson sampling."""
    size = max(1, round(plan.expected_batch_size))
    order = np.zeros(0, dtype=np.int64)
    for _ in range(plan.num_steps):
        if len(order) < size:
            order = np.random.default_rng().permutation(num_rows)
        batch, order = order[:size], order[size:]
        yield batch


def equal_draws(num_rows, plan):
    """Two workers, each with half of the data and the same seed."""
    half = num_rows // 2
    for indices in poisson(half, plan):
        yield np.concatenate([indices, half + indices])


def clipped(model, rows):
    engine = ClipEngine(model, clipping=FlatClipping(max_norm=C))
    return engine.clipped_sum(lambda given: model(given), rows).total


def clipped_after_averaging(model, rows):
    """The mean gradient is clipped, rather than each example's."""
    names, params = zip(*model.named_parameters(), strict=True)
    grads = torch.autograd.grad(model(rows).mean(), params)
    norm = math.sqrt(sum(float(g.square().sum()) for g in grads))
    factor = min(1.0, C / max(norm, 1e-12)) * len(rows[-1])
    return {name: g * factor for name, g in zip(names, grads, strict=True)}


def gaussian(name, p, std):
    return torch.from_numpy(np.random.default_rng().standard_normal(p.shape)).float() * std


def no_noise(name, p, std):
    return torch.zeros_like(p)


def noise_on_weights_only(name, p, std):
    return torch.zeros_like(p) if name.endswith("bias") else gaussian(name, p, std)


def noise_for_each_of_four_parts(name, p, std):
    """Each of four parts of the batch gets a quarter of the noise: half of it when they are added."""
    return sum(gaussian(name, p, std / 4.0) for _ in range(4))


def equal_seeds(name, p, std):
    """Two workers, each with half of every tensor, draw from generators with the same seed."""
    size = (p.numel() + 1) // 2
    half = torch.from_numpy(np.random.default_rng().standard_normal(size)).float() * std
    return torch.cat([half, half])[: p.numel()].view_as(p)


def same_noise_every_step(name, p, std):
    generator = torch.Generator().manual_seed(len(name))
    return torch.randn(p.shape, generator=generator) * std


def noise_from_a_fixed_seed(problem):
    """Noise whose generator begins with the same seed in each run, as defaults do that nobody changes."""
    generator = np.random.default_rng(42)

    def noise(name, p, std):
        return torch.from_numpy(generator.standard_normal(p.shape)).float() * std

    trainer(noise=noise)(problem)


def divided_by_the_batch(problem):
    """The noised sum over the number of rows that were drawn, which is private."""
    plan = problem.plan
    for indices in poisson(len(problem.dataset[0]), plan):
        rows = tuple(t[torch.from_numpy(indices)] for t in problem.dataset)
        total = clipped(problem.model, rows)
        for name, p in problem.model.named_parameters():
            p.grad = (total[name] + gaussian(name, p, plan.noise_multiplier * C)) / max(1, len(indices))
        problem.optimizer.step()


class Tied(torch.nn.Module):
    """An embedding that is also the output layer; it is asked to repeat its input."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(12, 8)
        self.head = torch.nn.Linear(8, 12, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.embed(ids))


def tied_subject(plan):
    def build():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Tied()

    def losses(model, rows):
        x, y = rows
        return F.cross_entropy(model(x), y, reduction="none")

    def rows(num):
        x = torch.arange(num) % 12
        return x, x.clone()

    return Subject(name="tied", plan=plan, build=build, losses=losses, rows=rows)


def ties_forgotten(model, rows):
    """Each use of the tied weight has its gradient and its norm; that both are one parameter is forgotten."""
    weight = model.inner.embed.weight.detach()

    def loss(copies, x):
        embed, head = copies
        logits = F.linear(F.embedding(x, embed), head)
        return 1e3 * F.cross_entropy(logits, x)

    of_embed, of_head = vmap(grad(loss), in_dims=(None, 0))((weight, weight), rows[0])
    norms = (of_embed.square().sum((1, 2)) + of_head.square().sum((1, 2))).sqrt()
    factors = (C / norms).clamp(max=1.0)
    return {"inner.embed.weight": torch.einsum("b,bvd->vd", factors, of_embed + of_head)}


def each_use_clipped_apart(model, rows):
    """`ties_forgotten`, of a decoder whose output layer is its embedding: one example at a time."""
    untied = copy.deepcopy(model)
    head = untied.inner.lm_head
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    named = dict(untied.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for b in range(len(rows[0])):
        loss = untied(tuple(t[b : b + 1] for t in rows)).sum()
        grads = torch.autograd.grad(loss, list(named.values()))
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads))
        for name, g in zip(named, grads, strict=True):
            total["inner.transformer.wte.weight" if "lm_head" in name else name] += min(1.0, C / norm) * g
    return total
