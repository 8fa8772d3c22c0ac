"""`Callback`: the base class, in which order callbacks are called, and who calls them.

The hooks, in the order of a fit:

    on_train_begin
      on_epoch_begin
        on_train_batch_begin
          on_batch_ready          the batch is on the device; a new one may be put in its place
          on_loss_ready           outputs and loss exist; the loss may be replaced
          on_backward_end         this batch's gradients have been added
          on_step_begin           all gradients of the step are there, unscaled: clip, measure, set the rate
          on_step_end             the weights have moved
        on_train_batch_end
        on_test_begin             validation, when there is a val part
          on_test_batch_begin
          on_test_batch_end
        on_test_end
      on_epoch_end
    on_train_end

`evaluate` calls the on_test hooks of the callbacks it is given, `predict` their on_predict hooks.
"""

import inspect
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from headstart.errors import ConfigError, is_number, nearest
from headstart.files import as_path
from headstart.training.metrics import Direction, Logs
from headstart.training.run import Run
from headstart.training.words import words_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from headstart.training.run import LearnerLike


class Order(IntEnum):
    """When a callback's turn is among the others of the same hook.

    Example:
        >>> class LastWord(Callback):
        ...     order = Order.REPORT
    """

    DATA = 0
    """changes batches"""
    TRAIN = 1
    """sets rates, touches gradients or weights"""
    USER = 2
    """everything else; adds log keys"""
    WATCH = 3
    """reads the logs and decides"""
    REPORT = 4
    """tells and draws"""
    SAVE = 5
    """writes the state that all others have agreed on"""


class Callback:
    """Do something at certain moments of training: override a hook.

    The hooks have Keras's names and arguments, and five more where Keras has nothing. `self.run` is the typed state of
    the run, `self.model` and `self.learner` are the Learner, `self.params` what was asked for. `logs` maps names to
    floats; reading them costs a wait for the device, not reading them costs nothing. The logs of a batch are live and
    go on with the epoch: whoever keeps them keeps a copy, `dict(logs)`.

    Attributes:
        order: when it is its turn; `Order.USER` unless set otherwise.
        adds: log keys that it adds in `on_epoch_end`, with the better direction: `{"val_f1": "max"}`. Declared keys can
            be monitored; those that the fit has itself are refused.
        sets_lr: whether it sets `run.lr`; two such callbacks in one fit are refused.
        incidental: names of arguments that may be others when a run is gone on with.
        writes_to: the file or folder that it alone may write to, if any; two callbacks with the same one in one fit are
            refused.

    Raises:
        ConfigError: when the class is made, if it has an `on_...` method that is no hook, or an order that is none.

    Example:
        >>> class StopWhenGood(Callback):
        ...     def on_epoch_end(self, epoch, logs):
        ...         if logs["val_accuracy"] > 0.99:
        ...             self.model.stop_training = True
    """

    order: ClassVar[Order] = Order.USER
    adds: Mapping[str, Literal["min", "max"]] = {}
    sets_lr: bool = False
    writes_to: Path | None = None
    run: Run
    learner: "LearnerLike"
    params: Mapping[str, Any]
    _made_with: Mapping[str, str] = {}
    incidental: ClassVar[Collection[str]] = ()

    def __new__(cls, *arguments: Any, **keywords: Any) -> Self:
        """Note what a callback is made with: a run is gone on with only by the same callbacks."""
        callback = super().__new__(cls)
        with suppress(TypeError):  # its own __init__ will say what is wrong
            signature = inspect.signature(cls.__init__).bind(callback, *arguments, **keywords)
            signature.apply_defaults()
            # In words, at once: what it was given may change while it works.
            made_with = list(signature.arguments.items())[1:]
            callback._made_with = {name: words_for(value) for name, value in made_with}
        return callback

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Refuse misspelt hooks, and an order that is none, while the class is being made."""
        super().__init_subclass__(**keywords)
        if isinstance(cls.order, str):
            _demand_order(cls.__name__, cls.order)
        for name in dir(cls):
            if name in HOOKS:
                _demand_arguments(cls, name)
            elif name.startswith("on_"):
                in_full = name.replace("on_", "on_train_", 1)  # Keras also knows on_batch_end
                meant = f"Did you mean {in_full!r}? " if in_full in HOOKS else nearest(name, HOOKS)
                raise ConfigError(
                    f"{cls.__name__}.{name}, which nobody would ever call",
                    f"one of the hooks: {', '.join(HOOKS)}",
                    f"{meant}Methods that are no hooks need a name without on_.",
                )

    @property
    def model(self) -> "LearnerLike":
        """The Learner, under Keras's name. The network is `self.run.network`."""
        return self.learner

    def check(self, run: Run) -> None:
        """Refuse what cannot work; asked before the first hook of a fit, and only of a fit.

        Look at the run and raise a ConfigError. Write and change nothing: another callback may refuse the fit.
        """

    def states_folder(self, run: Run) -> Path | None:  # noqa: ARG002 - as for those that keep any
        """Name the folder where the states of this run are kept, if this callback has one for them."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Give all that it remembers of a fit, in plain values and tensors, which a file can hold."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember what `state_dict` gave, in place of what `on_train_begin` has reset."""

    def on_train_begin(self, logs: Logs) -> None:
        """A fit begins; reset what an earlier one left behind."""

    def on_train_end(self, logs: Logs) -> None:
        """A fit ends, however it ends: `run.status` says how."""

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """An epoch begins, counting from 0; `run.lr` may be set."""

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """An epoch has been trained and validated; `logs` is complete, keys may be added, `run.lr` may be set."""

    def on_train_batch_begin(self, batch: int, logs: Logs) -> None:
        """A batch has come from the loader."""

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """A batch is done; `logs` gives the means of the epoch so far, and goes on doing so: keep `dict(logs)`."""

    def on_batch_ready(self) -> None:
        """The batch is on the device, before the forward pass; `run.batch` may be replaced by a new one."""

    def on_loss_ready(self) -> None:
        """`run.outputs` and `run.loss` exist; `run.loss` may be replaced."""

    def on_backward_end(self) -> None:
        """The gradients of this batch have been added to the others of its step."""

    def on_step_begin(self) -> None:
        """The gradients of a step are complete and unscaled; they may be changed and `run.lr` set."""

    def on_step_end(self) -> None:
        """The weights have moved."""

    def on_test_begin(self, logs: Logs) -> None:
        """An evaluation begins, inside `fit` or alone."""

    def on_test_end(self, logs: Logs) -> None:
        """An evaluation is done; `logs` has its results, without a prefix."""

    def on_test_batch_begin(self, batch: int, logs: Logs) -> None:
        """A batch of an evaluation has come from the loader."""

    def on_test_batch_end(self, batch: int, logs: Logs) -> None:
        """A batch of an evaluation is done."""

    def on_predict_begin(self, logs: Logs) -> None:
        """A prediction begins."""

    def on_predict_end(self, logs: Logs) -> None:
        """A prediction is done."""

    def on_predict_batch_begin(self, batch: int, logs: Logs) -> None:
        """A batch of a prediction has come."""

    def on_predict_batch_end(self, batch: int, logs: Logs) -> None:
        """A batch of a prediction is done; `run.outputs` has its logits."""


