"""The learning rate as a pure function of the step within a stage."""

import math

from trainer.recipe import Stage


def learning_rate(stage: Stage, step: int) -> float:
    """Rate of the update that follows `step` finished steps of `stage`.

    Linear warm-up reaches `stage.learning_rate` at step index warmup_steps; then constant, or linear or cosine decay that
    would reach 0 one update after the stage's last.
    """
    if step < stage.warmup_steps:
        return stage.learning_rate * (step + 1) / (stage.warmup_steps + 1)
    if stage.schedule == "constant":
        return stage.learning_rate
    progress = (step - stage.warmup_steps) / max(1, stage.steps - stage.warmup_steps)
    if stage.schedule == "linear":
        return stage.learning_rate * (1 - progress)
    return stage.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
