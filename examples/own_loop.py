"""A researcher's own loop: clipped sums from the engine, everything else by hand.

python examples/own_loop.py --steps 50

Here the sampler, the noise, the update and the account are the program's own, so nothing checks that they
fit together: use `reticent.PrivateStep` where it does what you need. Batches are Poisson samples of a rate
that does not depend on the data, the divisor is a public constant, noise is scaled to the bound that the
sum carries.
"""

import argparse

import torch
from torch import nn
from torch.nn import functional

import reticent as rt
from reticent.noise import CipherNoise, add_noise
from reticent.records import Mechanism, SamplingScheme
from reticent.sample import SampleStream


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--noise-multiplier", type=float, default=1.0)
    asked = parser.parse_args()

    torch.manual_seed(0)  # of the made-up rows and the weights, never of noise
    x = torch.randn(2000, 10)
    y = (x[:, 0] > 0).long()
    model = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 2))

    def losses(batch):
        return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    sampler = rt.PoissonSampler(sampling_prob=0.05, expected_batch_size=100)
    stream, noise = SampleStream.fresh(), CipherNoise.fresh()  # from the operating system
    for step in range(asked.steps):
        drawn = torch.from_numpy(sampler.draw(len(x), stream, step=step))
        total = rt.clipped_sum(model, losses, (x[drawn], y[drawn]), max_norm=1.0)
        noised = add_noise(total, noise_multiplier=asked.noise_multiplier, source=noise)
        with torch.no_grad():
            for name, param in model.named_parameters():
                param -= 0.5 * noised[name].to(param.dtype) / sampler.expected_batch_size

    mechanism = Mechanism(
        scheme=SamplingScheme.POISSON, sampling_prob=0.05, noise_multiplier=asked.noise_multiplier
    )
    spent = rt.epsilon([(mechanism, asked.steps)], delta=1e-5)
    accuracy = (model(x).argmax(1) == y).float().mean()
    print(f"accuracy {accuracy:.3f} (of the training rows: not private), epsilon {spent.epsilon:.3f}")


if __name__ == "__main__":
    main()
