"""A classifier as 1x1 convolution is the same classifier."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from rescompile.backends.onnxruntime import reference_session
from rescompile.backends.tensorrt.lowering import classifier_as_convolution
from rescompile.manifest import Precision
from tests.backends.graphs import residual_net, sample_images


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_logits_stay_the_same(precision: Precision) -> None:
    model = residual_net(precision)
    lowered = classifier_as_convolution(model)
    onnx.checker.check_model(lowered, full_check=True)
    assert "Gemm" not in {node.op_type for node in lowered.graph.node}
    found, expected = (
        reference_session(each.SerializeToString(), optimize=False)(sample_images(3))
        for each in (lowered, model)
    )
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-2 if precision == "fp16" else 1e-4)


def test_a_quantized_classifier_is_left_alone() -> None:
    model = residual_net("int8")
    assert classifier_as_convolution(model) == model


def test_a_scaled_product_is_left_alone() -> None:
    model = residual_net("fp32")
    model.graph.node[-1].attribute.append(onnx.helper.make_attribute("alpha", 2.0))
    assert classifier_as_convolution(model) == model
