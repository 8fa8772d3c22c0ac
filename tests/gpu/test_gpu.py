"""What only a CUDA device can show: mixed precision, memory formats, and that nothing waits for the device."""

import math

import pytest
import torch
from handmade import At, made_learner, pairs, plain_network, same, weights
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.data import TensorDataset

from headstart import EarlyStopping, ImageData, Learner, LRSchedule, ModelCheckpoint, TerminateOnNaN, cosine
from headstart.training.precision import Precision, Scaler

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device, and this machine has none", allow_module_level=True)

pytestmark = pytest.mark.gpu

HAS_BF16 = torch.cuda.is_bf16_supported(including_emulation=False)
WAITS = {
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "aten::item",
    "aten::_local_scalar_dense",
    "aten::is_nonzero",
}
"""What a trace calls the moments in which the processor waits for the device."""


@pytest.fixture
def make(tiny_network):
    """Give a maker of Learners on the GPU over small float batches, 32 pixels wide."""

    def learner(train=None, val=None, **options):
        settings = {
            "network": tiny_network().to(memory_format=torch.channels_last),
            "device": "cuda",
            "optimizer": "adamw",
            **options,
        }
        return made_learner(pairs(8, 8, 8, 8, side=32) if train is None else train, val, **settings)

    return learner


@pytest.fixture
def pixels_learner(tiny_network):
    """Give a Learner over uint8 pictures that the loader pins and the device normalises."""
    chance = torch.Generator().manual_seed(0)
    pictures = torch.randint(256, (44, 3, 32, 32), generator=chance, dtype=torch.uint8)
    labels = torch.randint(3, (44,), generator=chance)
    data = ImageData.from_datasets(
        TensorDataset(pictures, labels), classes=3, image_size=32, batch_size=4, augment=None, workers=0
    )

    def learner(**options):
        return Learner(tiny_network().to(memory_format=torch.channels_last), data, device="cuda", **options)

    return learner


# Precision.


def test_a_gpu_is_taken_and_its_arithmetic_chosen_without_a_word(make):
    learner = make(device="auto")
    assert {parameter.device.type for parameter in learner.model.parameters()} == {"cuda"}
    assert learner._session.precision == Precision("bf16" if HAS_BF16 else "fp16", "cuda")


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_convolutions_are_computed_in_the_arithmetic_and_all_else_is_kept_in_full(make, precision, dtype):
    if precision == "bf16" and not HAS_BF16:
        pytest.skip("this GPU has no bf16")
    learner, seen = make(val=pairs(4, side=32), precision=precision), set()
    learner.model.stem[0].register_forward_hook(lambda module, given, made: seen.add(made.dtype))
    losses = []
    look = At(on_loss_ready=lambda c: losses.append(c.run.loss.dtype))
    history = learner.fit(2, 1e-3, callbacks=[look], verbose=False)
    assert seen == {dtype}
    assert set(losses) == {torch.float32}
    assert {tensor.dtype for tensor in weights(learner).values()} == {torch.float32, torch.int64}
    assert all(math.isfinite(value) for values in history.history.values() for value in values)
    probabilities = learner.predict(torch.zeros(2, 3, 32, 32)).probabilities
    assert (probabilities.dtype, probabilities.device.type) == (torch.float32, "cpu")


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", torch.optim.SGD], ids=["fused adamw", "fused sgd", "foreach"])
def test_an_overflow_in_fp16_halves_the_scale_skips_the_step_and_training_goes_on(make, monkeypatch, optimizer):
    scalers = []

    def scaler(precision):
        """Begin lower than usual, so that nothing overflows by itself."""
        scalers.append(Scaler(precision.device_type, init_scale=256.0, enabled=precision.name == "fp16"))
        return scalers[-1]

    monkeypatch.setattr(Precision, "scaler", scaler)
    before, after, scales = [], [], []

    def overflow(callback):
        if callback.run.step == 2:
            callback.run.loss = callback.run.loss * 1e30

    def parameters(callback):
        return [parameter.detach().clone() for parameter in callback.run.network.parameters()]

    watch = At(
        on_loss_ready=overflow,
        on_step_begin=lambda c: before.append(parameters(c)),
        on_step_end=lambda c: (after.append(parameters(c)), scales.append(scalers[-1].get_scale())),
    )
    make(precision="fp16", optimizer=optimizer).fit(2, 1e-3, callbacks=[watch], verbose=False)
    moved = [
        not all(torch.equal(old, new) for old, new in zip(*step, strict=True))
        for step in zip(before, after, strict=True)
    ]
    assert moved == [True, True, False, True, True, True, True, True]
    assert scales == [256.0] * 2 + [128.0] * 6
    assert all(torch.isfinite(parameter).all() for parameter in after[-1])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns_what_full_precision_does(make, precision):
    if precision == "bf16" and not HAS_BF16:
        pytest.skip("this GPU has no bf16")
    full, mixed = make(precision="fp32"), make(precision=precision)
    expected, found = (learner.fit(10, 3e-3, verbose=False).history for learner in (full, mixed))
    assert found["loss"][-1] < 0.8 * found["loss"][0]
    assert found["loss"] == pytest.approx(expected["loss"], rel=0.2)


