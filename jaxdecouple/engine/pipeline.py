"""A pipeline trains a network cut into stages by dispatching what a schedule lists, and waiting for nothing.

Every operation is one asynchronous dispatch on its stage's device. A tick is an order of dispatch, not a lock-step:
each device works through its own queue and waits only for data. The host waits in two places: in
`Pipeline._bound_run_ahead`, so that it never gets more than a few ticks ahead of the devices, and in
`Pipeline.evaluate`, for its result.
"""

from __future__ import annotations

import collections
import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from jaxdecouple.engine import checks
from jaxdecouple.engine.checks import Custody, Expected
from jaxdecouple.engine.loss_program import Loss, LossProgram
from jaxdecouple.engine.losses import softmax_cross_entropy
from jaxdecouple.engine.metrics import Evaluation, MetricFunctions, evaluation_of
from jaxdecouple.engine.operations import Dispatcher
from jaxdecouple.engine.placement import Devices, Extent, Nowhere, Params, Placement
from jaxdecouple.engine.processes import told
from jaxdecouple.engine.programs import check_auxiliary, check_fit, place, programs_for
from jaxdecouple.engine.shapes import RemoteProgram, shapes_in_flight, stage_shapes
from jaxdecouple.engine.shares import with_shares
from jaxdecouple.engine.state import InFlight, Metrics, StageState, State, owned_by_layers
from jaxdecouple.engine.summaries import summary
from jaxdecouple.engine.ties import ties_of, with_ties
from jaxdecouple.engine.workspace import Observer, Workspace, feed
from jaxdecouple.network.adapters import as_stages
from jaxdecouple.network.annotations import annotations_of
from jaxdecouple.network.sharing import check_repeats
from jaxdecouple.network.trees import PyTree, count_examples, shape_of
from jaxdecouple.planning import least_run_ahead
from jaxdecouple.schedules import Schedule, Weights, validate
from jaxdecouple.transforms import StageOptimizer, Statistics
from jaxdecouple.transforms.gradient_norms import sample_of


