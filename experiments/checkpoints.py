"""A checkpoint holds what a finished run learned: every stage's parameters, model state and optimizer state."""

from __future__ import annotations

import pathlib
from typing import Any

import orbax.checkpoint as ocp

from jaxdecouple.state import State


def save(path: pathlib.Path, state: State) -> None:
    """Writes a flushed state's stages to ``path``, a new directory, and waits until they are there."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), _tree(state))


def restore(path: pathlib.Path, like: State) -> State:
    """``like``, of the same pipeline, with the stages saved at ``path``, on ``like``'s devices."""
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(path.absolute(), _tree(like))
    stages = [stage.replace(**saved) for stage, saved in zip(like.stages, tree["stages"], strict=True)]
    return like.replace(stages=tuple(stages), tick=tree["tick"], first=tree["tick"])


def _tree(state: State) -> dict[str, Any]:
    stages = [
        {"params": stage.params, "model_state": stage.model_state, "opt_state": stage.opt_state}
        for stage in state.stages
    ]
    return {"stages": stages, "tick": state.tick}