# Memory.


def test_networks_that_like_channels_last_and_their_batches_stay_so(make, pixels_learner):
    for learner in (make(), pixels_learner()):
        formats = []

        def look(callback):
            images = callback.run.batch.images
            formats.append(images.is_contiguous(memory_format=torch.channels_last))  # noqa: B023 - used at once

        learner.model.stage1[0].register_forward_hook(
            lambda module, given, made: formats.append(made.is_contiguous(memory_format=torch.channels_last))  # noqa: B023
        )
        learner.fit(1, 1e-3, callbacks=[At(on_loss_ready=look)], verbose=False)
        learner.evaluate("train")
        assert formats
        assert all(formats)
        assert learner.model.stage1[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_memory_does_not_grow_from_epoch_to_epoch(make):
    used = []

    def look(callback, epoch, logs):
        torch.cuda.synchronize()
        used.append(torch.cuda.memory_allocated())

    make(val=pairs(4, side=32)).fit(5, 1e-3, callbacks=[At(on_epoch_end=look)], verbose=False)
    assert len(set(used[1:])) == 1


# Nothing waits for the device.


@pytest.mark.filterwarnings("ignore::UserWarning")  # the profiler's own, which differ from release to release
@pytest.mark.parametrize("reads", [False, True], ids=["silent", "read"])
@pytest.mark.parametrize("settings", [{}, {"clip_norm": 1.0, "accumulate": 2}], ids=["plain", "accumulated"])
def test_no_batch_of_training_waits_unless_somebody_reads_its_logs(pixels_learner, settings, reads):
    """The second epoch is traced; the first one lets the libraries choose their kernels."""
    trace = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
    spans = []

    def begin(callback, batch, logs):
        if callback.run.epoch == 1:
            if batch == 0:
                trace.start()
            spans.append(record_function("a batch"))
            spans[-1].__enter__()

    def end(callback, batch, logs):
        if callback.run.epoch == 1:
            if reads:
                logs["loss"]
            spans[-1].__exit__(None, None, None)
            if batch == callback.run.batches - 1:
                torch.cuda.synchronize()
                trace.stop()

    at = At(on_train_batch_begin=begin, on_train_batch_end=end)
    pixels_learner().fit(2, 1e-3, callbacks=[LRSchedule(cosine()), at], verbose=False, **settings)
    events = [event for event in trace.events() if event.device_type == DeviceType.CPU]
    batches = [event.time_range for event in events if event.name == "a batch"]
    inside = {
        e.name for e in events if any(b.start <= e.time_range.start and e.time_range.end <= b.end for b in batches)
    }
    assert len(batches) == 11
    assert any("LaunchKernel" in name for name in inside), "the trace has seen nothing of the device"
    if reads:
        assert {"aten::item", "aten::_local_scalar_dense"} <= inside
    else:
        assert inside & WAITS == set()


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("precision", ["auto", "fp16", "fp32"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_cuda_itself_notices_no_waiting_inside_batches(pixels_learner, precision, optimizer):
    def strict(callback, batch, logs):
        if callback.run.epoch:
            torch.cuda.set_sync_debug_mode("error")

    def loose(callback, batch, logs):
        torch.cuda.set_sync_debug_mode("default")

    at = At(on_train_batch_begin=strict, on_train_batch_end=loose)
    try:
        pixels_learner(precision=precision, optimizer=optimizer).fit(
            2, 1e-3, clip_norm=1.0, accumulate=2, callbacks=[at, LRSchedule(cosine())], verbose=False
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_cuda_notices_a_callback_that_reads_the_logs(pixels_learner):
    """The control of the test above."""

    def read(callback, batch, logs):
        torch.cuda.set_sync_debug_mode("error")
        logs["loss"]

    try:
        with pytest.raises(RuntimeError, match="synchronizing CUDA operation"):
            pixels_learner().fit(1, 1e-3, callbacks=[At(on_train_batch_end=read)], verbose=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_pictures_come_from_memory_that_the_device_can_fetch_by_itself(pixels_learner, monkeypatch):
    learner = pixels_learner()
    session, pinned = learner._session, []
    plain = session._prepare

    def prepare(pair):
        pinned.append((pair[0].is_pinned(), pair[1].is_pinned()))
        return plain(pair)

    monkeypatch.setattr(session, "_prepare", prepare)
    learner.fit(1, 1e-3, verbose=False)
    assert set(pinned) == {(True, True)}


# The same training.


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 1e-2), ("adamw", 1e-3)])
def test_a_cpu_and_a_gpu_learn_the_same_in_full_precision(make, optimizer, lr):
    settings = {"val": pairs(5, side=32, seed=1), "precision": "fp32", "optimizer": optimizer}
    learners = [make(device=device, metrics=("accuracy", "f1"), **settings) for device in ("cpu", "cuda")]
    with torch.backends.cudnn.flags(enabled=False):  # cuDNN would round to TF32
        histories = [learner.fit(3, lr, head_lr_mult=2, verbose=False).history for learner in learners]
    for key in ("loss", "val_loss"):
        assert histories[1][key] == pytest.approx(histories[0][key], rel=1e-3)
    on_cpu, on_gpu = map(weights, learners)
    if optimizer == "sgd":  # Adam turns rounding errors of tiny gradients into whole steps
        for name, tensor in on_cpu.items():
            torch.testing.assert_close(on_gpu[name].cpu(), tensor, rtol=1e-2, atol=1e-3)


def test_two_runs_with_dropout_are_the_same_bit_for_bit_also_with_evaluations_inside(make):
    def look(callback, *_):
        torch.rand(7, device="cuda")
        callback.learner.evaluate("train")

    found = []
    for callbacks in ([], [At(on_train_batch_begin=look)]):
        torch.cuda.manual_seed(len(callbacks))
        learner = make(pairs(8, 8, 4), network=plain_network(dropout=0.5), precision="fp32")
        learner.fit(2, 1e-2, callbacks=callbacks, verbose=False)
        found.append(weights(learner))
    assert same(*found)


def test_named_optimizers_are_fused_and_a_thawed_backbone_joins_its_head(make):
    for name in ("adamw", "sgd"):
        learner = make(optimizer=name)
        learner.freeze()
        before = weights(learner)
        learner.fit(1, 1e-2, verbose=False)
        assert all(group["fused"] for group in learner._session.optimizer.param_groups)
        moved = {key for key, tensor in weights(learner).items() if not torch.equal(tensor, before[key])}
        assert moved == {"fc.weight", "fc.bias"}
        learner.unfreeze()
        learner.fit(1, 1e-2, verbose=False)
        assert not any(torch.equal(tensor, before[key]) for key, tensor in weights(learner).items())


def test_a_trailing_batch_of_one_picture_moves_no_statistics(make):
    learner = make(pairs(4, 1, side=8))
    learner.fit(1, 1e-3, verbose=False)
    assert int(learner.model.stem[1].num_batches_tracked) == 1


# What is kept.


def test_best_weights_come_back_from_the_processors_memory(make):
    stopping, kept = EarlyStopping(patience=9), []

    def worse(callback, epoch, logs):
        logs["val_loss"] = float(epoch)
        kept.append(weights(callback.learner))

    learner = make(val=pairs(4, side=32))
    learner.fit(3, 1e-2, callbacks=[At(on_epoch_end=worse), stopping], verbose=False)
    assert same(weights(learner), kept[0])
    assert {tensor.device.type for tensor in weights(learner).values()} == {"cuda"}


def test_a_file_saved_on_a_gpu_opens_on_a_cpu(tmp_path):
    data = ImageData.from_loaders(pairs(4, side=32), pairs(3, side=32), classes=["ant", "bee", "wasp"])
    learner = Learner("test_resnet", data, pretrained=False, device="cuda", precision="fp32")
    learner.fit(1, 1e-3, callbacks=[ModelCheckpoint(tmp_path)], verbose=False)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.backends.cudnn.flags(enabled=False):
        expected = learner.predict(images).probabilities
    loaded = Learner.load(tmp_path / "fit-1" / "last.safetensors", device="cpu")
    torch.testing.assert_close(loaded.predict(images).probabilities, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bad", [1, 3])
def test_a_loss_that_is_not_finite_never_reaches_the_weights(make, bad):
    asked = iter(range(10**6))

    def loss(logits, targets):
        return torch.nn.functional.cross_entropy(logits, targets) + (math.nan if next(asked) == bad else 0.0)

    learner = make(loss=loss, precision="fp32")
    reasons = []
    note = At(on_train_end=lambda callback, logs: reasons.append(callback.run.stop_reason))
    learner.fit(2, 0.01, callbacks=[TerminateOnNaN(), note], verbose=False)
    assert reasons == [f"the loss of epoch 1, batch {bad + 1}, is not finite"]
    assert all(value.isfinite().all() for value in weights(learner).values())


def test_a_fit_that_died_goes_on_alike(make, tmp_path):
    def fit(folder, *more):
        learner = make(precision="fp32")
        callbacks = [ModelCheckpoint(folder), LRSchedule(cosine()), *more]
        learner.fit(4, 0.01, callbacks=callbacks, resume=True, verbose=False)
        return weights(learner)

    die = At(on_epoch_begin=lambda callback, epoch, logs: 1 / (2 - epoch))
    die.order = 4
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path / "cut", die)
    whole, again = fit(tmp_path / "whole"), fit(tmp_path / "cut")
    assert all(torch.allclose(whole[name].float(), again[name].float(), atol=1e-4) for name in whole)


def test_a_batch_that_does_not_fit_gives_the_gradients_of_the_whole():
    """In memory that is really too small: twice what half of the batch took."""

    def gradients(learner) -> dict[str, torch.Tensor]:
        found = {}
        keep = At(on_step_begin=lambda c: found.update({n: p.grad.cpu() for n, p in c.run.network.named_parameters()}))
        learner.fit(1, 0.1, callbacks=[keep], verbose=False)
        return found

    def wide() -> torch.nn.Module:
        layers = [torch.nn.Conv2d(3, 64, 3, padding=1), torch.nn.GELU(), torch.nn.Conv2d(64, 64, 3, padding=1)]
        torch.manual_seed(0)
        return torch.nn.Sequential(*layers, torch.nn.GELU(), torch.nn.Flatten(), torch.nn.Linear(64 * 64 * 64, 3))

    options = {"device": "cuda", "precision": "fp32"}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    expected = gradients(made_learner(pairs(64, side=64), network=wide(), **options))
    peak = torch.cuda.max_memory_reserved()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(0.7 * peak / total)
    try:
        sizes = []
        network = wide()
        network.register_forward_pre_hook(lambda module, images: sizes.append(len(images[0])))
        found = gradients(made_learner(pairs(64, side=64), network=network, **options))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert min(sizes) < 64
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=1e-5), name
