"""How far a training is: the same bar and lines as a measurement's, with what the last log entry said."""

from __future__ import annotations

from transformers import TrainerCallback

from ..probes.progress import Meter

SHOWN = {"loss": "loss", "rewards/margins": "margin", "rewards/visual_margins": "visual margin"}


class StepMeter(TrainerCallback):
    """Shows steps done, rate and time left; main process only. show: False for silence."""

    def __init__(self, show: bool = True):
        self.show, self.meter = show, None

    def on_train_begin(self, args, state, control, **_):
        show = self.show and state.is_world_process_zero
        self.meter = Meter(state.max_steps, done=state.global_step, show=show, doing="tuning", did="steps:")
        self.meter.__enter__()

    def on_step_end(self, args, state, control, **_):
        self.meter.advance(1)

    def on_log(self, args, state, control, logs=None, **_):
        told = [f"{name} {float(logs[key]):.3f}" for key, name in SHOWN.items() if key in (logs or {})]
        if told and self.meter is not None:
            self.meter.say(", ".join(told))

    def on_train_end(self, args, state, control, **_):
        self.meter.__exit__(None, None, None)
