"""The text form of a chain of blocks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fused_kernels.operands.geometry import Conv
from fused_kernels.specification import Block, Chain, Layer, decode
from tests.fused_kernels.encoding import encode

sizes = st.integers(0, 7)
layers = st.builds(
    Layer,
    conv=st.builds(Conv, r=sizes, s=sizes, stride=sizes, padding=sizes),
    eps=st.floats(0, 1),
    batch_statistics=st.booleans(),
    tracked=st.booleans(),
    updates=st.booleans(),
    group=st.sampled_from([None, "0", "my_group", "a,b"]),
)
mains = st.lists(layers, min_size=1, max_size=3).map(tuple)
plain = st.builds(Block, main=mains, shortcut=st.just("identity"))
projected = st.builds(Block, main=mains, shortcut=st.just("projection"), projection=layers, stride=sizes)
padded = st.builds(Block, main=mains, shortcut=st.just("pad"), stride=sizes, pad=st.tuples(sizes, sizes))
chains = st.lists(st.one_of(plain, projected, padded), min_size=1, max_size=3).map(lambda b: Chain(tuple(b)))


@given(chains)
def test_a_chain_survives_its_text(chain: Chain) -> None:
    assert decode(encode(chain)) == chain


@given(chains)
def test_layers_come_in_order_with_the_projection_last(chain: Chain) -> None:
    expected = [
        layer for block in chain.blocks for layer in (*block.main, block.projection) if layer is not None
    ]
    assert list(chain.layers) == expected