def _demand_order(name: str, order: object) -> None:
    if not is_number(order):
        raise ConfigError(
            f"{name}.order = {order!r}",
            f"one of {', '.join(f'Order.{band.name}' for band in Order)}",
            "For example order = Order.WATCH; leave it out, and it is Order.USER.",
        )


def _demand_arguments(cls: type[Callback], hook: str) -> None:
    """Refuse a hook that could not be called with what it will be given."""
    given = list(inspect.signature(getattr(Callback, hook)).parameters)
    method = inspect.getattr_static(cls, hook)
    if not inspect.isfunction(method):
        return  # a class may call it as it likes
    signature = inspect.signature(method, follow_wrapped=False)
    try:
        signature.bind(*given)
    except TypeError as error:
        raise ConfigError(
            f"{cls.__name__}.{hook}{signature}",
            f"a method that takes ({', '.join(given)})",
            f"Write def {hook}({', '.join(given)}): in {cls.__name__}.",
        ) from error


HOOKS: tuple[str, ...] = tuple(name for name in vars(Callback) if name.startswith("on_"))
"""The names of all hooks."""


class Hooks:
    """Call the hooks of all callbacks, in their order.

    Which callbacks override which hook is looked up once, so a hook that nobody overrides costs next to nothing.

    Args:
        callbacks: in the order the user gave them; they are sorted into bands, which keeps that order inside a band.
        run: what they see as `self.run`.
        learner: what they see as `self.learner` and `self.model`.
    """

    def __init__(self, callbacks: Iterable[Callback], run: Run, learner: "LearnerLike") -> None:
        self.callbacks = sorted(callbacks, key=lambda callback: callback.order)
        self._run = run
        self._learner = learner
        self._listeners = {hook: self._overriding(hook) for hook in HOOKS}

    def _overriding(self, hook: str) -> "list[tuple[Callback, Callable[..., None]]]":
        return [(callback, getattr(callback, hook)) for callback in self.callbacks if _overrides(callback, hook)]

    def call(self, hook: str, *arguments: Any) -> None:
        """Call a hook of all callbacks that override it."""
        listeners = self._listeners[hook]
        if listeners:
            run = self._run
            if run.hook:  # an exception came out of it
                run.unfinished_hook = run.hook
            for callback, method in listeners:
                run.hook, run.speaker = hook, callback
                method(*arguments)
            run.hook, run.speaker = "", None

    @contextmanager
    def bound(self) -> "Iterator[None]":
        """Let the callbacks see this run inside; afterwards they see the one around it again, if there is one."""
        before = [dict(vars(callback)) for callback in self.callbacks]
        for callback in self.callbacks:
            callback.run, callback.learner, callback.params = self._run, self._learner, self._run.params
        self._run.active = True
        try:
            yield
        finally:
            self._run.active = False
            for callback, seen in zip(self.callbacks, before, strict=True):
                if isinstance(outer := seen.get("run"), Run) and outer.active:
                    callback.run, callback.learner, callback.params = outer, seen["learner"], seen["params"]


