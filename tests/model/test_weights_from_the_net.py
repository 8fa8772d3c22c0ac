"""Weights that come over a network: fetched once and checked, never asked for again, and said to be missing in time.

The libraries' own download code talks to a small server on this machine: torchvision's and timm's files by address, and
timm's through the client of the Hugging Face hub, whose protocol the server speaks as far as a download needs it.
"""

import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
import torchvision
from handmade import refusal
from safetensors.torch import save_file
from torch import Tensor, nn

from headstart.errors import BackboneError, CheckpointError
from headstart.model.head import Head
from headstart.model.weights import fetch
from headstart.model.zoo import open_network

SQUEEZENET = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1
VIT = "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"


class Site(ThreadingHTTPServer):
    """Serve files from memory, and remember what was asked for.

    Attributes:
        files: contents by path.
        asked: what was asked for, as "GET /path".
        cut: how many bytes of a body are held back before the connection ends.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.cut = 0
        self.address = f"http://127.0.0.1:{self.server_port}"


class _Answers(BaseHTTPRequestHandler):
    server: Site

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        site, path = self.server, self.path.partition("?")[0]
        site.asked.append(f"{self.command} {path}")
        content = site.files.get(path)
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.send_header("X-Repo-Commit", "0" * 40)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        else:
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.end_headers()
        if body and content is not None:
            self.wfile.write(content[: len(content) - site.cut])

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - http.server's word
        """Say nothing."""


@pytest.fixture
def site() -> Iterator[Site]:
    server = Site()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def nowhere() -> str:
    """Give an address that nobody answers at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let both libraries keep what they fetch below the test's own folder."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def from_hub(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Let the hub's client talk to another address."""
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + template)


def as_bytes(tmp_path: Path, state: dict[str, Tensor], suffix: str = ".pth") -> bytes:
    path = tmp_path / f"served{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    return path.read_bytes()


def backbones_equal(network: nn.Module, state: dict[str, Tensor], *head: str) -> bool:
    own = {name: value for name, value in network.state_dict().items() if not name.startswith(head)}
    return len(own) > 0 and all(torch.equal(value, state[name]) for name, value in own.items())


# torchvision


@pytest.fixture
def squeezenet(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Serve SqueezeNet's weights under the name that belongs to their digest, and let torchvision's entry say so."""
    state = torchvision.models.squeezenet1_1().state_dict()
    content = as_bytes(tmp_path, state)
    filename = f"squeezenet1_1-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    site.files[f"/models/{filename}"] = content
    monkeypatch.setattr(SQUEEZENET.value, "url", f"{site.address}/models/{filename}")
    return state


def test_torchvisions_weights_are_fetched_checked_and_loaded(
    site: Site, caches: Path, squeezenet: dict[str, Tensor]
) -> None:
    opened = open_network("torchvision/squeezenet1_1", 3)
    assert backbones_equal(opened.network, squeezenet, "classifier")
    assert opened.network.classifier[1].out_channels == 3
    assert opened.description == "torchvision squeezenet1_1 (weights IMAGENET1K_V1)"
    known = open_network("torchvision/squeezenet1_1", ("bees", "wasp"), head=Head(reuse="auto"))
    assert torch.equal(known.network.classifier[1].weight[0], squeezenet["classifier.1.weight"][309])
    kept = caches / "torch" / "hub" / "checkpoints"
    assert [path.name for path in kept.iterdir()] == [Path(SQUEEZENET.url).name]