class Pipeline:
    """Decoupled training of ``stages`` under ``schedule``.

    Attributes:
      stages, schedule, placement: as given.
      weights: the policy in force: which weights a backward pass uses.
      programs: the compiled functions of each stage; they do not depend on the schedule.
      ties: parameters that stages share.
      run_ahead: how many ticks the host may be ahead of the devices.
    """

    def __init__(
        self,
        stages: Sequence[Any],
        schedule: Schedule,
        *,
        optimizer: optax.GradientTransformation | StageOptimizer,
        loss: Loss = softmax_cross_entropy,
        metrics: MetricFunctions | None = None,
        auxiliary: Any = None,
        auxiliary_optimizer: optax.GradientTransformation | StageOptimizer | None = None,
        devices: Devices | None = None,
        params: Params = "replicated",
        statistics: Extent = "group",
        weights: Weights | None = None,
        run_ahead: int | None = None,
        donate: bool = True,
    ):
        """Checks everything that can be checked before training.

        Args:
          stages: K stages, in order: from `partition`, or Flax modules, or `Stage` objects.
          schedule: for K stages.
          optimizer: an optax transform used by every stage, or a function ``(stage, num_stages) -> transform``
            (`stagewise` makes one).
          loss: ``(logits, targets) -> mean loss``, a scalar.
          metrics: what else is measured, by name: functions of outputs and targets (`Metric`, `language_metrics`); by
            default, with this library's losses, accuracy.
          auxiliary: for schedules by which stages learn locally (`schedules.dgl`, `schedules.dni`), the auxiliary
            network of each stage but the last: a Flax module, or a function ``(stage, num_stages) -> module``. A
            classifier of a stage's output, with the network's number of outputs (DGL), or, called with the pair of a
            stage's output and the targets, a predictor of the gradient of that output (DNI).
          auxiliary_optimizer: as ``optimizer``, for the auxiliary networks; by default the same.
          devices: one per stage, repetitions allowed; by default the first K of ``jax.devices()``. Or a group for each
            stage, over which the batch is split: a list of lists of one length, or a ``jax.sharding.Mesh`` with axes
            ``stage`` and ``data``, and perhaps others, within a stage, for ``params="annotated"``.
          params: in groups, whether large parameters, with what the optimizer has of them, are on every device
            (``replicated``), split over the group (``sharded``), or split along the axes of the mesh that the Flax
            modules name (``annotated``: ``nn.with_partitioning``, nnx's ``sharding``). Arrays below 256 KiB stay whole.
          statistics: in groups, of which examples layers see the statistics, such as batch normalisation: of the whole
            batch (``group``), or of the part of it that a device has (``device``). Then a batch's dropout masks are
            others, too, and new statistics are the mean of the parts'.
          weights: overrides the schedule's policy: ``stash``, ``remat``, ``replay`` or ``latest``.
          run_ahead: how many ticks the host may dispatch beyond the last finished loss; each costs the memory of a
            batch in flight. By default the least that does not slow the schedule down (`least_run_ahead`).
          donate: whether `step` may reuse the memory of the state it is given, which must then not be used again
            (interrupting `step` in the milliseconds in which it dispatches then loses the state).

        Raises:
          ValueError: stages, schedule, optimizer and devices do not fit, or the schedule cannot be executed.
        """
        self.stages = as_stages(stages)
        self._last = len(self.stages) - 1
        self._follow(schedule, weights, run_ahead)
        self.placement = Placement(len(self.stages), devices, params, statistics)
        self.programs = programs_for(
            self.stages, self.schedule, optimizer, loss, auxiliary, auxiliary_optimizer, donate, metrics
        )
        self._tied, self.ties = ties_of(self.stages)
        place(self.programs, self._tied, self.placement)
        self._begin()

    def with_schedule(
        self, schedule: Schedule, *, weights: Weights | None = None, run_ahead: int | None = None
    ) -> Pipeline:
        """A pipeline of the same network, optimizer and devices under another schedule.

        It uses the same compiled programs: what is compiled for one is compiled for both.

        Args:
          schedule, weights, run_ahead: as of `Pipeline`.

        Raises:
          ValueError: the schedule does not fit the stages, cannot be executed, or has stages learn in another way, for
            which they would need other programs.
        """
        if schedule.learning != self.schedule.learning:
            raise ValueError(
                f"schedule {schedule.name!r} has stages learn from {schedule.learning!r}, and this pipeline's "
                f"from {self.schedule.learning!r}, for which they have other programs; build another Pipeline"
            )
        other = copy.copy(self)
        other._follow(schedule, weights, run_ahead)
        other._begin()
        return other

    def _follow(self, schedule: Schedule, weights: Weights | None, run_ahead: int | None) -> None:
        checks.check_schedule(schedule, len(self.stages))
        if run_ahead is not None and run_ahead < 1:
            raise ValueError(f"run_ahead is {run_ahead}; write how many ticks the host may be ahead, at least 1")
        self.schedule = schedule.with_weights(weights)
        self.weights: Weights = self.schedule.weights
        validate(self.schedule)
        self.run_ahead = least_run_ahead(self.schedule) if run_ahead is None else run_ahead

    def _begin(self) -> None:
        check_fit(self.programs, self.schedule)
        owned = self.placement.owns
        self._acting = [program if owned(k) else RemoteProgram(program) for k, program in enumerate(self.programs)]
        self._dispatcher = Dispatcher(self._acting, self.placement, self.schedule, self.ties)
        self._unfinished: collections.deque[jax.Array] = collections.deque()
        self._expected: Expected | None = None
        self._custody = Custody(self.schedule, self.programs[0].donate)

    def _repr_html_(self) -> str:
        """Its stages and its schedule, which notebooks show."""
        return summary(self.stages, self.placement.groups, self.schedule)

    @property
    def loss_program(self) -> LossProgram:
        """The program of the last stage."""
        program = self.programs[-1]
        assert isinstance(program, LossProgram)  # `programs_for` made it
        return program

    def init(self, key: jax.Array, x: PyTree, targets: PyTree | None = None) -> State:
        """A new run's state. The same key gives the same network for every way to cut it.

        Args:
          key: a ``jax.random.key``, or one of the older kind, ``jax.random.PRNGKey``.
          x: inputs, [B, ...], of which only shapes and dtypes matter.
          targets: [B, ...], likewise, for auxiliary networks that take them (DNI); by default labels, [B].

        Raises:
          ValueError: a layer cannot take what the one before it puts out, or an auxiliary network the output of its
            stage, or its own output has another shape than it should; or groups of devices do not divide the batch.
        """
        key, x = checks.check_init(key, x)
        self.placement.check_batch(x)
        targets = shape_of(_labels_for(x) if targets is None else targets)
        stages, shapes = [], x
        for k, program in enumerate(self._acting):
            stage = program.init(self.placement.put(key, k), shapes, targets)
            self._annotate(k, stage)
            stages.append(self.placement.own(stage, k))
            shapes = program.output_shape(stages[-1], shapes)
        check_auxiliary(self.programs, shapes)
        self.placement.check_rule(stages)
        check_repeats(self.stages, owned_by_layers(stages))
        self._expected = self._expecting(x, shapes, stages)
        stages = with_ties(stages, self._tied, self.ties, self.placement)
        stages = with_shares(stages, self.programs, self.placement, alone=self.schedule.is_local)
        return State(stages=stages, in_flight=tuple(InFlight() for _ in stages))

    def expect(self, state: State, x: PyTree) -> None:
        """Takes note, as `init` does, of what inputs look like, for a state that was not made by this pipeline."""
        self._expected = self._expecting(x, None, state.stages)

    def step(
        self, state: State, batch: tuple[PyTree, PyTree], *, observer: Observer | None = None
    ) -> tuple[State, Metrics]:
        """One tick: feeds a batch and dispatches the tick's operations. Returns at once.

        Args:
          state: as left by `init`, `step` or `flush`; its arrays may be reused (see ``donate``).
          batch: ``(inputs, targets)``, each [B, ...]. B may change, at the price of one more compilation.
          observer: is told of every operation (see `diagnostics`).

        Returns:
          The new state, and the metrics of the batch that reached the loss in this tick.

        Raises:
          ValueError: the batch has another shape or dtype than the run, or a label outside the classes.
        """
        state = self._custody.take(state)
        inputs, targets = self._check(state, batch)
        self._bound_run_ahead()
        tick = int(state.tick)
        work, first = Workspace(state, observer), int(state.first)
        feed(work, self.placement, self.schedule, tick, inputs, targets)
        metrics = self._dispatch(work, tick, first, tick + 1)
        return self._custody.give(work.freeze(tick=tick + 1, first=first)), metrics

    def flush(
        self,
        state: State,
        on_tick: Callable[[State, Metrics], None] | None = None,
        *,
        observer: Observer | None = None,
    ) -> State:
        """Finishes what is in flight, feeding nothing; training may go on afterwards.

        Gradients of an incomplete accumulation group stay in the optimizer's state.

        Args:
          state: any state.
          on_tick: called after each tick of the flush with the state so far, to read only, and the tick's metrics.
            Should it raise, the state is lost: its arrays were reused (see ``donate``).
          observer: as of `step`.
        """
        state = self._custody.take(state)
        first, stop = int(state.first), int(state.tick)
        ticks = range(stop, stop + self.schedule.drain if first < stop else stop)
        for tick in ticks:
            work = Workspace(state, observer)
            metrics = self._dispatch(work, tick, first, stop)
            state = work.freeze(tick=stop, first=first)
            if on_tick is not None:
                on_tick(state, metrics)
        return self._custody.give(state.replace(first=stop), used=len(ticks) > 0)

    def shapes(
        self,
        x: PyTree,
        targets: PyTree | None = None,
        *,
        tick: int = 0,
        first: int = 0,
        fed: Mapping[int, tuple[PyTree, PyTree]] | None = None,
    ) -> State:
        """The state of a run as shapes and dtypes, ``jax.ShapeDtypeStruct``: nothing is computed.

        Args:
          x, targets: as of `init`.
          tick, first: of the state.
          fed: by batch index, ``(inputs, targets)`` of batches shaped otherwise than ``x`` and ``targets``.

        Raises:
          ValueError: as of `init`.
        """
        x, targets, fed = shape_of(x), shape_of(_labels_for(x) if targets is None else targets), fed or {}
        self.placement.check_batch(x)
        stages, logits = stage_shapes(self.programs, x, targets)
        for k, stage in enumerate(stages):
            self._annotate(k, stage)
        self.placement.check_rule(stages)
        check_auxiliary(self.programs, logits)
        check_repeats(self.stages, owned_by_layers(stages))
        oldest = max(first, tick - self.schedule.drain)  # that can still be in flight
        recent = {n: fed.get(n, (x, targets)) for n in range(oldest, tick)}
        whole = with_shares(stages, self.programs, Nowhere(), alone=self.schedule.is_local)
        in_flight = shapes_in_flight(self.programs, self.schedule, whole, recent, oldest, self.ties)
        return State(whole, in_flight, tick, first)

    def predict(self, state: State, x: PyTree) -> PyTree:
        """The network's output for inputs ``x``, [B, ...], with today's weights; nothing in flight is touched."""
        checks.check_usable(state, thoroughly=False)
        return self._dispatcher.predict(state.stages, x)

    def evaluate(self, state: State, batches: Iterable[tuple[PyTree, PyTree]]) -> Evaluation:
        """Mean loss and metrics over ``batches`` with today's weights; nothing in flight is touched.

        Raises:
          ValueError: there are no batches.
        """
        checks.check_batches(state, batches)
        sizes, scores, marks, owned = [], [], [], self.placement.owns(self._last)
        for batch in batches:
            inputs, targets = checks.check_pair(batch, "evaluate(state, [(inputs, targets), ...])")
            logits = self.predict(state, self._inputs(inputs, targets))
            sizes.append(count_examples(targets) or count_examples(inputs) or 1)
            if owned:
                checks.check_targets(self.loss_program.loss, logits, targets, len(sizes) - 1)
                scores.append(self.loss_program.score(logits, self.placement.put(targets, self._last)))
            marks.append(scores[-1] if owned else self.placement.last_crossing())
            if len(marks) > self.run_ahead:
                jax.block_until_ready(marks[-1 - self.run_ahead])
        if not sizes:
            raise ValueError("evaluate got no batches; write an iterable of (inputs, targets)")
        found = evaluation_of(scores, sizes, self.loss_program.metrics) if owned else None
        return Evaluation(*told(found, self.placement.owners[-1]))

    def measure_gradient_norms(
        self,
        state: State,
        batch: tuple[PyTree, PyTree],
        *,
        sample_size: int | None = None,
        chunk_size: int = 32,
        statistics: Statistics = "batch",
    ) -> State:
        """Measures what CLARS needs: the norm of each parameter's gradient, for each of some examples alone.

        With today's weights; nothing in flight is touched, and nothing waited for, though stage after stage has to
        compute. Every update uses the norms measured last: measure before the step in which the
        stages update, which with M accumulated batches is every M-th, that of batches M - 1, 2M - 1, ...

        Args:
          state: any state.
          batch: ``(inputs, targets)``, each [B, ...], shuffled.
          sample_size: how many examples to measure, the first of the batch; ``None``: all. The thesis takes 512
            (section 4.4.4).
          chunk_size: how many gradients a device holds at once.
          statistics: of batch normalisation, held constant: ``"batch"``, those of the examples measured, so that the
            mean of their gradients is the gradient, as eq. 4.8 has it; ``"running"``, the running averages.

        Returns:
          The state with ``stages[k].gradient_norms``: [sample_size] for each parameter.

        Raises:
          ValueError: a size is below 1, or the sample larger than the batch; or the stages learn locally; or
            ``statistics`` is neither.
        """
        state = self._custody.take(state)
        if self.ties:
            raise ValueError("gradient norms are not measured where stages share parameters; take jaxdecouple.lars")
        sample, chunk_size = sample_of(self._check(state, batch), sample_size, chunk_size)
        stages = self._dispatcher.measure_norms(state.stages, sample, chunk_size, statistics)
        return self._custody.give(state.replace(stages=stages), used=False)

    def _inputs(self, inputs: PyTree, targets: PyTree) -> PyTree:
        """Of a batch: where another process reads them, shapes will do, or, once those are known, ``None``."""
        if inputs is not None or self._expected is None or self.placement.owns(0):
            return inputs
        return self._expected.inputs_for(targets)

    def _expecting(self, inputs: PyTree, logits: PyTree | None, stages: Sequence[StageState]) -> Expected:
        loss_program = self.loss_program if self.placement.owns(self._last) else None
        return Expected(inputs, logits, stages, self._acting, loss_program)

    def _annotate(self, k: int, stage: StageState) -> None:
        params = shape_of(stage.packed_params).tree
        self.placement.annotate(k, annotations_of(self.stages[k], params), params)

    def _dispatch(self, work: Workspace, tick: int, first: int, stop: int) -> Metrics:
        """A tick, and a mark of how far the devices are: its loss, or what last came from or went to its process."""
        metrics = self._dispatcher.tick(work, tick, first, stop)
        mark = self.placement.last_crossing() if metrics.loss is None else metrics.loss
        if mark is not None:
            self._unfinished.append(mark)
        return metrics

    def _bound_run_ahead(self) -> None:
        """Waits until fewer than ``run_ahead`` losses are unfinished: dispatched work, and its memory, is bounded.

        A stage's queue is in order and a loss depends on the forward of its batch at every stage; so when it exists,
        every stage has finished all that was dispatched before that forward. The wait comes before anything of a tick
        is dispatched: whoever interrupts it (Ctrl-C) still holds a state that can be used.
        """
        while len(self._unfinished) >= self.run_ahead:
            jax.block_until_ready(self._unfinished[0])
            self._unfinished.popleft()

    def _check(self, state: State, batch: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        inputs, targets = checks.check_pair(batch, "step(state, (inputs, targets))")
        inputs = self._inputs(inputs, targets)
        if self._expected is None:
            self.expect(state, inputs)
        assert self._expected is not None
        self._expected.check(inputs, targets, int(state.tick))
        return inputs, targets


def _labels_for(x: PyTree) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((count_examples(x),), np.dtype(np.int32))