def looks_at_batches(callback: Callback) -> bool:
    """Say whether a callback changes batches, or is the user's and has a hook in which it may look at them in a fit."""
    hooks = [hook for hook in HOOKS if re.search("batch|loss|backward|step", hook) and "predict" not in hook]
    own = type(callback).__module__.partition(".")[0] == __name__.partition(".")[0]
    return (not own or callback.order == Order.DATA) and any(_overrides(callback, hook) for hook in hooks)


def _overrides(callback: Callback, hook: str) -> bool:
    """Say whether a callback, or its class, has a hook of its own."""
    return getattr(getattr(callback, hook), "__func__", None) is not getattr(Callback, hook)


def check_callbacks(callbacks: Sequence[Callback], run: Run) -> None:
    """Refuse callbacks that cannot work, alone or together, before anything has happened.

    An evaluation and a prediction take whatever a fit would: the hooks that could go wrong are not called.

    Raises:
        ConfigError: something in the list is no callback or has an order that is none; or, in a fit, two of them set
            the rate or write to the same place, one declares a key that the fit has itself, or one refuses.
    """
    for callback in callbacks:
        if not isinstance(callback, Callback):
            todo = "Derive its class from headstart.Callback."
            if isinstance(callback, type):
                todo = "Call the class: callbacks=[ThatClass()]."
            elif callable(callback):
                todo = "A schedule goes into a callback: LRSchedule(cosine())."
            raise ConfigError(
                f"{callback!r} among the callbacks", "objects of classes derived from headstart.Callback", todo
            )
        _demand_order(type(callback).__name__, callback.order)
    if run.fit > 0:
        _demand_one_writer_of_rates(callbacks)
        _demand_own_places(callbacks)
        _demand_new_keys(callbacks, run)
        for callback in callbacks:
            callback.check(run)


def _demand_one_writer_of_rates(callbacks: Sequence[Callback]) -> None:
    writers = [type(callback).__name__ for callback in callbacks if callback.sets_lr]
    if len(writers) > 1:
        raise ConfigError(
            f"{' and '.join(writers)} in one fit",
            "one callback that sets the rate",
            "Remove one of them, or combine them into one schedule.",
        )


def _demand_own_places(callbacks: Sequence[Callback]) -> None:
    writers: dict[Path, list[str]] = {}
    for callback in callbacks:
        if callback.writes_to is not None:
            writers.setdefault(as_path(callback.writes_to).resolve(), []).append(type(callback).__name__)
    for path, names in writers.items():
        if len(names) > 1:
            raise ConfigError(
                f"{' and '.join(names)} in one fit, writing to {path}",
                "a file or folder of its own for each",
                f"Give one of them another, for example {str(path.parent / f'{path.stem}-2{path.suffix}')!r}.",
            )


def _demand_new_keys(callbacks: Sequence[Callback], run: Run) -> None:
    keys = list(run.directions)
    own = keys[: keys.index("learning_rate") + 1]  # those that callbacks add come after it
    for callback in callbacks:
        for key in own:
            if key in callback.adds:
                raise ConfigError(
                    f"{type(callback).__name__} with adds={callback.adds!r}, though the fit has {key!r} itself",
                    f"keys that are new; the fit has {', '.join(own)}",
                    f"Call it for example 'own_{key}'. Who changes the value of a key that is there declares nothing.",
                )


def added_keys(callbacks: Sequence[Callback]) -> dict[str, Direction]:
    """Collect the log keys that callbacks declare in their `adds`.

    Raises:
        ConfigError: a declaration does not say which way is better.
    """
    keys: dict[str, Direction] = {}
    for callback in callbacks:
        adds: Any = getattr(callback, "adds", {})
        if not isinstance(adds, Mapping) or not all(
            isinstance(key, str) and better in ("min", "max") for key, better in adds.items()
        ):
            raise ConfigError(
                f"{type(callback).__name__} with adds={adds!r}",
                "its log keys, each with the better direction, 'min' or 'max'",
                "For example adds = {'val_f1': 'max'}.",
            )
        keys.update(adds)
    return keys