def test_what_has_been_fetched_needs_no_network(
    site: Site, nowhere: str, squeezenet: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_network("torchvision/squeezenet1_1", 3)
    assert [request.partition(" ")[0] for request in site.asked] == ["HEAD", "GET"]
    monkeypatch.setattr(SQUEEZENET.value, "url", f"{nowhere}/{Path(SQUEEZENET.url).name}")
    assert backbones_equal(open_network("torchvision/squeezenet1_1", 5).network, squeezenet, "classifier")


def test_without_a_network_the_error_comes_at_once_and_names_file_and_ways_out(
    nowhere: str, caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SQUEEZENET.value, "url", f"{nowhere}/squeezenet1_1-12345678.pth")
    began = time.monotonic()
    error = refusal(BackboneError, lambda: open_network("torchvision/squeezenet1_1", 3))
    assert time.monotonic() - began < 3
    assert "squeezenet1_1-12345678.pth" in error.arrived
    assert "pretrained='path/to/weights.pth'" in error.todo
    assert "pretrained=False" in error.todo
    assert not (caches / "torch").exists()


def test_a_file_that_is_not_what_its_name_says_is_not_kept(
    site: Site, caches: Path, squeezenet: dict[str, Tensor]
) -> None:
    path = next(iter(site.files))
    site.files[path] = site.files[path][:-1] + b"?"
    error = refusal(BackboneError, lambda: open_network("torchvision/squeezenet1_1", 3))
    assert "SHA-256" in error.arrived
    assert not list((caches / "torch" / "hub" / "checkpoints").iterdir())


def test_a_file_that_is_not_there_is_told_with_its_address(site: Site, squeezenet: dict[str, Tensor]) -> None:
    site.files.clear()
    error = refusal(BackboneError, lambda: open_network("torchvision/squeezenet1_1", 3))
    assert "404" in error.arrived
    assert SQUEEZENET.url in error.arrived


def test_a_cached_file_is_read_without_running_what_is_in_it(site: Site, squeezenet: dict[str, Tensor]) -> None:
    kept = fetch(SQUEEZENET.url, "squeezenet")
    torch.save(nn.Linear(2, 2), kept)
    assert str(kept) in refusal(CheckpointError, lambda: open_network("torchvision/squeezenet1_1", 3)).arrived


# timm


@pytest.fixture
def vit(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Serve weights of the smallest vision transformer, as the hub would."""
    state: dict[str, Tensor] = timm.create_model("vit_tiny_patch16_224").state_dict()
    site.files[f"/{VIT}/resolve/main/model.safetensors"] = as_bytes(tmp_path, state, ".safetensors")
    from_hub(monkeypatch, site.address)
    return state


def test_timms_weights_are_fetched_once_and_then_need_no_network(
    site: Site, nowhere: str, vit: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_network("vit_tiny_patch16_224", 3)
    assert backbones_equal(opened.network, vit, "head")
    assert opened.network.head.out_features == 3
    assert opened.description == "timm vit_tiny_patch16_224 (weights augreg_in21k_ft_in1k)"
    assert sum(request.startswith("GET") and request.endswith("model.safetensors") for request in site.asked) == 1
    from_hub(monkeypatch, nowhere)
    asked = len(site.asked)
    again = open_network("vit_tiny_patch16_224", 5)
    assert backbones_equal(again.network, vit, "head")
    assert len(site.asked) == asked


def test_the_head_is_new_although_the_weights_have_as_many_classes(vit: dict[str, Tensor]) -> None:
    opened = open_network("vit_tiny_patch16_224", 1000)
    assert backbones_equal(opened.network, vit, "head")
    assert opened.network.head.weight.shape == vit["head.weight"].shape
    assert not torch.isclose(opened.network.head.weight, vit["head.weight"]).all(1).any()


@pytest.mark.parametrize("head", [Head(reuse="auto"), Head(reuse={"bees": "bee"}, dropout=0.2)])
def test_timms_weights_bring_what_they_know_of_the_classes(vit: dict[str, Tensor], head: Head) -> None:
    opened = open_network("vit_tiny_patch16_224", ("bees", "wasp"), head=head)
    last = opened.network.head[-1] if head.dropout else opened.network.head
    assert backbones_equal(opened.network, vit, "head")
    assert torch.equal(last.weight[0], vit["head.weight"][309])
    assert torch.equal(last.bias[0], vit["head.bias"][309])
    assert not torch.isclose(last.weight[1], vit["head.weight"]).all(1).any()
    own = {name: value.shape for name, value in opened.network.state_dict().items() if not name.startswith("head")}
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=2)
    assert own.keys() == {name for name in plain.state_dict() if not name.startswith("head")}
    assert opened.network.num_classes == plain.num_classes


def test_timm_without_a_network_fails_at_once_and_names_file_and_ways_out(
    nowhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_hub(monkeypatch, nowhere)
    began = time.monotonic()
    error = refusal(BackboneError, lambda: open_network("resnet18", 3))
    assert time.monotonic() - began < 3
    assert "timm/resnet18.a1_in1k (model.safetensors)" in error.arrived
    assert nowhere in error.arrived
    assert "pretrained='path/to/weights.pth'" in error.todo
    assert "pretrained=False" in error.todo


def test_a_hub_that_does_not_have_the_weights_is_told_of(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from_hub(monkeypatch, site.address)
    error = refusal(BackboneError, lambda: open_network("resnet18", 3))
    assert "resnet18" in error.arrived
    assert "pretrained=False" in error.todo


def test_a_hub_that_hangs_up_in_the_middle_is_told_of(
    site: Site, vit: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the hub's client waits between its attempts
    site.cut = max(map(len, site.files.values()))
    error = refusal(BackboneError, lambda: open_network("vit_tiny_patch16_224", 3))
    assert "vit_tiny_patch16_224" in error.arrived


def test_weights_that_timm_keeps_elsewhere_are_fetched_once_too(
    site: Site, caches: Path, nowhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "legacy_seresnet18.in1k"
    config = timm.models._registry._model_pretrained_cfgs[name]
    assert not config.hf_hub_id
    state: dict[str, Tensor] = timm.create_model("legacy_seresnet18").state_dict()
    site.files["/seresnet18.pth"] = as_bytes(caches, state)
    monkeypatch.setattr(config, "url", f"{nowhere}/seresnet18.pth")
    assert "seresnet18.pth" in refusal(BackboneError, lambda: open_network(name, 3)).arrived
    monkeypatch.setattr(config, "url", f"{site.address}/seresnet18.pth")
    assert backbones_equal(open_network(name, 3).network, state, "last_linear")
    monkeypatch.setattr(config, "url", f"{nowhere}/seresnet18.pth")
    assert backbones_equal(open_network(name, 5).network, state, "last_linear")
    assert site.asked == ["HEAD /seresnet18.pth", "GET /seresnet18.pth"]


def test_weights_that_an_entry_keeps_in_a_file_need_no_network(
    tmp_path: Path, nowhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_hub(monkeypatch, nowhere)
    state: dict[str, Tensor] = timm.create_model("mobilenetv3_small_050").state_dict()
    as_bytes(tmp_path, state)
    entry = timm.models._registry._model_pretrained_cfgs["mobilenetv3_small_050.lamb_in1k"]
    monkeypatch.setattr(entry, "file", str(tmp_path / "served.pth"))
    opened = open_network("mobilenetv3_small_050.lamb_in1k", 3)
    assert backbones_equal(opened.network, state, "classifier")


@pytest.mark.slow
def test_silence_on_the_other_side_is_not_waited_for(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        began = time.monotonic()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/weights-12345678.pth"
        assert "timed out" in refusal(BackboneError, lambda: fetch(url, "mine")).arrived
        assert time.monotonic() - began < 10
