"""The learning rate as a pure function of the step within a stage."""

import math

from trainer.recipe import Stage


def learning_rate(stage: Stage, step: int) -> float:
    """Rate of the update that follows `step` finished steps of `stage`.

    Linear warm-up reaches `stage.learning_rate` at step index warmup_steps; then constant, or linear or cosine decay that
    would reach 0 one update after the stage's last.
    """
    peak, warmup = stage.learning_rate, stage.warmup_steps
    if step < warmup or stage.schedule == "linear":
        return linear_with_warmup(peak, step, warmup, stage.steps)
    if stage.schedule == "constant":
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, stage.steps - warmup)))


def linear_with_warmup(peak: float, step: int, warmup_steps: int, steps: int) -> float:
    """Linear to `peak`, which the update after `warmup_steps` finished ones has; then linear to 0, one update after the last of `steps`."""
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    return peak * (1 - (step - warmup_steps) / max(1, steps - warmup_steps))
