"""Models and prompts that many tests share. Nothing here needs a network."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from hypothesis import HealthCheck, settings
from transformers import AutoModelForCausalLM, AutoTokenizer

import tl_neuronshare as ns
from support import toys, zoo
from support.prompts import QUIZ
from tl_neuronshare import cli

logging.getLogger("transformer_lens").setLevel(logging.ERROR)
torch.set_grad_enabled(True)
if "PYTEST_XDIST_WORKER" in os.environ:  # one thread for each of the processes, and for those that they start
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
# No deadline, since nothing here tests times; and the same examples every time, so that a failure can be had again.
settings.register_profile(
    "suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("suite")


class Zoo:
    """Tiny models, each made when it is first asked for and then kept for the session."""

    def __init__(self, directory: Path) -> None:
        self.root = directory
        self.loaded: dict[tuple[str, str], Any] = {}

    def kind(self, name: str) -> zoo.Kind:
        """What a name stands for: `llama`, `llama-2-13` for two layers of 13 neurons, `demo` for the built-in model."""
        if name == "demo":
            return replace(zoo.KINDS["bloom"], n_layers=4)
        name, *sizes = name.split("-")
        return zoo.of_size(name, *map(int, sizes)) if sizes else (zoo.KINDS | zoo.MORE_KINDS)[name]

    def directory(self, name: str) -> Path:
        """Where the model of this name is saved."""
        if not (self.root / name).exists():
            kind = self.kind(name)
            zoo.save_model(kind.model_type, kind.config, self.root / name)
        return self.root / name

    def lens(self, name: str, backend: str) -> Any:
        """The model through TransformerLens; a test is skipped where there is no such class for it."""
        if name == "demo":
            return self._kept(name, backend, lambda: ns.demo.load_model(backend=backend, device="cpu"))
        hooked = self.kind(name).hooked
        if backend == "hooked" and hooked is None:
            pytest.skip(f"TransformerLens has no HookedTransformer for {name}")
        if backend == "hooked" and hooked != "directory":
            return self._kept(name, backend, lambda: zoo.hooked_by_hand(hooked, self.directory(name)))
        return self._kept(name, backend, lambda: ns.load_model(self.directory(name), backend=backend, device="cpu"))

    def narrowed_llama(self) -> Any:
        """A Llama whose second MLP was cut to 40 neurons: `cfg` knows nothing of it, the tensors do."""
        model = ns.load_model(self.directory("llama"), backend="bridge", device="cpu")
        mlp = model.original_model.model.layers[1].mlp
        with torch.no_grad():
            for linear in (mlp.gate_proj, mlp.up_proj):
                linear._original_component.weight = torch.nn.Parameter(linear._original_component.weight[:40])
            down = mlp.down_proj._original_component
            down.weight = torch.nn.Parameter(down.weight[:, :40])
        return model

    def hugging_face(self, name: str) -> tuple[Any, Any]:
        """The same weights and tokenizer without TransformerLens."""
        directory = ns.demo.DIRECTORY if name == "demo" else self.directory(name)
        model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32).eval()
        return model, AutoTokenizer.from_pretrained(directory)

    def _kept(self, name: str, backend: str, load: Any) -> Any:
        if (name, backend) not in self.loaded:
            self.loaded[name, backend] = load()
        return self.loaded[name, backend]


@pytest.fixture(scope="session")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """The zoo of tiny models."""
    return Zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(params=zoo.BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Every model class that the installed TransformerLens has."""
    return request.param


@pytest.fixture
def bloom(animals: Zoo, backend: str) -> Any:
    """A tiny BLOOM, as each model class."""
    return animals.lens("bloom", backend)


@pytest.fixture(scope="session")
def toy_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy whose neurons' types are known."""
    return toys.save_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def prompts() -> ns.ParallelPrompts:
    """Five short texts in five languages; the texts of an example differ in length."""
    return ns.ParallelPrompts(zoo.TEXTS)


@pytest.fixture
def quiz() -> ns.ParallelPrompts:
    """Three examples in three languages, with answers and choices that merge with their prompts."""
    return QUIZ


@pytest.fixture
def ready(animals: Zoo) -> tuple[Any, ns.ParallelPrompts, ns.NeuronSharing]:
    """What attribution takes: a model, prompts with answers, and their types."""
    model = animals.lens("bloom", "bridge")
    return model, QUIZ, ns.categorise(model, QUIZ)


@pytest.fixture
def as_users_run_it() -> Iterator[None]:
    """Without the run-time type checks of the tests: the package itself must refuse bad input."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def at_once(tmp_path, monkeypatch, capsys):
    """Runs a command in this process, for starting one takes long: its exit status, and what it says."""

    def run_here(experiment: str, *given: object) -> tuple[int, str]:
        monkeypatch.chdir(tmp_path)
        try:
            with warnings.catch_warnings(), torch.random.fork_rng():
                cli.run(experiment, list(map(str, given)))
        except SystemExit as stopped:
            said = capsys.readouterr().err if isinstance(stopped.code, int) else str(stopped.code)
            return (stopped.code, said) if isinstance(stopped.code, int) else (1, said)
        finally:
            logging.disable(logging.NOTSET)
        return 0, capsys.readouterr().out

    return run_here


@pytest.fixture
def mistake(at_once):
    """The same for wrong arguments."""

    def of(*given: object, experiment: str = "patterns") -> tuple[int, str]:
        status, said = at_once(experiment, *given)
        assert status, said
        return status, said

    return of
