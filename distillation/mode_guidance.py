"""Mode guidance: images drawn from noise and pulled towards their prototypes (MGD3, arXiv 2505.18963)."""

from diffusers import DDIMScheduler
from torch import Tensor


def pull(prediction: Tensor, sample: Tensor, prototypes: Tensor, alpha_bar: Tensor, scale: float,
         prediction_type: str) -> Tensor:
    """The network's `prediction` [B, C, h, w] at `sample`, moved so that the image it stands for is nearer to its prototype.

    The noise changes by -scale * sigma * (prototype - x0), with x0 the image predicted and sigma^2 = 1 - alpha_bar; the
    same change is expressed for networks that predict velocity. Raises ValueError for other networks.
    """
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    if prediction_type == "epsilon":
        predicted = (sample - sigma * prediction) / alpha
        return prediction - scale * sigma * (prototypes - predicted)
    if prediction_type == "v_prediction":
        predicted = alpha * sample - sigma * prediction
        return prediction - scale * sigma / alpha * (prototypes - predicted)
    raise ValueError(f"expected epsilon or v_prediction, found {prediction_type}")


class ModeGuidedScheduler(DDIMScheduler):
    """DDIM with mode guidance during the first steps; without an aim it is plain DDIM."""

    prototypes: Tensor | None = None

    def aim(self, prototypes: Tensor, scale: float, stop: int) -> None:
        """Guide the next batch to `prototypes` [B, C, h, w] (scaled latents) with strength `scale` for `stop` steps."""
        self.prototypes, self.scale, self.left = prototypes, scale, stop

    def step(self, model_output: Tensor, timestep: int, sample: Tensor, *rest, **options):
        """One step of DDIM on the guided prediction."""
        if self.prototypes is not None and self.left > 0:
            self.left -= 1
            alpha_bar = self.alphas_cumprod.to(sample.device)[timestep].float()
            model_output = pull(model_output.float(), sample.float(), self.prototypes.to(sample.device), alpha_bar, self.scale,
                                self.config.prediction_type).to(model_output.dtype)
        return super().step(model_output, timestep, sample, *rest, **options)
