import json

from glacier_fastai.recipe import recipe_from
from glacier_fastai.train.folder import comparable


def of(**model):
    return comparable(recipe_from({"bands": ["red"], "model": model}, "recipe"))


def test_networks_are_compared_with_all_their_options():
    assert of() == of(encoder="resnet34") == of(arch="resnet34") == of(size="base") == of(weights="x.safetensors")
    assert of(size="small") == of(encoder="resnet18") != of() != of(scale=0.5)
    assert (
        of(arch="glavitu", size="small")["model"]["options"]["width"] != of(arch="glavitu")["model"]["options"]["width"]
    )


def test_what_is_compared_is_a_recipe_again():
    for model in ({}, {"arch": "glavitu", "width": 40}, {"arch": "forest"}):
        found = of(**model)
        assert comparable(recipe_from(json.loads(json.dumps(found)), "last.ckpt")) == found
