"""Which device, and which arithmetic."""

from contextlib import nullcontext

import pytest
import torch
from handmade import CLASSES, CPU, At, made_learner, pairs, same, weights
from torch import nn

from headstart import ConfigError, Head, ImageData, Learner, ModelCheckpoint, TerminateOnNaN
from headstart.training.precision import Precision, choose_device, choose_precision

CUDA = torch.device("cuda")
KINDS = """
    test_byobnet test_convnext test_efficientnet test_mambaout test_nfnet test_resnet test_vit convit_tiny
    edgenext_xx_small levit_128s mobilevit_xxs regnetx_002 swiftformer_xs visformer_tiny repvgg_a0
    torchvision/densenet121 torchvision/mobilenet_v2 torchvision/squeezenet1_1 torchvision/swin_t
"""
"""Small networks of many kinds, which take pictures of 224 pixels."""


@pytest.fixture
def machine(monkeypatch):
    """Pretend that a machine has these CUDA devices."""

    def pretend(devices: int, bf16: bool = True, mps: bool = False) -> None:
        def supported(including_emulation: bool = True) -> bool:
            return bf16 or including_emulation  # older GPUs only emulate it, slowly

        monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


def test_the_device_is_a_cuda_one_where_there_is_one(machine):
    machine(devices=1)
    assert choose_device("auto") == torch.device("cuda")
    machine(devices=0, mps=True)
    assert choose_device("auto") == CPU


def test_any_device_the_machine_has_may_be_named(machine):
    machine(devices=2, mps=True)
    for name in ("cpu", "cuda", "cuda:0", "cuda:1", "mps"):
        assert choose_device(name) == torch.device(name)
        assert choose_device(torch.device(name)) == torch.device(name)


@pytest.mark.parametrize(
    ("devices", "name"), [(0, "cuda"), (0, "mps"), (1, "cuda:1"), (2, "cuda:2"), (0, "cpu:1"), (0, "meta"), (0, "xpu")]
)
def test_a_device_the_machine_does_not_have_is_refused_with_those_it_has(machine, devices, name):
    machine(devices)
    with pytest.raises(ConfigError) as caught:
        choose_device(name)
    assert caught.value.arrived == f"device={name!r}"
    assert caught.value.needed == "a device this machine has: cpu" + (", cuda" if devices else "")
    assert caught.value.todo == "Leave device= out."


@pytest.mark.parametrize("name", ["gpu", "", None, ["cpu"]])
def test_a_device_that_means_nothing_is_refused(name):
    with pytest.raises(ConfigError, match=r"'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'[\s\S]*Leave device= out"):
        choose_device(name)


def test_auto_is_bf16_where_the_processor_is_faster_in_it(monkeypatch, capsys, tiny_network):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert choose_precision("auto", CPU) == Precision("bf16", "cpu")
    assert choose_precision("auto", torch.device("mps")) == Precision("fp32", "mps")
    for precision, told in {
        "auto": "bf16 on cpu; precision='fp32' computes in full",
        "bf16": "bf16 on cpu",
        "fp32": "fp32 on cpu",
    }.items():
        made_learner(pairs(8, side=32), network=tiny_network(), precision=precision, device="cpu")
        opened = "opened your TinyNetwork (224 pixels, ImageNet's mean and std), "
        assert capsys.readouterr().out == f"{opened}{told}\n"


def test_auto_is_bf16_where_the_gpu_has_it_fp16_on_older_ones_and_fp32_elsewhere(machine):
    machine(devices=1)
    assert choose_precision("auto", CUDA) == Precision("bf16", "cuda")
    machine(devices=1, bf16=False)
    assert choose_precision("auto", CUDA) == Precision("fp16", "cuda")
    assert choose_precision("auto", CPU) == Precision("fp32", "cpu")
    assert choose_precision("auto", torch.device("mps")) == Precision("fp32", "mps")


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_an_arithmetic_that_is_named_is_taken(name):
    assert choose_precision(name, CUDA) == Precision(name, "cuda")
    if name != "fp16":
        assert choose_precision(name, CPU) == Precision(name, "cpu")


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(ConfigError, match=r"'fp16' on a CPU[\s\S]*'bf16' where the CPU has it[\s\S]*Leave precision="):
        choose_precision("fp16", CPU)


@pytest.mark.parametrize("name", ["fp23", "half", None, 16])
def test_an_unknown_arithmetic_is_refused(name):
    with pytest.raises(ConfigError, match=r"one of auto, fp32, bf16, fp16[\s\S]*Leave it out"):
        choose_precision(name, CPU)
    with pytest.raises(ConfigError, match="Did you mean 'fp32'"):
        choose_precision("fp23", CPU)


