"""An adapter of LoRA is what it comes to; of any other method its factors are there at the rank of a bank."""

from pefx.adapters.applied import applied
from tests.method_cases import BASE, changed, spec_of


def test_only_other_methods_are_made_into_factors():
    spec = spec_of("rslora")
    adapter = changed(spec)
    assert applied(BASE, adapter, spec) is adapter
    for name, leaves in (("vera", {"a", "b"}), ("dora", {"a", "b", "gains"}), ("ia3", {"a", "b", "gains"})):
        spec = spec_of(name)
        found = applied(BASE, changed(spec), spec)
        assert {site: set(own) for site, own in found.items()} == dict.fromkeys(spec.targets, leaves)
        assert all(x.any() for own in found.values() for leaf, x in own.items() if leaf in leaves - {"a", "b"})
