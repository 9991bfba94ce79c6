"""PyTorch's pipelines, which speeds are compared with where torch is installed, train the same network, cut alike."""

import importlib.util

import jax
import pytest

import jaxdecouple as jd
from experiments.measure import process_speed
from experiments.measure.workload import Workload


def test_peers_are_there_where_torch_is_and_knows_the_network(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else found(name))
    assert process_speed._peers(Workload(model="resnet8"), [[0], [1]]) == {}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "torch" else found(name))
    peers = process_speed._peers(Workload(model="resnet8"), [[0], [1]])
    assert [(kind.role, kind.cores) for kind in peers.values()] == [
        ("plain", [[0]]),
        ("GPipe", [[0], [1]]),
        ("1F1B", [[0], [1]]),
    ]
    assert {kind.others["depth"] for kind in peers.values()} == {8}
    (cut,) = {tuple(kind.others["boundaries"]) for kind in peers.values()}
    ours = Workload(model="resnet8").cut(jd.schedules.one_forward_one_backward(2, 8))
    assert cut == (ours[1].first,)
    assert list(process_speed._peers(Workload(model="resnet8", num_stages=1), [[0]])) == list(peers)[:1]
    others = [{"model": "mlp"}, {"model": "resnet18"}, {"batch_size": 12}, {"dtype": "bfloat16"}]
    for other in (Workload(**{"model": "resnet8", **changes}) for changes in others):
        assert process_speed._peers(other, [[0], [1]]) == {}


def test_the_network_is_the_same():
    torch = pytest.importorskip("torch")
    from experiments.measure.torch_worker import Part, resnet

    theirs = resnet(8, 10)
    (ours,) = jd.partition(jd.models.resnet(8, split_blocks=True), 1)
    params, _ = jax.eval_shape(
        lambda key: ours.init(key, jax.ShapeDtypeStruct((2, 32, 32, 3), "f4")), jax.random.key(0)
    )
    assert len(theirs) == ours.num_layers
    count = sum(p.numel() for layer in theirs for p in layer.parameters())
    assert count == sum(leaf.size for leaf in jax.tree.leaves(params))
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(Part(theirs[4:])(*Part(theirs[:4])(x)), Part(theirs)(x), rtol=1e-4, atol=1e-4)
