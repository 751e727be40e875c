import numpy as np
import onnx
import pytest
import torch

from rescompile.graph.shared.editing import read
from rescompile.graph.shared.topology import block_outputs, scale_sources
from tests.graph.conftest import exported, folded, images, network, run

NETWORKS = [("resnet18", None), ("resnet50", None), ("resnet20-cifar", "A"), ("resnet20-cifar", "B"),
            ("resnet20-cifar-bottleneck", None)]  # fmt: skip


@pytest.mark.parametrize(("name", "shortcut"), NETWORKS)
def test_graphs_compute_what_pytorch_computes(name: str, shortcut: str | None) -> None:
    _, model = network(name, shortcut)
    x = images(name)
    with torch.inference_mode():
        expected = model(torch.from_numpy(x)).numpy()
    for graph in (exported(name, shortcut), folded(name, shortcut)):
        found = run(graph, x)["logits"]
        assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize(("name", "shortcut"), NETWORKS)
def test_graphs_are_valid_onnx_and_take_any_batch(name: str, shortcut: str | None) -> None:
    onnx.checker.check_model(folded(name, shortcut), full_check=True)
    assert folded(name, shortcut).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


def test_every_tensor_is_named_after_the_node_that_makes_it() -> None:
    nodes = folded("resnet50").graph.node
    assert all(list(node.output) == [node.name] for node in nodes if node.name != "fc")
    assert {"conv1", "maxpool", "layer3.5.conv2", "layer1.0.downsample", "layer4.2.add", "layer4.2.relu"} <= {
        node.name for node in nodes
    }


@pytest.mark.parametrize(("name", "adds"), [("resnet18", 8), ("resnet50", 16), ("resnet20-cifar", 9)])
def test_blocks_are_found_with_their_skips(name: str, adds: int) -> None:
    found = scale_sources(read(folded(name)))
    moved = [tensor for tensor, source in found.items() if tensor != source]
    assert moved == [each for each in found if each.endswith(".shortcut")]
    skips = (".relu", ".downsample", ".shortcut", "maxpool", "relu1")
    assert len([each for each in found if each.endswith(skips)]) >= adds
    assert list(block_outputs(folded(name)).values())[1:-1] == [
        node.name for node in folded(name).graph.node if node.name.endswith(".relu")
    ]


def test_a_projection_skip_is_the_downsample_convolution_and_option_a_the_padded_slice() -> None:
    assert scale_sources(read(folded("resnet18")))["layer2.0.downsample"] == "layer2.0.downsample"
    assert scale_sources(read(folded("resnet20-cifar", "A")))["layer2.0.shortcut"] == "layer1.2.relu"


@pytest.mark.slow
def test_resnet_1202_exports_and_folds() -> None:
    graph = read(folded("resnet1202-cifar"))
    assert len(graph.nodes) > 3000
    assert len(scale_sources(graph)) == 1205
