"""Every family of timm and torchvision, with numbers: opened, trained in every way, saved and opened again."""

import copy
import math
import shutil
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from handmade import CPU, At, same, weights
from torch import Tensor
from torch.nn.functional import cross_entropy

from headstart import ImageData, Learner
from headstart.errors import BackboneError
from headstart.model.head import class_layers
from headstart.model.opened import is_within
from headstart.model.zoo import open_network

pytestmark = pytest.mark.slow

IN_TORCHVISION = {
    f"torchvision/{name}": f"torchvision/{torchvision.models.get_model_builder(name).__module__.rpartition('.')[2]}"
    for name in torchvision.models.list_models(module=torchvision.models)
}
FAMILIES = [*(f"timm/{module}" for module in timm.list_modules()), *dict.fromkeys(IN_TORCHVISION.values())]

# What stands for a family: the smallest of it, or one that costs less. Families that are not listed are measured.
MEMBERS = """
    beit_base_patch16_224 cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32 cpubone_nano crossvit_tiny_240
    cs3darknet_focus_s csatv2 cspnext_tiny davit_tiny deit_tiny_patch16_224 densenet121 dla46x_c dpn48b
    eca_botnext26ts_256 edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientvim_m1 efficientvit_b0
    efficientvit_m0 ese_vovnet19b_slim_dw fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny gemma4_vit_167m
    ghostnet_050 gmlp_ti16_224 hardcorenas_b hgnetv2_b0 hiera_tiny_224 hrnet_w18_small iformer_t inception_next_atto
    inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small legacy_seresnet18 legacy_xception levit_128s
    lowformer_b0 mobilenetv3_small_050 mobilenetv5_base mobilevit_xxs mvitv2_tiny naflexvit_base_patch16_parfac_gap
    nasnetalarge nest_tiny nextvit_small pit_ti_224 pnasnet5large poolformerv2_s12 pvt_v2_b0 qwen3_vit_88m rdnet_tiny
    regnetx_002 repghostnet_050 repvit_m1 res2next50 resnest14d resnetv2_18 rexnet_100 sam2_hiera_tiny
    samvit_base_patch16_224 selecsls42 sequencer2d_s shvit_s1 skresnet18 starnet_s050 swiftformer_xs
    swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 swinv2_tiny_window8_256 test_byobnet test_coatnet test_convnext
    test_efficientnet test_mambaout test_nfnet test_resnet test_vit test_vit_relpos tiny_vit_5m_224
    tnt_s_legacy_patch16_224 tresnet_m twins_svt_small vgg11 visformer_tiny vit_tiny_patch16_dinov3_qkvb
    vit_tiny_r_s16_p8_224 vitamin_small_224 volo_d1_224 xception41p xcit_nano_12_p8_224 torchvision/alexnet
    torchvision/convnext_tiny torchvision/densenet121 torchvision/efficientnet_b0 torchvision/googlenet
    torchvision/inception_v3 torchvision/maxvit_t torchvision/mnasnet0_5 torchvision/mobilenet_v2
    torchvision/mobilenet_v3_small torchvision/regnet_y_400mf torchvision/resnet18 torchvision/shufflenet_v2_x0_5
    torchvision/squeezenet1_1 torchvision/swin_t torchvision/vgg11 torchvision/vit_b_32
"""
SMALLER = {
    "convmixer_768_32": 96,
    "gemma4_vit_167m": 96,
    "inception_resnet_v2": 160,
    "inception_v4": 160,
    "legacy_xception": 160,
    "mobilenetv5_base": 128,
    "naflexvit_base_patch16_parfac_gap": 128,
    "nasnetalarge": 160,
    "pnasnet5large": 160,
    "qwen3_vit_88m": 96,
    "sam2_hiera_tiny": 224,
    "xception41p": 160,
}
"""Sizes of pictures, where a family's own takes minutes."""
FAINT = {"lcnetv2_small"}
"""Their features are of 1e-12 before training: gradients arrive, but Adam's epsilon swallows them."""
LEFT_OUT = {"timm/deepseek_vit": "its smallest network has 412 million parameters, too many for 16 GB of memory"}
LARGEST = 150_000_000
"""Parameters of the largest network that stands for a family which is not listed."""


def family_of(name: str) -> str:
    return IN_TORCHVISION.get(name) or f"timm/{timm.model_entrypoint(name).__module__.rpartition('.')[2]}"


def member(family: str) -> str:
    """Name the network that stands for a family, or skip the test."""
    if family in LEFT_OUT:
        pytest.skip(LEFT_OUT[family])
    listed = {family_of(name): name for name in MEMBERS.split() if name in IN_TORCHVISION or timm.is_model(name)}
    if family in listed:
        return listed[family]
    names = [*timm.list_models(module=family.removeprefix("timm/")), *IN_TORCHVISION]
    count, name = min((parameters(name), name) for name in names if family_of(name) == family)
    if count > LARGEST:
        pytest.skip(f"{name}, the smallest network of its family, has {count:,} parameters")
    return name


def parameters(name: str) -> float:
    """Count the parameters of a network without building it; it has no end of them where it has no classifier."""
    try:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in open_network(name, 2, pretrained=False).network.parameters())
    except BackboneError:
        return math.inf