def test_full_precision_changes_nothing_and_scales_nothing():
    precision = Precision("fp32", "cpu")
    assert isinstance(precision.autocast(), nullcontext)
    assert not precision.scaler().is_enabled()


def test_bf16_computes_products_in_bf16_and_scales_nothing():
    precision = Precision("bf16", "cpu")
    with precision.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert not precision.scaler().is_enabled()


@pytest.mark.slow
@pytest.mark.parametrize("model", KINDS.split())
def test_networks_of_all_kinds_compute_in_bf16_on_a_cpu(model):
    chance = torch.Generator().manual_seed(0)
    learners = {}
    for precision in ("fp32", "bf16"):
        data = ImageData.from_loaders(pairs(2, 2, side=224), pairs(2, side=224), classes=CLASSES)
        head = Head(init="xavier")
        learners[precision] = Learner(model, data, pretrained=False, head=head, precision=precision, device="cpu")
    pictures = torch.randn(2, 3, 224, 224, generator=chance)
    full, mixed = (learner.predict(pictures).probabilities for learner in learners.values())
    assert (full - mixed).abs().max() < 0.05
    before = weights(learners["bf16"])
    learners["bf16"].fit(1, 1e-3, verbose=False)
    after = weights(learners["bf16"])
    assert all(value.dtype == before[name].dtype for name, value in after.items())
    assert all(value.isfinite().all() for value in after.values())
    assert not same(before, after)


def test_a_fit_in_bf16_learns_nearly_what_one_in_fp32_does_and_keeps_weights_and_logs_in_full():
    full, mixed = made_learner(), made_learner(precision="bf16")
    expected, history = (learner.fit(3, 0.1, verbose=False).history for learner in (full, mixed))
    assert history["loss"] == pytest.approx(expected["loss"], rel=0.02)
    assert not same(weights(full), weights(mixed))
    assert all(tensor.dtype == torch.float32 for tensor in weights(mixed).values())
    assert mixed.predict(torch.zeros(2, 3, 6, 6)).probabilities.dtype == torch.float32


def test_a_loss_of_ones_own_is_computed_in_full():
    seen = []

    def loss(outputs, targets):
        seen.append(outputs.dtype)
        return (outputs - nn.functional.one_hot(targets, 3)).pow(2).mean()

    dtypes = []
    note = At(on_loss_ready=lambda c: dtypes.append(c.run.loss.dtype))
    made_learner(precision="bf16", loss=loss).fit(1, 0.1, callbacks=[note], verbose=False)
    assert {*seen, *dtypes} == {torch.float32}


@pytest.fixture
def half_learner():
    """Give a Learner that scales its loss as on a GPU without bf16; a gradient of step `bad` is too large."""

    def make(bad=(), train=None):
        learner = made_learner(pairs(4, 4, 4, 4) if train is None else train, optimizer="sgd")
        learner._session.precision = Precision("fp16", "cpu")
        steps = iter(range(10**6))
        spoil = learner.model[1].weight.register_hook
        spoil(lambda gradient: gradient * (torch.inf if next(steps) in bad else 1))
        return learner

    return make


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ((), ""),
        ((2,), "1 of 8 steps was passed over: gradients too large for fp16"),
        ((2, 3, 7), "3 of 8 steps were passed over: gradients too large for fp16"),
    ],
)
def test_steps_that_overflow_in_fp16_are_passed_over_and_counted(half_learner, capsys, bad, told):
    learner = half_learner(bad)
    capsys.readouterr()
    learner.fit(2, 0.01, callbacks=[TerminateOnNaN()], verbose=False)
    assert capsys.readouterr().out.strip() == told
    assert len(learner.history) == 2
    assert all(value.isfinite().all() for value in weights(learner).values())


def test_the_count_of_such_steps_comes_back_with_the_state_of_a_run(half_learner, tmp_path, capsys):
    saving = {"callbacks": [ModelCheckpoint(tmp_path)], "resume": True, "verbose": False}

    def cut(callback, epoch, logs):
        if epoch == 1 and not callback.run.resumed:
            raise ZeroDivisionError

    dying = At(on_epoch_end=cut)
    with pytest.raises(ZeroDivisionError):
        half_learner((1,)).fit(2, 0.01, **{**saving, "callbacks": [ModelCheckpoint(tmp_path), dying]})
    capsys.readouterr()
    half_learner((0,)).fit(2, 0.01, **{**saving, "callbacks": [ModelCheckpoint(tmp_path), At(on_epoch_end=cut)]})
    assert "2 of 8 steps were passed over" in capsys.readouterr().out
