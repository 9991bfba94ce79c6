"""The engine trains: it dispatches the operations of a schedule on the devices of the stages.

The way of a batch up, and of its gradient down, is in five files:

1. `pipeline`: `Pipeline.step` checks the batch, feeds it, and has the operations of the tick dispatched.
2. `operations`: the `Dispatcher` takes what an operation needs from the workspace, calls the stage's program, and hands
   the output to the stage above and the gradient to the stage below.
3. `inner_program`: a stage below the loss. Its forward leaves a residual, for the backward when the gradient has come.
4. `linearization`: what of a forward is kept, and how the backward runs on it with the weights that the policy chooses.
5. `loss_program`: the last stage, where a batch turns round.

They are about what is in `state`, held as `packing` says. What all programs have in common is in `stage_program`, what
optimizers do in `updates`, and where things are in `placement`. The rest serves what not every run has: stages that
learn locally, backwards in two parts, parameters that stages share, sums over stages, several processes.
"""
