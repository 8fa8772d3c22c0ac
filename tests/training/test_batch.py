"""A batch, and its way from a loader to the device."""

import os
import subprocess
import sys

import pytest
import timm
import torch
import torchvision
from handmade import CPU, pairs
from torch import nn

from headstart import ImageData, Learner
from headstart.training.batch import Batch, choose_memory_format, preparer


def halve(images):
    """Stand in for a normaliser."""
    return images.float() / 2


def test_a_batch_is_as_long_as_it_has_pictures():
    assert len(Batch(torch.zeros(5, 3, 2, 2), torch.zeros(5, 3))) == 5


def test_uint8_pictures_are_normalised_and_float_ones_are_final():
    prepare = preparer(CPU, halve, memory_format=torch.contiguous_format)
    targets = torch.tensor([0, 1])
    pixels = torch.full((2, 3, 4, 4), 6, dtype=torch.uint8)
    assert torch.equal(prepare((pixels, targets)).images, torch.full((2, 3, 4, 4), 3.0))
    assert torch.equal(prepare((pixels.float(), targets)).images, torch.full((2, 3, 4, 4), 6.0))
    assert torch.equal(pixels, torch.full((2, 3, 4, 4), 6, dtype=torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_pictures_arrive_in_single_precision(dtype):
    images = torch.rand(2, 3, 4, 4).to(dtype)
    batch = preparer(CPU, halve, memory_format=torch.contiguous_format)((images, torch.tensor([0, 1])))
    assert batch.images.dtype == torch.float32
    assert torch.equal(batch.images, images.float())


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_pictures_lie_in_memory_as_the_network_does(kind, memory_format):
    prepare = preparer(CPU, halve, memory_format=memory_format)
    values = (torch.rand(2, 3, 4, 4) * 255).to(kind)
    for images in (values, values.contiguous(memory_format=torch.channels_last)):
        batch = prepare((images, torch.tensor([0, 1])))
        assert batch.images.is_contiguous(memory_format=memory_format)
        assert torch.equal(batch.images, halve(values) if kind == torch.uint8 else values)


def test_targets_stay_what_they_are():
    for targets in (torch.tensor([2, 0]), torch.tensor([[0.25, 0.75], [1.0, 0.0]])):
        batch = preparer(CPU, halve, memory_format=torch.channels_last)((torch.zeros(2, 3, 4, 4), targets))
        assert torch.equal(batch.targets, targets)
        assert batch.targets.dtype == targets.dtype


def test_library_networks_of_convolutions_lie_channels_last_and_others_do_not():
    for network in (timm.create_model("resnet10t", num_classes=2), torchvision.models.squeezenet1_1(num_classes=2)):
        assert choose_memory_format(network, CPU) is torch.channels_last
    assert choose_memory_format(timm.create_model("test_vit", num_classes=2), CPU) is torch.contiguous_format


@pytest.mark.parametrize("name", ["fastvit_t8", "gernet_s", "mobileone_s0", "repvgg_a0"])
def test_a_network_with_a_strided_1_x_1_convolution_of_few_channels_lies_channels_last_on_a_gpu_alone(name):
    with torch.device("meta"):
        network = timm.create_model(name)
    assert choose_memory_format(network, CPU) is torch.contiguous_format
    assert choose_memory_format(network, torch.device("cuda")) is torch.channels_last


def test_a_strided_1_x_1_convolution_of_few_channels_trains_on_a_cpu():
    code = """
import timm, torch
from headstart import ImageData, Learner

images = torch.randn(2, 3, 160, 160)
data = ImageData.from_loaders([(images, torch.tensor([0, 1]))], classes=("a", "b"))
mine = timm.create_model("repvgg_a0", num_classes=2).to(memory_format=torch.channels_last)
for network in ("repvgg_a0", mine):
    Learner(network, data, pretrained=False, device="cpu").fit(1, lr=1e-4, verbose=False)
"""
    # In a process of its own, which channels last would end: the gradient is written past the end of its memory.
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})  # noqa: S603


def test_a_network_of_ones_own_keeps_the_format_it_came_in(tiny_network):
    network = tiny_network()
    assert choose_memory_format(network, CPU) is torch.contiguous_format
    assert choose_memory_format(network.to(memory_format=torch.channels_last), CPU) is torch.channels_last
    assert choose_memory_format(nn.Flatten(), CPU) is torch.contiguous_format


class Viewing(nn.Module):
    """The network of many tutorials: it flattens its feature maps with `view`, which channels last would not allow."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 8, 3, padding=1)
        self.fc = nn.Linear(8 * 6 * 6, 3)

    def forward(self, images):
        return self.fc(self.features(images).view(-1, 8 * 6 * 6))


def test_a_network_that_views_its_feature_maps_trains():
    learner = Learner(Viewing(), ImageData.from_loaders(pairs(4, 4), classes=3), device="cpu")
    assert len(learner.fit(1, 0.01, verbose=False).history["loss"]) == 1
