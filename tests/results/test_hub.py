"""Results on the hub, through its own client, against a stand-in for its server."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

import tl_neuronshare as ns
from support import hub

TOY = ns.NeuronSharing.from_activated(
    torch.rand(12, 3, 2, 10, generator=torch.Generator().manual_seed(0)) > 0.5,
    languages=["en", "de", "zh"],
    metadata={"model": "```toy <script>", "site": "gate", "threshold": 0.0},
)
RATES = ns.NeuronRates(torch.tensor([[[3, 1]], [[0, 2]]]), [4, 2], languages=["en", "de"], widths=[2])


@pytest.fixture
def as_a_user(tmp_path):
    """Run Python that knows the stand-in as the hub; give what it prints."""
    TOY.save(tmp_path / "toy.safetensors")
    RATES.save(tmp_path / "rates.safetensors")

    def run(code: str, address: str, **changed: str) -> str:
        known = {"HF_ENDPOINT": address, "HF_TOKEN": "hf_right", "HF_HOME": str(tmp_path / "cache"), **changed}
        start = (
            "import tl_neuronshare as ns\nfrom tl_neuronshare.results.sharing import NeuronSharing\n"
            "toy = NeuronSharing.load('toy.safetensors')\nrates = ns.NeuronRates.load('rates.safetensors')\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", start + code],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={**os.environ, **known},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


def test_what_is_pushed_comes_back_and_the_card_says_what_it_is(as_a_user):
    with hub.serving() as server:
        url = as_a_user("print(toy.push_to_hub('me/atlas', private=True))", server.address)
        assert url == f"{server.address}/datasets/me/atlas/commit/{server.commit}"
        files = server.repos["me/atlas"]
        assert set(files) == {"NeuronSharing.safetensors", "NeuronSharing.json", "README.md"}
        assert server.private == {"me/atlas"}
        assert json.loads(files["NeuronSharing.json"]) == TOY.metadata
        code = "loaded = NeuronSharing.from_hub('me/atlas'); print(loaded == toy and loaded.metadata == toy.metadata)"
        assert as_a_user(code, server.address) == "True"

        files["README.md"] = files["README.md"].replace(b"# atlas\n", b"# Our atlas\n\nMy own words.\n")
        as_a_user("rates.push_to_hub('me/atlas', name='rates'); toy[:11].push_to_hub('me/atlas')", server.address)
        card = files["README.md"].decode()
        assert card.startswith("---\ntags:\n- tl-neuronshare\n")
        assert card.count("My own words.") == card.count("## NeuronSharing") == card.count("## rates") == 1
        assert 'ns.NeuronRates.from_hub("me/atlas", name="rates")' in card
        assert "11 examples x 3 languages" in card
        assert "12 examples" not in card
        assert "<script>" not in card.replace('"```toy <script>"', "")  # only within the fence, which is longer
        assert "\n````json\n" in card
        assert as_a_user("print(ns.NeuronRates.from_hub('me/atlas', name='rates') == rates)", server.address) == "True"


WRONG = {
    "NeuronSharing.from_hub('me/none')": "'me/none': the hub refuses; see whether it is there",
    "NeuronSharing.from_hub('me/atlas', name='other')": "'me/atlas': it has no such file",
    "NeuronSharing.from_hub('me/atlas', revision='v9')": "'me/atlas': the hub refuses",
    "ns.NeuronRates.from_hub('me/atlas', name='NeuronSharing')": "holds no rates",
    "NeuronSharing.from_hub('a/b/c')": "'a/b/c': give one such as",
    "toy.push_to_hub('me/atlas', name='../up')": "name='../up'; give one of letters",
}


def refused(as_a_user, address, calls, **changed):
    """What our error says of each call."""
    code = (
        "import json\nsaid = []\n"
        f"for call in {list(calls)!r}:\n"
        "    try:\n        eval(call)\n        said.append('nothing')\n"
        "    except ns.NeuronShareError as error:\n        said.append(str(error))\n"
        "print(json.dumps(said))"
    )
    return json.loads(as_a_user(code, address, **changed))


def test_what_the_hub_refuses_is_said(as_a_user):
    with hub.serving() as server:
        as_a_user("toy.push_to_hub('me/atlas')", server.address)
        for said, message in zip(refused(as_a_user, server.address, WRONG), WRONG.values(), strict=True):
            assert message in said
        (said,) = refused(as_a_user, server.address, ["toy.push_to_hub('me/atlas')"], HF_TOKEN="hf_wrong")
        assert "the hub refuses; see whether it is there, and whether your token may use it" in said
    (said,) = refused(as_a_user, server.address, ["toy.push_to_hub('me/new')"])
    assert "the hub is not reached" in said
    # Without a network a download is tried again for half a minute; here the client knows that there is none.
    (said,) = refused(as_a_user, server.address, ["NeuronSharing.from_hub('me/new')"], HF_HUB_OFFLINE="1")
    assert "the hub is not reached" in said