@pytest.fixture(scope="session")
def ants_and_bees(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy two ants and two bees to train on, and an ant to validate on. Do not write into it."""
    root = tmp_path_factory.mktemp("pictures") / "ants_and_bees"
    for folder, count in (("train/ants", 2), ("train/bees", 2), ("val/ants", 1)):
        (root / folder).mkdir(parents=True)
        for path in sorted((assets / "hymenoptera_data" / folder).glob("*.jpg"))[:count]:
            shutil.copy(path, root / folder)
    return root


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_begins_undecided_trains_just_what_is_asked_for_and_answers_the_same_from_its_file(
    ants_and_bees: Path, tmp_path: Path, family: str
) -> None:
    name = member(family)
    data = ImageData.from_folder(ants_and_bees, batch_size=2, image_size=SMALLER.get(name), augment=None, workers=0)
    # Without decay a weight moves only where a gradient has come to it.
    learner = Learner(name, data, pretrained=False, weight_decay=0, precision="fp32", device="cpu")
    demand_undecided(learner)
    demand_that_only_the_head_trains(learner)
    demand_that_the_last_stage_trains_with_the_head(learner, faint=name in FAINT)
    demand_that_every_stage_trains(learner)
    demand_the_same_answers_from_a_file(learner, ants_and_bees / "train", tmp_path / "saved.safetensors")


def demand_undecided(learner: Learner) -> None:
    """Check that a new network finds both classes equally likely, in evaluation and in training."""
    assert learner.evaluate("train")["loss"] == pytest.approx(math.log(2), abs=1e-4)
    pixels, labels = learner.data.examples("train", 2)
    preprocessing = learner.data.preprocessing
    assert preprocessing is not None
    network = copy.deepcopy(learner.model).train()  # whose norms may follow what they see
    with torch.no_grad():
        logits = network(preprocessing.normaliser(CPU)(pixels))
    assert float(cross_entropy(logits, torch.tensor(labels))) == pytest.approx(math.log(2), abs=1e-4)


def demand_that_only_the_head_trains(learner: Learner) -> None:
    """Check that the head learns, all of it, and that no bit of the rest moves, buffers included."""
    learner.freeze()
    before, reached = copied(learner), set()
    train(learner, At(on_step_begin=lambda callback: reached.update(names_with_gradient(learner))))
    paths = head_paths(learner)
    moved = changed(learner, before)
    assert {name for name in moved if not any(is_within(name, path) for path in paths)} == set()
    assert reached == head_names(learner)
    assert {f"{path}.weight" for path in class_layers(learner.model, paths, 2)} <= moved


def demand_that_the_last_stage_trains_with_the_head(learner: Learner, *, faint: bool) -> None:
    """Check that no bit of the stages before it moves, buffers included."""
    learner.unfreeze(-1)
    before, reached = copied(learner), set()
    train(learner, At(on_step_begin=lambda callback: reached.update(names_with_gradient(learner))))
    moved, last = changed(learner, before), stages(learner)[-1]
    trains = last | head_names(learner)
    places = {name.rpartition(".")[0] for name in trains}  # whose norms follow what they see
    assert {name for name in moved - trains if name.rpartition(".")[0] not in places} == set()
    assert last & (reached if faint else moved)


def demand_that_every_stage_trains(learner: Learner) -> None:
    """Check that with nothing frozen something moves in each stage, and that what moves stays finite."""
    learner.unfreeze()
    before = copied(learner)
    train(learner)
    moved, now = changed(learner, before), numbers(learner)
    assert [stage for stage in stages(learner) if not stage & moved] == []
    assert [name for name in moved if not now[name].isfinite().all()] == []


def demand_the_same_answers_from_a_file(learner: Learner, pictures: Path, file: Path) -> None:
    """Check that a Learner of a file gives the same probabilities to the bit, and that tied weights are tied again."""
    answers = learner.predict(pictures).probabilities
    loaded = Learner.load(learner.save(file), device="cpu")
    file.unlink()
    assert answers.isfinite().all()
    assert torch.equal(loaded.predict(pictures).probabilities, answers)
    assert same(weights(loaded), weights(learner))
    assert tied(loaded) == tied(learner)


def train(learner: Learner, *callbacks: At) -> None:
    learner.fit(1, lr=1e-4, callbacks=callbacks, verbose=False)


def numbers(learner: Learner) -> dict[str, Tensor]:
    """Give all that a network holds, also what is in no file."""
    return {name: value.detach() for name, value in (*learner.model.named_parameters(), *learner.model.named_buffers())}


def copied(learner: Learner) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in numbers(learner).items()}


def changed(learner: Learner, before: dict[str, Tensor]) -> set[str]:
    """Name what is not as it was, and what has come or gone."""
    now = numbers(learner)
    there = now.keys() & before.keys()
    return {*(now.keys() ^ before.keys()), *(name for name in there if not torch.equal(now[name], before[name]))}


def names_with_gradient(learner: Learner) -> set[str]:
    return {name for name, parameter in learner.model.named_parameters() if parameter.grad is not None}


def head_paths(learner: Learner) -> list[str]:
    return learner.layers[-1].name.split(" + ")


def head_names(learner: Learner) -> set[str]:
    paths = head_paths(learner)
    return {name for name, _ in learner.model.named_parameters() if any(is_within(name, path) for path in paths)}


def stages(learner: Learner) -> list[set[str]]:
    """Give the names of the parameters of each stage."""
    names = {id(parameter): name for name, parameter in learner.model.named_parameters()}
    return [{names[id(parameter)] for parameter in stage.parameters} for stage in learner._session.backbone.stages]


def tied(learner: Learner) -> set[frozenset[str]]:
    """Give the names of each parameter that has several."""
    names: dict[int, set[str]] = {}
    for name, parameter in learner.model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return {frozenset(group) for group in names.values() if len(group) > 1}
