"""What is installed: read from the metadata that pip wrote, and held against what is there."""

from __future__ import annotations

from importlib import metadata

from packaging.specifiers import SpecifierSet

from mmedge.installation import extras, missing, requirements


def test_the_core_is_light_and_an_extra_holds_those_that_it_includes() -> None:
    core = requirements()
    assert {"numpy", "onnxruntime", "tokenizers", "packaging"} <= core.keys()
    assert not core.keys() & {"torch", "transformers", "onnx"}
    assert {"distill", "export", "gpu", "all"} <= set(extras())
    assert "torch" in requirements("distill") and requirements("distill").keys() < requirements("export").keys()
    assert "mmedge" not in requirements("all")


def test_what_is_missing_is_what_is_not_installed_or_of_another_version() -> None:
    assert missing() == []
    for extra in extras():
        told = {line.partition(" ")[0] for line in missing(extra)}
        for name, limits in requirements(extra).items():
            try:
                suits = SpecifierSet(limits).contains(metadata.version(name), prereleases=True)
            except metadata.PackageNotFoundError:
                suits = False
            assert suits == (name not in told)
